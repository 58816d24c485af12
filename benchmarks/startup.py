"""How long a person waits: --help, a typo, and from the command to the first step, cold and warm.

    python benchmarks/startup.py [--runs 5] [--warm]

Warm: the same has run before. Cold: as after a restart of the machine, the files of Python, of the packages and of
this project are not in the system's memory (it is asked to forget them, which it does unless another process uses
them), and the images of the default run have never been prepared. Kinds of starts take turns. With
--warm no cold ones are measured.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import tell

ROOT = Path(__file__).resolve().parent.parent
TRAIN = [sys.executable, str(ROOT / "train.py")]
LABELS = {
    "help": "--help",
    "typo": "a typo",
    "fresh": "to the first step, new run",
    "resumed": "to the first step, resumed",
}


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def whole(*arguments: str) -> float:
    """Seconds that a command takes."""
    started = time.monotonic()
    subprocess.run([*TRAIN, *arguments], env=ENVIRONMENT, capture_output=True)
    return time.monotonic() - started


def until_first_step(folder: Path, cache: Path) -> float:
    """Seconds from the start of the process until a new step's record is on the disk."""
    metrics = folder / "metrics.jsonl"
    before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    command = [*TRAIN, f"output_dir={folder}", "train.log_every_steps=1", "evaluation=none"]
    started = time.monotonic()
    process = subprocess.Popen(command, env={**ENVIRONMENT, "XDG_CACHE_HOME": str(cache)}, stdout=subprocess.DEVNULL)
    while not metrics.exists() or metrics.read_bytes().count(b"\n") <= before:
        assert process.poll() is None, "the run ended before its first step"
        time.sleep(0.005)
    seconds = time.monotonic() - started
    process.terminate()  # it saves, so that the next start resumes
    process.wait()
    return seconds


def installed_files() -> set[Path]:
    """Everything that a start may read."""
    installed = [Path(entry) for entry in sys.path if not ROOT.is_relative_to(entry)]
    folders = [*installed, ROOT / "ddpm_train", ROOT / "conf"]
    return {path.resolve() for folder in folders for path in folder.rglob("*") if path.is_file()}


def forget(files: set[Path]) -> None:
    """Ask the system to drop the files from its memory."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def measure(folder: Path, runs: int, cold: bool) -> dict[str, dict[str, list[float]]]:
    cache, resumed_run = folder / "cache", folder / "resumed"
    files = installed_files() if cold else set()
    until_first_step(resumed_run, cache)
    seconds: dict[str, dict[str, list[float]]] = {
        name: {kind: [] for kind in (("warm", "cold") if cold else ("warm",))} for name in LABELS
    }
    for run in range(runs):
        starts: dict[str, Callable[[Path, str], float]] = {
            "help": lambda cache, kind: whole("--help"),
            "typo": lambda cache, kind: whole("optimiser.lr=1"),
            "fresh": lambda cache, kind, run=run: until_first_step(folder / f"{kind}{run}", cache),
            "resumed": lambda cache, kind: until_first_step(resumed_run, cache),
        }
        for name, start in starts.items():
            seconds[name]["warm"].append(start(cache, "warm"))
            if cold:
                forget(files)
                seconds[name]["cold"].append(start(folder / f"cache{name}{run}", "cold"))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        figures = measure(folder, arguments.runs, cold=not arguments.warm)
    finally:
        shutil.rmtree(folder)
    tell("startup", rows(figures), figures)


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    def medians(name: str) -> str:
        return ", ".join(f"{statistics.median(seconds):.2f} s {kind}" for kind, seconds in figures[name].items())

    return [(label, medians(name)) for name, label in LABELS.items()]


if __name__ == "__main__":
    main()
