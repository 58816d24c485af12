"""What evaluations have stored in a run's folder, as far as the report shows it."""

import json
from dataclasses import dataclass, field
from typing import Any

from ddpm_train.runs.clock import Forecast


@dataclass(frozen=True)
class Score:
    """One score, as the programs store it."""

    name: str
    metric: str
    value: float
    lower_is_better: bool
    interval: list[float] | None = None
    confidence: float = 0.95
    standard_deviation: float | None = None
    warning: str | None = None
    depends_on: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """How long the model was trained, 0 if that is not known."""
        return self._number("step")

    @property
    def num_images(self) -> int:
        return self._number("num_images")

    @property
    def sampled(self) -> tuple[str, int]:
        """The sampler, with its arguments and what guided it, and its number of steps."""
        sampler = json.dumps([self.depends_on.get(key) for key in ("sampler", "guidance")], sort_keys=True)
        return sampler, self._number("num_inference_steps")

    def _number(self, key: str) -> int:
        value = self.depends_on.get(key)
        return value if isinstance(value, int) else 0


@dataclass(frozen=True)
class Floor:
    """What of the held-out loss no model could remove, see `evaluation/floor.py`."""

    loss: float
    least: float
    copier: float
    naive: float
    learned: float
    interval: list[float]
    num_images: int
    by_timestep: dict[str, list[float | None]]


@dataclass(frozen=True)
class Memorisation:
    """The held-out loss by the training loss, see `evaluation/memorisation.py`, and when copying is to begin."""

    ratio: float
    interval: list[float]
    forecast: Forecast | None


@dataclass(frozen=True)
class Evaluation:
    """What was measured at a step during training (`evaluation/step_NNNNNNNN.json`)."""

    step: int
    held_out_images: int | None = None  # those of older runs do not say how many there were
    training_images: int | None = None
    loss_by_timestep: dict[str, Any] | None = None
    floor: Floor | None = None
    memorisation: Memorisation | None = None
    scores: list[Score] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """What was measured afterwards (`scores.json`)."""

    scores: list[Score] = field(default_factory=list)
    bound: dict[str, Any] | None = None
    copying: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    yardstick: dict[str, Any] | None = None
