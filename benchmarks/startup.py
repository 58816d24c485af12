"""How long a person waits: --help, a typo, and from the command to the first step, fresh and resumed.

    python benchmarks/startup.py [--runs 5]

The default run on a warm cache of prepared images; fresh and resumed starts take turns.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import tell

ROOT = Path(__file__).resolve().parent.parent
TRAIN = [sys.executable, str(ROOT / "train.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def whole(*arguments: str) -> float:
    """Seconds that a command takes."""
    started = time.monotonic()
    subprocess.run([*TRAIN, *arguments], env=ENVIRONMENT, capture_output=True)
    return time.monotonic() - started


def until_first_step(folder: Path) -> float:
    """Seconds from the start of the process until a new step's record is on the disk."""
    metrics = folder / "metrics.jsonl"
    before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    command = [*TRAIN, f"output_dir={folder}", "train.log_every_steps=1", "evaluation=none"]
    started = time.monotonic()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not metrics.exists() or metrics.read_bytes().count(b"\n") <= before:
        assert process.poll() is None, "the run ended before its first step"
        time.sleep(0.005)
    seconds = time.monotonic() - started
    process.terminate()  # it saves, so that the next start resumes
    process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    resumed_run = folder / "resumed"
    until_first_step(resumed_run)
    figures: dict[str, list[float]] = {"help": [], "typo": [], "fresh": [], "resumed": []}
    try:
        for run in range(arguments.runs):
            figures["help"].append(whole("--help"))
            figures["typo"].append(whole("optimiser.lr=1"))
            figures["fresh"].append(until_first_step(folder / f"fresh{run}"))
            figures["resumed"].append(until_first_step(resumed_run))
    finally:
        shutil.rmtree(folder)
    median = {name: statistics.median(values) for name, values in figures.items()}
    later = statistics.median(b - a for a, b in zip(figures["fresh"], figures["resumed"], strict=True))
    tell(
        "startup",
        [
            ("--help", f"{median['help']:.2f} s"),
            ("a typo", f"{median['typo']:.2f} s"),
            ("to the first step, fresh", f"{median['fresh']:.2f} s"),
            ("to the first step, resumed", f"{median['resumed']:.2f} s ({later:+.2f} s)"),
        ],
        {**figures, "resumed_minus_fresh": later},
    )


if __name__ == "__main__":
    main()
