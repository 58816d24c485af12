"""The keys `guidance.*`: a worse version of the model, away from which the better one is led."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import BeforeValidator

from ddpm_train.config.ema import Weights
from ddpm_train.config.idle import own_values
from ddpm_train.config.mistakes import as_written
from ddpm_train.config.parts import FilePath, Real, Section

NoiseLevel = Annotated[Real, Ge(0), Le(1_000_000)]


def _pair(value: object) -> object:
    if value is not None and not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError("must be [lowest,highest] or null")
    return value


@dataclass(frozen=True)
class GuidanceChoice(Section):
    """Autoguidance (Karras et al. 2024, arXiv 2406.02507): which model guides, how much, and where.

    Attributes:
        pipeline, revision, weights: the guide; None: no guidance.
        scale: w in D = D_guide + w (D_model - D_guide); 1 is the model alone.
        interval: the noise levels sigma / alpha, both ends included, at which the guide is called; None: all.
    """

    pipeline: FilePath | None
    revision: str | None
    weights: Weights
    scale: Annotated[Real, Ge(0), Le(100)]
    interval: Annotated[tuple[NoiseLevel, NoiseLevel] | None, BeforeValidator(_pair)]

    @property
    def changes(self) -> dict[str, str]:
        """The keys that are not as they are by default, as one writes them."""
        own = own_values("sample")["guidance"]
        return {f"guidance.{key}": as_written(value) for key, value in vars(self).items() if value != own[key]}

    def mistakes(self) -> Iterator[str]:
        if self.pipeline is None:
            for key, value in self.changes.items():
                yield f"{key}={value}: does nothing without guidance.pipeline=PATH; leave it out"
        if self.interval is not None and self.interval[0] >= self.interval[1]:
            yield f"guidance.interval={as_written(self.interval)}: holds nothing; give [lowest,highest]"
