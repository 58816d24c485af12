"""The average of the weights, which samples are made with: its decay is a function of the step."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BeforeValidator

from ddpm_train.config.mistakes import did_you_mean
from ddpm_train.config.parts import NonNegative, Positive, Real, Section
from ddpm_train.config.registry import Group

AVERAGES: "Group[EMA]" = Group("average")


@dataclass(frozen=True)
class EMA(Section):
    """The exponential moving average of the weights, which samples are made with: avg <- decay avg + (1 - decay) w."""

    name: str

    def decay(self, step: int) -> float:
        """The decay at the update that makes it `step` completed ones, in [0, 1]."""
        raise NotImplementedError

    @property
    def decays(self) -> Mapping[str, Callable[[int], float]]:
        """The decay of each average that the run keeps, by its name in a checkpoint. Samples are made with "ema"."""
        return {"ema": self.decay}

    @property
    def exponents(self) -> Mapping[str, float]:
        """gamma of each of them that is an average by a power function of the step, t ** gamma."""
        return {}

    def snapshot_every_steps(self, max_steps: int) -> int | None:
        """How often a run of this length keeps its averages for good; None: never."""
        return None


@AVERAGES.choice
@dataclass(frozen=True)
class NoEMA(EMA):
    name: Literal["none"]

    @property
    def decays(self) -> Mapping[str, Callable[[int], float]]:
        return {}


@AVERAGES.choice
@dataclass(frozen=True)
class WarmupEMA(EMA):
    """diffusers' EMAModel with `use_ema_warmup=True`."""

    name: Literal["warmup"]
    max_decay: Annotated[Real, Ge(0), Lt(1)]
    min_decay: Annotated[Real, Ge(0), Lt(1)]
    inv_gamma: Annotated[Real, Gt(0)]
    power: Annotated[Real, Gt(0)]
    update_after_step: NonNegative

    def mistakes(self) -> Iterator[str]:
        if self.min_decay > self.max_decay:
            yield f"ema.min_decay={self.min_decay}: above ema.max_decay={self.max_decay}; lower it"

    def decay(self, step: int) -> float:
        since = step - self.update_after_step - 1
        if since <= 0:
            return 0.0
        decay = 1 - (1 + since / self.inv_gamma) ** -self.power
        return max(self.min_decay, min(decay, self.max_decay))


# That of the average over all steps alike. No power function is wider.
WIDEST = 12**-0.5
Width = Annotated[Real, Gt(0), Lt(WIDEST)]  # sigma_rel


def _weights(value: object) -> object:
    kind, at, text = str(value).partition("@")
    if not at:
        if value not in _WEIGHTS:
            raise ValueError(f"not one of {', '.join(_WEIGHTS)}, ema@WIDTH;{did_you_mean(kind, _WEIGHTS)}".rstrip(";"))
        return value
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if kind != "ema" or not 0 < width < WIDEST:
        raise ValueError(f"must be ema@WIDTH, of a width above 0 and below {WIDEST:.4g}, such as ema@0.1")
    return f"ema@{width:g}"


_WEIGHTS = ("auto", "ema", "unet")
# Which weights of a run or a checkpoint: the average of any width is ema@WIDTH; auto is the average if there is one.
Weights = Annotated[str, BeforeValidator(_weights)]


def width_of(weights: str) -> float | None:
    """The width in `weights`, if there is one."""
    _, at, width = weights.partition("@")
    return float(width) if at else None


@AVERAGES.choice
@dataclass(frozen=True)
class PowerEMA(EMA):
    """Two averages over the whole run, by power functions of the step (Karras et al. 2024, arXiv 2312.02696, section
    3). From snapshots of both, averages of other widths are made after the run.

    Attributes:
        widths: sigma_rel of both: the standard deviation of the steps averaged over, as a share of the steps so far.
            Samples are made with the first.
        snapshots: how many of both are kept, evenly over the run.
    """

    name: Literal["power"]
    widths: tuple[Width, Width]
    snapshots: Positive

    def mistakes(self) -> Iterator[str]:
        if self.widths[0] == self.widths[1]:
            yield f"ema.widths=[{self.widths[0]},{self.widths[1]}]: the same twice; give two, such as [0.05,0.1]"

    def decay(self, step: int) -> float:
        return power_decay(exponent(self.widths[0]), step)

    @property
    def exponents(self) -> Mapping[str, float]:
        return dict(zip(("ema", "ema_2"), map(exponent, self.widths), strict=True))

    @property
    def decays(self) -> Mapping[str, Callable[[int], float]]:
        return {name: functools.partial(power_decay, gamma) for name, gamma in self.exponents.items()}

    def snapshot_every_steps(self, max_steps: int) -> int:
        return -(-max_steps // self.snapshots)


@functools.cache
def exponent(width: float) -> float:
    """gamma of the power function t ** gamma whose relative standard deviation, sigma_rel, is `width`.

    It solves sigma_rel ** 2 = (gamma + 1) / ((gamma + 2) ** 2 (gamma + 3)), a cubic (Karras et al. 2024, eq. 123, 126).
    """
    import numpy as np

    t = width**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_decay(gamma: float, step: int) -> float:
    """beta_t = (1 - 1 / t) ** (gamma + 1) (Karras et al. 2024, eq. 127)."""
    return (1 - 1 / step) ** (gamma + 1)
