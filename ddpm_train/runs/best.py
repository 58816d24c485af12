"""What follows from a run's records by its criterion: the best step, and whether it still improves. Imports no torch.

All of it is a function of the config and of `metrics.jsonl` up to a step: there is nothing that could be lost or stale.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddpm_train.config.objective import Criterion, Judging, criterion
from ddpm_train.config.train import Config
from ddpm_train.runs.folder import read_records


@dataclass
class Selection:
    """A run's evaluations so far, by its criterion.

    Attributes:
        patience: after how many evaluations without a new best the run ends; None: never.
        values: the criterion at each evaluated step.
    """

    criterion: Criterion | None
    patience: int | None
    values: dict[int, float]

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Take in what an evaluation has measured."""
        if self.criterion is not None and self.criterion.name in values:
            self.values[step] = values[self.criterion.name]

    def best(self, among: Collection[int] | None = None) -> int | None:
        """The best step (`among` these), of equals the first; None if none has been evaluated to a finite number."""
        if self.criterion is None:
            return None
        sign = 1 if self.criterion.lower_is_better else -1
        values = self.values.copy()  # another thread may add one
        steps = [step for step, value in values.items() if math.isfinite(value) and (among is None or step in among)]
        return min(steps, key=lambda step: (sign * values[step], step), default=None)

    @property
    def value(self) -> float | None:
        """The criterion at the best step; None if there is none."""
        best = self.best()
        return None if best is None else self.values[best]

    @property
    def out_of_patience(self) -> bool:
        """Whether the newest `patience` evaluations have brought nothing better than those before."""
        if self.patience is None:
            return False
        best = self.best() or 0
        return sum(step > best for step in self.values) >= self.patience


def read_selection(run: Path, config: Config | Judging, until: int | None = None) -> Selection:
    """What the records in a run's folder say, up to a step (None: all); a damaged line ends them."""
    chosen = criterion(config)
    values = evaluated(run, chosen, until) if chosen is not None else {}
    return Selection(chosen, config.train.patience, values)


def evaluated(run: Path, criterion: Criterion, until: int | None = None) -> dict[int, float]:
    """The criterion at each evaluated step, by the records in a run's folder up to a step (None: all)."""
    records = read_records(run, until, with_key=criterion.name)
    values = ((record["step"], record.get(criterion.name)) for record in records)
    return {step: value for step, value in values if isinstance(value, int | float)}
