"""How many bits a pixel of a set of images costs a model: an upper bound, with its terms."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from ddpm_train.data.images import Images
from ddpm_train.diffusion.bound import BoundTerms
from ddpm_train.diffusion.objective import to_model_range
from ddpm_train.evaluation.shards import fill_sharded
from ddpm_train.seeding import Purpose, integers, normal
from ddpm_train.system.signals import StopRequest


@dataclass(frozen=True)
class Bound:
    """The variational bound, a mean over images, in bits per dimension.

    `bits_per_dim` = `prior` + sum over t = 1 … T-1 of L_t + `decoder`.

    Attributes:
        standard_error: of `bits_per_dim`, by the differences between images, which hold those of the noise; None for
            a single image.
        prior: L_T.
        decoder: L_0.
        timesteps: where each stretch of timesteps starts; it ends before the next, the last with the schedule.
        by_timestep: L_t, the mean over each stretch.
    """

    bits_per_dim: float
    standard_error: float | None
    prior: float
    decoder: float
    timesteps: tuple[int, ...]
    by_timestep: tuple[float, ...]
    num_images: int

    def to_json(self) -> dict[str, Any]:
        return {
            "bits_per_dim": self.bits_per_dim,
            "standard_error": self.standard_error,
            "prior": self.prior,
            "decoder": self.decoder,
            "by_timestep": {"timesteps": list(self.timesteps), "bits_per_dim": list(self.by_timestep)},
            "num_images": self.num_images,
        }


def variational_bound(
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler,
    images: Images,
    *,
    seed: int,
    batch_size: int,
    accelerator: Accelerator,
    stop: StopRequest,
    num_timesteps: int | None = None,
) -> Bound:
    """The bound on the negative log-likelihood of `images` (centre crops, unflipped); deterministic.

    The noise of an image at a timestep depends on (seed, image, timestep) alone, so that neither the number of
    processes nor the batch size changes the result, beyond what the network's own rounding does.

    Args:
        unet: float32, in eval mode.
        num_timesteps: visit so many timesteps for each image and not all, besides 0: one at random in each of as
            many stretches, which grow with t since the terms shrink. Unbiased, and cheaper by T / num_timesteps.

    Raises:
        ValueError: see `BoundTerms`.
        Stopped: all processes, when one of them was asked to stop.
    """
    terms = BoundTerms(noise_scheduler, unet.device)
    total = noise_scheduler.config.num_train_timesteps
    edges = torch.tensor([0, *stretches(total, min(num_timesteps or total, total - 1))], device=unet.device)
    widths = edges.diff()
    visits = len(widths)  # of each image; the first is to timestep 0, the decoder

    def measure(items: range, poll: object) -> Tensor:
        stop.check()
        positions = torch.arange(items.start, items.stop, device=unet.device)
        numbers, stretch = positions // visits, positions % visits
        within = integers(seed, Purpose.BOUND_TIMESTEP, positions, widths[stretch])
        timesteps = edges[stretch] + within
        x_0 = _load(images, numbers, unet.device)
        noise = normal(seed, Purpose.BOUND_NOISE, numbers * total + timesteps, tuple(x_0.shape[1:]))
        return terms.at(unet, x_0, noise, timesteps)

    measured = fill_sharded(
        torch.zeros(len(images) * visits, device=unet.device),
        measure,
        batch_size,
        polls_per_batch=1,
        accelerator=accelerator,
        stop=stop,
    )
    by_image = measured.cpu().double().unflatten(0, (len(images), visits))
    starts = range(0, len(images), batch_size)
    batches = (torch.arange(start, min(start + batch_size, len(images))) for start in starts)
    prior = torch.cat([terms.prior(_load(images, numbers, unet.device)) for numbers in batches]).cpu().double()
    bits = prior + (by_image * widths.cpu()).sum(dim=1)
    return Bound(
        bits_per_dim=float(bits.mean()),
        standard_error=float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else None,
        prior=float(prior.mean()),
        decoder=float(by_image[:, 0].mean()),
        timesteps=tuple(edges[1:-1].tolist()),
        by_timestep=tuple(by_image[:, 1:].mean(dim=0).tolist()),
        num_images=len(images),
    )


def stretches(total: int, count: int) -> list[int]:
    """The bounds of `count` stretches of the timesteps 1 … total - 1, growing linearly with t; count + 1 numbers."""
    return [max(number + 1, round(1 + (total - 1) * (number / count) ** 2)) for number in range(count + 1)]


def _load(images: Images, numbers: Tensor, device: torch.device) -> Tensor:
    """float32 [B, C, H, W] in [-1, 1]; each image is decoded once, however many of the numbers name it."""
    different, places = numbers.unique(return_inverse=True)
    return to_model_range(images.load(different.tolist()).to(device))[places.to(device)]
