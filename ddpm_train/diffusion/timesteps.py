"""From random integers to timesteps, by the inverse of a distribution function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.timesteps import TimestepDistribution, Weightable
from ddpm_train.diffusion.noise import signal_to_noise
from ddpm_train.seeding import Purpose, bits, to_integers

# The least share of a timestep, of what it has in the uniform distribution: each is learned, and none counts more than
# a hundred times.
LEAST_SHARE = 0.01
# Edges are rounded to 2^-24, so that machines which round a logarithm or an eigenvalue otherwise find the same ones.
_ROUNDED_BITS = 8
# The fractional parts of consecutive multiples of the golden ratio lie evenly, however many they are: between them are
# gaps of three lengths at most, of which the largest is 2.6 times the smallest.
_GOLDEN = 0x9E3779B9


def timestep_edges(
    distribution: TimestepDistribution, noise_scheduler: DDPMScheduler, spectrum: Callable[[], Tensor]
) -> tuple[int, ...] | None:
    """Where in [0, 2^32) the random integers of each timestep end, [T]; None: each has as many as every other.

    Raises:
        Mistakes: the distribution has next to nothing in this schedule.
    """
    cumulative = distribution.cumulative(signal_to_noise(noise_scheduler).cpu().double(), spectrum)
    if cumulative is None or len(cumulative) == 1:
        return None
    share = torch.gradient(cumulative)[0].clamp(min=0)
    if not share.sum() > 1e-6 * (1 + cumulative.abs().max()):
        raise Mistakes(
            f"timestep_distribution={distribution.name}: no timestep of this noise schedule is likely; change its keys "
            "or use uniform"
        )
    total = len(share)
    share = (1 - LEAST_SHARE) * share / share.sum() + LEAST_SHARE / total
    ends = (share.cumsum(0) * 2 ** (32 - _ROUNDED_BITS)).round().long() << _ROUNDED_BITS
    return (*ends[:-1].tolist(), 2**32)


@dataclass(frozen=True)
class Timesteps:
    """The timestep of each position.

    Attributes:
        edges: see `timestep_edges`, int64 [T] on the device; None: uniform.
        start: where stratified timesteps begin, in [0, 2^32); None: each is drawn for itself.
        importance: 1 / (T p(t)), by which the loss at each timestep is multiplied, float32 [T] on the device; None: 1.
    """

    num_train_timesteps: int
    edges: Tensor | None = None
    start: int | None = None
    importance: Tensor | None = None

    @classmethod
    def of(
        cls, distribution: TimestepDistribution, edges: Sequence[int] | None, noise_scheduler: DDPMScheduler, seed: int
    ) -> "Timesteps":
        """Those of a run: `edges` are those of its distribution, `alphas_cumprod` of its schedule lie on the device."""
        device, total = noise_scheduler.alphas_cumprod.device, noise_scheduler.config.num_train_timesteps
        zero = torch.zeros(1, dtype=torch.int64)
        start = int(bits(seed, Purpose.TIMESTEP, zero, 1)) if distribution.stratified else None
        if edges is None:
            return cls(total, start=start)
        ends = torch.tensor(edges)
        importance = None
        if isinstance(distribution, Weightable) and distribution.importance_weighted:
            importance = (2**32 / (total * ends.diff(prepend=zero).double())).float().to(device)
        return cls(total, ends.to(device), start, importance)

    def __call__(self, drawn: Tensor, positions: Tensor) -> Tensor:
        """Timesteps, int64 [B] in [0, T), from what was drawn for the positions, int64 [B] in [0, 2^32)."""
        if self.start is not None:
            drawn = (self.start + positions * _GOLDEN) & 0xFFFFFFFF
        if self.edges is None:
            return to_integers(drawn, self.num_train_timesteps)
        return torch.searchsorted(self.edges, drawn.contiguous(), right=True)
