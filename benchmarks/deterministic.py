"""Is a run in two parts the same to the bit as an undisturbed one, with train.deterministic and without, and its price?

    python benchmarks/deterministic.py [--steps 60] [--repeats 1] [--model small] [--resolution 64] [--batch-size 32]
                                       [--images DIR] [--kinds deterministic free] [-- OVERRIDES…]

Trains the steps at once, and again with the program ended and started in the middle; compares the checkpoints' files
byte by byte. The first run of each kind measures what `auto` leaves open, and all others find that. Leaves with 1 if a
deterministic run in parts differs.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from report import tell
from work import ROOT, Work, add_case, case_of, rates_of, run, tell_case, work_of

FILES = ("unet.safetensors", "ema.safetensors", "optimizer.safetensors")
KINDS = {"deterministic": "train.deterministic=true", "free": "train.deterministic=false"}


def train(work: Work, name: str, steps: int, kind: str) -> Path:
    """Train the run of that name to its step `steps`, from where it stands; returns its folder."""
    scratch = Path(work.scratch)
    changes = ["resume=auto", f"output_dir={scratch / name}", f"train.max_steps={steps}", "lr_scheduler=constant"]
    command = [sys.executable, str(ROOT / "train.py"), *work.overrides, *changes, KINDS[kind]]
    run(command, scratch / f"{name}.log", XDG_CACHE_HOME=str(scratch / "chosen"))
    return scratch / name


def measure(work: Work, kinds: list[str], repeats: int) -> dict[str, Any]:
    half = work.steps // 2
    figures: dict[str, Any] = {kind: {"equal": dict.fromkeys(FILES, True), "images_per_second": []} for kind in kinds}
    for repeat in range(repeats):
        for kind in kinds:
            whole = train(work, f"{kind}_whole{repeat}", work.steps, kind)
            train(work, f"{kind}_parts{repeat}", half, kind)
            parts = train(work, f"{kind}_parts{repeat}", work.steps, kind)
            last = f"checkpoints/step_{work.steps:08d}"
            for file in FILES:
                figures[kind]["equal"][file] &= (whole / last / file).read_bytes() == (parts / last / file).read_bytes()
            rate = statistics.harmonic_mean(rates_of(whole, after=work.warmup))
            figures[kind]["images_per_second"].append(rate)
            figures[kind]["compute"] = json.loads((whole / last / "state.json").read_text())["compute"]
    if set(kinds) == set(KINDS):
        pairs = zip(*(figures[kind]["images_per_second"] for kind in KINDS), strict=True)
        figures["cost"] = 1 - statistics.median(deterministic / free for deterministic, free in pairs)
    return figures


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    table = [("case", tell_case(figures["case"]))]
    for kind, row in ((kind, figures[kind]) for kind in KINDS if kind in figures):
        equal = ", ".join(f"{file} {'equal' if same else 'DIFFERS'}" for file, same in row["equal"].items())
        table.append((KINDS[kind], f"{statistics.median(row['images_per_second']):.1f} images/s; resumed: {equal}"))
    cost = figures.get("cost")
    return table if cost is None else [*table, ("to be deterministic costs", f"{100 * cost:.1f} % of the rate")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case(parser)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    with work_of(arguments) as work:
        figures = {"case": case_of(arguments), **measure(work, arguments.kinds, arguments.repeats)}
    tell(Path(__file__).stem, rows(figures), figures)
    sys.exit("deterministic" in figures and not all(figures["deterministic"]["equal"].values()))


if __name__ == "__main__":
    main()
