"""How many bits a pixel of a set of images costs a model: an upper bound, with its terms."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_train.data.images import Images
from ddpm_train.diffusion.bound import BoundTerms
from ddpm_train.diffusion.objective import to_model_range
from ddpm_train.evaluation.measure import ModelInputs, Result
from ddpm_train.evaluation.scores import Measured
from ddpm_train.models.load import Model
from ddpm_train.seeding import Purpose, integers, normal

_NORMAL_QUANTILE = 1.959964  # of CONFIDENCE, on both sides


@dataclass(frozen=True)
class Bound:
    """The variational bound, a mean over images, in bits per dimension.

    `bits_per_dim` = `prior` + sum over t = 1 … T-1 of L_t + `decoder`.

    Attributes:
        standard_error: of `bits_per_dim`, by the differences between images, which include those of the noise; None
            for a single image.
        prior: L_T.
        decoder: L_0.
        by_timestep: `timesteps`, where each stretch of timesteps starts (it ends before the next, the last with the
            schedule), and `bits_per_dim`, the mean L_t over each stretch.
    """

    bits_per_dim: float
    standard_error: float | None
    prior: float
    decoder: float
    by_timestep: dict[str, list[Any]]
    num_images: int


def bits_per_dim(inputs: ModelInputs) -> Iterator[Result]:
    """The row of `METRICS`, with the interval that the standard error gives."""
    bound = variational_bound(inputs)
    reach = _NORMAL_QUANTILE * (bound.standard_error or 0)
    interval = (bound.bits_per_dim - reach, bound.bits_per_dim + reach) if bound.standard_error else None
    yield "bits_per_dim", Measured(bound.bits_per_dim, interval=interval)
    yield "bound", asdict(bound) | {"split": inputs.held_out.split}


def why_no_bound(model: Model) -> str | None:
    if model.values is not None and not model.values.is_bytes:
        return "its pixels have other numbers than 0 to 255"
    try:
        BoundTerms(model.noise_scheduler, torch.device("cpu"))
    except ValueError as error:
        return str(error)
    return None


def variational_bound(inputs: ModelInputs) -> Bound:
    """The bound on the negative log-likelihood of the held-out images (centre crops, unflipped); deterministic.

    The noise of an image at a timestep depends on (seed, image, timestep) alone, so that neither the number of
    processes nor the batch size changes the result, beyond what the network's own rounding does.

    With `bound_timesteps` each image visits only so many timesteps besides 0: one at random in each of as many
    stretches, which grow with t since the terms shrink. This is unbiased, and cheaper by T / bound_timesteps.

    Raises:
        ValueError: see `BoundTerms`.
        Stopped: all processes, when one of them was asked to stop.
    """
    unet, images, seed, device = inputs.unet, inputs.held_out.images, inputs.seed, inputs.unet.device
    terms = BoundTerms(inputs.noise_scheduler, device)
    total = inputs.noise_scheduler.config.num_train_timesteps
    edges = torch.tensor([0, *stretches(total, min(inputs.bound_timesteps or total, total - 1))], device=device)
    widths = edges.diff()
    visits = len(widths)  # of each image; the first is to timestep 0, the decoder

    def measure(items: range, poll: Callable[[], None]) -> Tensor:
        poll()
        positions = torch.arange(items.start, items.stop, device=device)
        numbers, stretch = positions // visits, positions % visits
        timesteps = edges[stretch] + integers(seed, Purpose.BOUND_TIMESTEP, positions, widths[stretch])
        x_0 = _load(images, numbers, device)
        noise = normal(seed, Purpose.BOUND_NOISE, numbers * total + timesteps, tuple(x_0.shape[1:]))
        return terms.at(unet, x_0, noise, timesteps)

    measured = inputs.workers.fill(torch.zeros(len(images) * visits, device=device), measure, inputs.batch_size)
    by_image = measured.cpu().double().unflatten(0, (len(images), visits))
    batches = torch.arange(len(images)).split(inputs.batch_size)
    prior = torch.cat([terms.prior(_load(images, numbers, device)) for numbers in batches])
    prior, edges = prior.cpu().double(), edges.cpu()
    bits = prior + (by_image * edges.diff()).sum(dim=1)
    return Bound(
        bits_per_dim=float(bits.mean()),
        standard_error=float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else None,
        prior=float(prior.mean()),
        decoder=float(by_image[:, 0].mean()),
        by_timestep={"timesteps": edges[1:-1].tolist(), "bits_per_dim": by_image[:, 1:].mean(dim=0).tolist()},
        num_images=len(bits),
    )


def stretches(total: int, count: int) -> list[int]:
    """The bounds of `count` stretches of the timesteps 1 … total - 1, growing linearly with t; count + 1 numbers."""
    return [max(number + 1, round(1 + (total - 1) * (number / count) ** 2)) for number in range(count + 1)]


def _load(images: Images, numbers: Tensor, device: torch.device) -> Tensor:
    """float32 [B, C, H, W] in [-1, 1]; each image is decoded once, however many of the numbers name it."""
    different, places = numbers.unique(return_inverse=True)
    return to_model_range(images.load(different.tolist()).to(device))[places.to(device)]
