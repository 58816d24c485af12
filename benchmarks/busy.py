"""What is left of the training's speed on a machine that others use, too, by how waiting threads wait.

    python benchmarks/busy.py [--turns 5] [--steps 4] [--neighbours 0 1]

For each way of waiting the default run trains in a process of its own. They take turns, some steps each, while the
others sleep, beside so many neighbours: processes that compute without a rest. Linux's OpenMP library is meant.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from report import tell
from work import ENVIRONMENT

WAYS = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # what the library does by itself
    "briefly": {"GOMP_SPINCOUNT": "10000"},  # what the programs set
    "asleep": {"OMP_WAIT_POLICY": "passive"},
    "one_thread": {"OMP_NUM_THREADS": "1"},
}
COMPUTE = ("train.mixed_precision=bf16", "train.channels_last=false", "train.attention=fused", "train.compile=false")
ENDLESS = ("train.max_steps=1000000", "checkpoint.every_steps=null", "evaluation=none", "tracker=none")
TURN = "seconds of a turn: "


class Runner:
    """The default run in a process of its own, which trains when it is asked to."""

    def __init__(self, way: str, folder: Path, steps: int) -> None:
        command = [sys.executable, __file__, "--train", str(steps), *ENDLESS, *COMPUTE, f"output_dir={folder / way}"]
        self._steps = steps
        self.process = subprocess.Popen(
            command, env={**ENVIRONMENT, **WAYS[way]}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def turn(self) -> float:
        """Seconds of a step, of its next ones."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith(TURN):
            assert line, "the run has ended"
        return float(line.removeprefix(TURN)) / self._steps


def train(steps: int) -> None:
    """Be that process."""
    from ddpm_train.cli import train as program
    from ddpm_train.training.loop import Trainer

    train_step, started = Trainer.train_step, 0.0

    def step_when_asked(self: Trainer) -> None:
        nonlocal started
        if self.state.step % steps == 0:
            if self.state.step:
                print(f"{TURN}{time.perf_counter() - started}", flush=True)
            sys.stdin.readline()
            started = time.perf_counter()
        train_step(self)

    Trainer.train_step = step_when_asked  # type: ignore[method-assign]
    sys.argv = ["train.py", *sys.argv[3:]]
    program.main()


def measure(turns: int, steps: int, counts: list[int]) -> dict[str, dict[str, list[float]]]:
    seconds: dict[str, dict[str, list[float]]] = {way: {str(count): [] for count in counts} for way in WAYS}
    with ExitStack() as ends:
        folder = Path(tempfile.mkdtemp())
        ends.callback(shutil.rmtree, folder)
        runners = {way: Runner(way, folder, steps) for way in WAYS}
        for runner in runners.values():
            ends.callback(runner.process.kill)
        for runner in runners.values():
            runner.turn()  # sets up
        for _ in range(turns):
            for count in counts:
                neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
                try:
                    for way, runner in runners.items():
                        seconds[way][str(count)].append(runner.turn())
                finally:
                    for neighbour in neighbours:
                        neighbour.kill()
    return seconds


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    def told(seconds: list[float]) -> str:
        return f"{1000 * statistics.median(seconds):.0f} ms ({1000 * min(seconds):.0f} to {1000 * max(seconds):.0f})"

    return [
        (f"{way}, {count} neighbours", told(seconds))
        for way, by_count in figures["seconds_per_step"].items()
        for count, seconds in by_count.items()
    ]


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        return train(int(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--neighbours", type=int, nargs="*", default=[0, 1])
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    seconds = measure(arguments.turns, arguments.steps, arguments.neighbours)
    figures = {"load_average_before": before, "seconds_per_step": seconds}
    tell(Path(__file__).stem, rows(figures), figures)


if __name__ == "__main__":
    main()
