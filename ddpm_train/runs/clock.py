"""When a run will begin to copy its training images, forecast from its records. Imports no torch.

While a model learns what the images have in common, its losses on training and on held-out images fall together. Later
it learns the training images themselves, and the one loss leaves the other: after a time that grows with the number of
images, while the time to good samples does not (Bonnaire et al. 2025, arXiv 2505.17638).

"Copying begins" at the first evaluation at which the whole interval of `copy_rate` lies above the rate of unseen real
images. In experiments (benchmarks/results/memorisation.md) the held-out loss at little noise had then come to between
`EARLIEST` and `LATEST` times the training loss, see `evaluation.memorisation`. What this ratio has above 1 grows as a
power of the steps, so that its way there is known long before.

All of it is a function of `metrics.jsonl` up to a step: there is nothing that could be lost or stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from ddpm_train.runs.folder import read_records

RATIO = "held_out_to_training_loss"  # its key in the records
# The ratio at which copying is taken to begin, and those between which it was seen to.
BEGINS, EARLIEST, LATEST = 3.9, 2.2, 5.7
# The evaluations since this share of the steps show how fast the ratio grows.
_RECENT = 1 / 3
# What is so many times as far away as the run has come, no power of the steps can tell.
FARTHEST = 100


@dataclass(frozen=True)
class Forecast:
    """The step at which copying begins, and its interval, which has no end where the ratio may not grow at all.

    It covers the choice of the images that were measured, and the ratios at which copying has been seen to begin.
    """

    step: float
    interval: tuple[float, float | None]

    def __str__(self) -> str:
        step, low, high = (f"{float(f'{end or 0:.2g}'):,.0f}" for end in (self.step, *self.interval))
        return f"about step {step} ({low} {f'to {high}' if self.interval[1] else 'or later'})"


@dataclass(frozen=True)
class Clock:
    """What evaluations have said so far: the ratio of the losses by step."""

    ratios: Mapping[int, float] = field(default_factory=dict)

    def after(self, step: int, values: Mapping[str, float]) -> Self:
        """With what an evaluation has measured."""
        return replace(self, ratios={**self.ratios, step: values[RATIO]}) if RATIO in values else self

    def forecast(self, interval: tuple[float, float] | None = None) -> Forecast | None:
        """From the last evaluation and how it came there; None: the ratio does not grow, or too slowly to tell.

        Args:
            interval: of the last evaluation's ratio; None: as if it were exact.
        """
        if not self.ratios:
            return None
        last = max(self.ratios)
        recent = {step: ratio - 1 for step, ratio in self.ratios.items() if step >= _RECENT * last and ratio > 1}
        power = float(np.polyfit(np.log([*recent]), np.log([*recent.values()]), 1)[0]) if len(recent) > 1 else 1.0
        if last not in recent or power <= 0:
            return None
        low, high = (end - 1 for end in interval or (self.ratios[last],) * 2)

        def reached(ratio: float, excess: float) -> float:
            """The step at which the ratio is reached if it has come so far above 1 by now."""
            return last * ((ratio - 1) / excess) ** (1 / power)

        if (earliest := reached(EARLIEST, high)) > FARTHEST * last:
            return None
        end = reached(LATEST, low) if low > 0 else None
        return Forecast(reached(BEGINS, recent[last]), (earliest, end))

    def may_begin_by(self, step: int) -> bool:
        """Whether the ratio comes to `EARLIEST` until then."""
        found = self.forecast()
        return found is not None and found.interval[0] <= step


def read_clock(run: Path, until: int | None = None) -> Clock:
    """What the records in a run's folder say, up to a step (None: all); a damaged line ends them."""
    records = read_records(run, until, with_key=RATIO)
    return Clock({record["step"]: record[RATIO] for record in records if isinstance(record.get(RATIO), int | float)})
