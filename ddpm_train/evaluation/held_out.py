"""The loss on images that training never sees, at noise and timesteps that never change."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_train.diffusion.objective import to_model_range
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.measure import ModelInputs, Result
from ddpm_train.evaluation.scores import Measured
from ddpm_train.models.load import Model
from ddpm_train.seeding import Purpose

_SEED = 2020  # of the resampling


@dataclass(frozen=True)
class HeldOutLosses:
    """The training objective of each image.

    Attributes:
        losses: float32 [N].
        timesteps: int64 [N], where each was measured.
    """

    losses: Tensor
    timesteps: Tensor

    def mean(self) -> float:
        """The held-out loss."""
        return float(self.losses.double().mean())


@dataclass(frozen=True)
class LossByTimestep:
    """The held-out loss in bins of timesteps.

    Attributes:
        edges: where the bins start, and the number of timesteps.
        loss: the mean over the images of a bin; None where there is none.
        count: how many there are.
    """

    edges: tuple[int, ...]
    loss: tuple[float | None, ...]
    count: tuple[int, ...]

    def scalars(self) -> dict[str, float]:
        """By name, such as held_out_loss_t0000_0099."""
        bins = zip(self.edges[:-1], self.edges[1:], self.loss, strict=True)
        return {f"held_out_loss_t{start:04}_{end - 1:04}": loss for start, end, loss in bins if loss is not None}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def held_out_loss(inputs: ModelInputs) -> Iterator[Result]:
    """The row of `METRICS`: the mean with its interval, and where in the schedule the loss is."""
    measured = held_out_losses(inputs)
    interval = bootstrap.mean(measured.losses.double().cpu().numpy(), np.random.default_rng(_SEED))
    yield "held_out_loss", Measured(measured.mean(), interval=interval, seed=inputs.objective.seed)
    yield from over_timesteps(measured, inputs)


def why_no_loss(model: Model) -> str | None:
    return "it learned its variance, for which there is no loss here" if model.learned_variance else None


@torch.no_grad()
def held_out_losses(inputs: ModelInputs) -> HeldOutLosses:
    """The training objective of the held-out images (centre crops, unflipped), one timestep each; deterministic."""
    unet, objective, images = inputs.unet, inputs.objective, inputs.held_out.images

    def measure(items: range, poll: Callable[[], None]) -> Tensor:
        poll()
        positions = torch.arange(items.start, items.stop, device=unet.device)
        x_0 = to_model_range(images.load(list(items)).to(unet.device))
        noise, timesteps = objective.draw(x_0, positions, (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP))
        losses = objective.per_image(unet, x_0, noise, timesteps)
        return torch.stack((losses, timesteps.float()), dim=1)

    measured = inputs.workers.fill(torch.zeros(len(images), 2, device=unet.device), measure, inputs.batch_size)
    return HeldOutLosses(measured[:, 0], measured[:, 1].long())


def over_timesteps(measured: HeldOutLosses, inputs: ModelInputs) -> Iterator[Result]:
    """The loss in each part of the schedule, as numbers and as a picture, if parts are asked for."""
    if inputs.timestep_bins is None:
        return
    parts = loss_by_timestep(measured, inputs.noise_scheduler.config.num_train_timesteps, inputs.timestep_bins)
    yield from parts.scalars().items()
    yield "loss_by_timestep", parts.to_json()
    if inputs.workers.accelerator.is_main_process:  # which alone keeps pictures
        from ddpm_train.report import charts  # matplotlib takes a third of a second to import

        yield "loss_by_timestep", charts.loss_by_timestep({inputs.title: parts.to_json()}).picture()


def loss_by_timestep(measured: HeldOutLosses, num_train_timesteps: int, num_bins: int) -> LossByTimestep:
    """Means over bins of equal length (within one timestep)."""
    num_bins = min(num_bins, num_train_timesteps)
    edges = [round(number * num_train_timesteps / num_bins) for number in range(num_bins + 1)]
    losses, timesteps = measured.losses.double().cpu(), measured.timesteps.cpu()
    within = [(start <= timesteps) & (timesteps < end) for start, end in pairwise(edges)]
    return LossByTimestep(
        edges=tuple(edges),
        loss=tuple(float(losses[mask].mean()) if mask.any() else None for mask in within),
        count=tuple(int(mask.sum()) for mask in within),
    )
