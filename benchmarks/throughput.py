"""Images a second of this project's program against the loops that people use today, around the same network.

    python benchmarks/throughput.py [--images DIR] [--steps 60] [--repeats 3] [--resolution 64] [--batch-size 32]
                                    [--model small] [--against tutorial tuned package] [-- OVERRIDES…]

The peers stand in `peers.py`. Every contestant is a process of its own; they take turns, and the ratios are medians
over the turns. Counted are the steps after a warm-up, with the prepared images in place (`datasets` keeps its own).
Without --images it generates JPEGs of a photograph's size. OVERRIDES are this project's, such as train.compile=true:
by itself a run as short as these does not compile. `--against` without a name measures this project's program alone.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from limits import tell_peak
from profiling import rows as profile_rows
from report import tell
from work import ROOT, WINDOW, Work, add_case, case_of, last_json, rates_of, run, tell_case, work_of

LABELS = {
    "ours": "ours",
    "tutorial": "diffusers' example",
    "tuned": "the same, tuned",
    "package": "denoising-diffusion-pytorch",
}
NEEDS = {
    "tutorial": ("datasets", "torchvision"),
    "tuned": ("datasets", "torchvision"),
    "package": ("denoising_diffusion_pytorch",),
}


def peer(name: str, work: Work) -> dict[str, Any]:
    log = work.fresh() / f"{name}.log"
    run([sys.executable, str(ROOT / "benchmarks/peers.py"), name, work.write()], log)
    return last_json(log)


def program(work: Work) -> dict[str, Any]:
    """This project's own program, as a user starts it: its rate from its record, its choices from its checkpoint."""
    scratch = work.fresh()
    peak = run([sys.executable, str(ROOT / "train.py"), *work.overrides], scratch / "ours.log")
    state = json.loads((scratch / f"run/checkpoints/step_{work.steps:08d}/state.json").read_text())
    return {
        "images_per_second": statistics.harmonic_mean(rates_of(scratch / "run", after=work.warmup)),
        "peak_rss": peak,
        "precision": state["compute"]["mixed_precision"],
        "chosen": {**state["compute"], "micro_batch_size": state["micro_batch_size"]},
    }


def take_turns(contestants: dict[str, Callable[[], dict[str, Any]]], repeats: int) -> dict[str, list[dict[str, Any]]]:
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name, contestant in contestants.items():
            turns[name].append(contestant())
            print(f"turn {repeat + 1}, {name}: {turns[name][-1]['images_per_second']:.1f} images/s", file=sys.stderr)
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case(parser)
    parser.add_argument("--against", nargs="*", choices=NEEDS, default=list(NEEDS))
    arguments = parser.parse_args()
    with work_of(arguments) as work:
        figures = {"case": case_of(arguments), **measure(work, arguments.against, arguments.repeats)}
    tell(Path(__file__).stem, rows(figures), figures)


def measure(work: Work, against: list[str], repeats: int) -> dict[str, Any]:
    limits = peer("limits", work)
    # A clock around the data, and a profiler, have no place in the program that is measured. Also prepares the images.
    watched = peer("ours", replace(work, profiled_steps=WINDOW)) if against else {}
    contestants: dict[str, Callable[[], dict[str, Any]]] = {"ours": lambda: program(work)}
    for name in against:
        if all(map(importlib.util.find_spec, NEEDS[name])):
            contestants[name] = partial(peer, name, work)
    turns = take_turns(contestants, repeats)
    missing = {name: NEEDS[name] for name in against if name not in turns}
    figures: dict[str, Any] = {"limits": limits, "not_installed": missing, "profile": watched.pop("profile", None)}
    for name, measured in turns.items():
        last = {**measured[-1], **watched} if name == "ours" else measured[-1]
        rates = [turn["images_per_second"] for turn in measured]
        achieved = statistics.median(rates) * limits["flops_per_image"]
        figures[name] = {
            "images_per_second": rates,
            "ours_is_faster_by": statistics.median(
                mine["images_per_second"] / theirs for mine, theirs in zip(turns["ours"], rates, strict=True)
            ),
            "waiting_share": last.get("waiting_share"),
            "peak_rss": statistics.median(turn["peak_rss"] for turn in measured),
            "peak_gpu": last.get("peak_gpu"),
            "precision": last["precision"],
            **({"chosen": last["chosen"]} if name == "ours" else {}),
            "flops_utilisation": achieved / limits["peak_flops"]["bf16" if last["precision"] != "no" else "no"],
        }
    return figures


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    limits = figures["limits"]
    table = [
        ("case", tell_case(figures["case"])),
        ("network", f"{limits['parameters'] / 1e6:.2f}M parameters"),
        ("forward and backward", f"{limits['flops_per_image'] / 1e9:.2f} GFLOP an image"),
        tell_peak(limits["peak_flops"]),
        ("ours chose", ", ".join(f"{name} {value}" for name, value in figures["ours"]["chosen"].items())),
    ]
    for name, label in LABELS.items():
        if name in figures["not_installed"]:
            needed = " ".join(figures["not_installed"][name]).replace("_", "-")
            table.append((label, f"not installed (pip install {needed})"))
        if name not in figures:
            continue
        row = figures[name]
        gpu = f", {row['peak_gpu'] / 1e9:.2f} GB on the GPU" if row["peak_gpu"] else ""
        waits = "" if row["waiting_share"] is None else f"waits for data {100 * row['waiting_share']:.1f} %, "
        ratio = "" if name == "ours" else f"  ours is {row['ours_is_faster_by']:.2f} times as fast"
        table.append(
            (
                label,
                f"{statistics.median(row['images_per_second']):7.1f} images/s  "
                f"{'fp32' if row['precision'] == 'no' else row['precision']}, "
                f"{waits}{100 * row['flops_utilisation']:.1f} % of the matrix products, "
                f"{row['peak_rss'] / 1e9:.2f} GB{gpu}{ratio}",
            )
        )
    return table if figures["profile"] is None else table + profile_rows(figures["profile"])


if __name__ == "__main__":
    main()
