"""Which goals the results of `run_gpu.sh` meet, in a line each.

    python benchmarks/goals.py [FOLDER]

Leaves with 0 if all of them are met. Figures of a rehearsal, or of a machine without a GPU, are shown and do not count.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOWERS_IMAGES = 818_900  # 100 epochs of its 8,189 images


@dataclass(frozen=True)
class Goal:
    """A bound on one figure.

    Attributes:
        file: below the folder of results.
        figure: from what the benchmark found.
        format: how the figure is shown, with its unit.
    """

    name: str
    file: str
    figure: Callable[[dict[str, Any]], float]
    at_least: bool
    bound: float
    format: str

    def __str__(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.format.format(self.bound)}"

    def is_met(self, figure: float) -> bool:
        return figure >= self.bound if self.at_least else figure <= self.bound


def rate(figures: dict[str, Any]) -> float:
    return statistics.median(figures["ours"]["images_per_second"])


def equal_files(figures: dict[str, Any]) -> float:
    return sum(figures["deterministic"]["equal"].values())


TUTORIAL, CIFAR10, FLOWERS = (f"{part}/throughput.json" for part in ("unet_128_64px", "unet_32_32px", "flowers_64"))
GOALS = (
    Goal(
        "unet_128, 64 px, against train_unconditional.py at its best",
        TUTORIAL,
        lambda figures: figures["tuned"]["ours_is_faster_by"],
        at_least=True,
        bound=2.5,
        format="{:.2f} times as fast",
    ),
    Goal(
        "unet_128, 64 px, of the peak of matrix products",
        TUTORIAL,
        lambda figures: 100 * figures["ours"]["flops_utilisation"],
        at_least=True,
        bound=50,
        format="{:.1f} %",
    ),
    Goal("unet_32 (ddpm-cifar10), 32 px", CIFAR10, rate, at_least=True, bound=10_600, format="{:,.0f} images/s"),
    Goal(
        f"flowers-64, {FLOWERS_IMAGES:,} images on one H200, at the rate of {FLOWERS.partition('/')[0]}",
        FLOWERS,
        lambda figures: FLOWERS_IMAGES / rate(figures) / 60,
        at_least=False,
        bound=3,
        format="{:.2f} minutes",
    ),
    Goal(
        "longest stall of a save",
        "checkpoint/checkpoint.json",
        lambda figures: max(figures["first_stall_seconds"], *figures["stall_seconds"]),
        at_least=False,
        bound=0.5,
        format="{:.3f} s",
    ),
    *(
        Goal(
            f"train.deterministic=true{how}: files of a resumed run equal to the bit",
            f"{part}/deterministic.json",
            equal_files,
            at_least=True,
            bound=3,
            format="{:.0f} of 3",
        )
        for part, how in (("deterministic", ""), ("deterministic_compiled", ", compiled"))
    ),
)


def judged(folder: Path, goal: Goal) -> tuple[str, str]:
    """What has become of a goal: met, SHORT or not measured; and in words, what was found where."""
    try:
        result = json.loads((folder / goal.file).read_text())
        figure = goal.figure(result["figures"])
    except FileNotFoundError:
        return "not measured", f"no {goal.file}"
    except KeyError as missing:  # a contestant that is not installed there
        return "not measured", f"no {missing} in {goal.file}"
    circumstances = result["circumstances"]
    shown = f"{goal.format.format(figure)} on {circumstances['gpu'] or 'a CPU'}"
    if circumstances["gpu"] is None or circumstances.get("rehearsal"):
        return "not measured", f"rehearsed: {shown}"
    return "met" if goal.is_met(figure) else "SHORT", shown


def verdicts(folder: Path) -> Iterator[tuple[Goal, str, str]]:
    for goal in GOALS:
        yield goal, *judged(folder, goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "results/gpu")
    found = list(verdicts(parser.parse_args().folder))
    for goal, verdict, shown in found:
        print(f"{verdict:<12}  {goal.name}: {shown} (goal: {goal})")
    sys.exit(any(verdict != "met" for _, verdict, _ in found))


if __name__ == "__main__":
    main()
