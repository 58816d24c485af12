"""At which timesteps a run trains, and how often at each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt

from ddpm_train.config.parts import Real, Section
from ddpm_train.config.registry import Group

if TYPE_CHECKING:
    from torch import Tensor

# So many stand for all components of an image, which has as many as numbers.
_MOST_COMPONENTS = 1024
TIMESTEP_DISTRIBUTIONS: "Group[TimestepDistribution]" = Group("timestep distribution")


@dataclass(frozen=True)
class TimestepDistribution(Section):
    """How often each timestep is drawn.

    Attributes:
        stratified: timesteps that follow each other spread evenly (the idea of the low-discrepancy sampler of Kingma et
            al. 2021, appendix I.1).
    """

    name: str
    stratified: bool

    def cumulative(self, snr: "Tensor", spectrum: Callable[[], "Tensor"]) -> "Tensor | None":
        """How much of the distribution lies before each timestep, up to a constant and a factor; None: it is uniform.

        Args:
            snr: the signal-to-noise ratio at each timestep, float64 [T].
            spectrum: measures the variances of the components of the training images, see `power_spectrum`.

        Returns:
            float64 [T], growing with the timestep.
        """
        return None


@TIMESTEP_DISTRIBUTIONS.choice
@dataclass(frozen=True)
class Uniform(TimestepDistribution):
    """Each timestep as often as every other (Ho et al. 2020, algorithm 1)."""

    name: Literal["uniform"]


UNIFORM = Uniform("uniform", stratified=False)


@dataclass(frozen=True)
class Weightable(TimestepDistribution):
    """A distribution that may serve the same objective as the uniform one.

    Attributes:
        importance_weighted: a loss counts 1 / (T p(t)), so that its expectation is that of the uniform distribution.
            Otherwise what is drawn more often counts more, as in the papers.
    """

    importance_weighted: bool


@dataclass(frozen=True)
class Normal(Weightable):
    """Something of a timestep is normal."""

    mean: Real
    std: Annotated[Real, Gt(0)]

    def _cumulative(self, values: "Tensor") -> "Tensor":
        return ((values - self.mean) / (self.std * math.sqrt(2))).erf()


@TIMESTEP_DISTRIBUTIONS.choice
@dataclass(frozen=True)
class LogNormal(Normal):
    """The logarithm of sigma, the noise's deviation per signal, is normal (Karras et al. 2022, table 1)."""

    name: Literal["lognormal"]

    def cumulative(self, snr: "Tensor", spectrum: Callable[[], "Tensor"]) -> "Tensor":
        """P(sigma < sigma_t), where sigma_t = SNR(t)^(-1/2)."""
        return self._cumulative(-snr.log() / 2)


@TIMESTEP_DISTRIBUTIONS.choice
@dataclass(frozen=True)
class LogitNormal(Normal):
    """The logit of the place in the schedule, in (0, 1), is normal (Esser et al. 2024, eq. 19)."""

    name: Literal["logit_normal"]

    def cumulative(self, snr: "Tensor", spectrum: Callable[[], "Tensor"]) -> "Tensor":
        """P(u < (t + 1/2) / T)."""
        return self._cumulative(_places(snr).logit())


@TIMESTEP_DISTRIBUTIONS.choice
@dataclass(frozen=True)
class FromData(Weightable):
    """Where noise takes the images' components away, one after the other.

    A component of variance v is visible beside the noise while SNR v > 1. Of what a linear denoiser, the best one of
    normal images, must find out of a component, noise has taken 1 / (1 + SNR v) (Wiener's filter). A timestep is drawn
    in proportion to what it takes, over all components: where the least loss changes, there is something to learn.
    """

    name: Literal["from_data"]

    def cumulative(self, snr: "Tensor", spectrum: Callable[[], "Tensor"]) -> "Tensor":
        """The mean over the components of 1 / (1 + SNR v): also 1 - the linear denoiser's error in noise."""
        ordered = spectrum().sort().values
        chosen = ordered[(_places(ordered[:_MOST_COMPONENTS]) * len(ordered)).long()]
        return (1 / (1 + snr[:, None] * chosen)).mean(dim=1)


def _places(like: "Tensor") -> "Tensor":
    """The middles of as many equal parts of (0, 1), float64 [N]."""
    import torch

    return (torch.arange(len(like), dtype=torch.float64) + 0.5) / len(like)
