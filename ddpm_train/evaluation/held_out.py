"""The loss on images that training never sees, at noise and timesteps that never change."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_train.config.losses import LOSSES, MSE, Loss
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.measure import ModelInputs, Result
from ddpm_train.evaluation.scores import Measured
from ddpm_train.models.load import Model
from ddpm_train.runs.folder import read_part
from ddpm_train.seeding import Purpose


def held_out_loss(inputs: ModelInputs) -> Iterator[Result]:
    """The row of `METRICS`: the mean with its interval, and where in the schedule the loss is."""
    losses, timesteps = held_out_losses(inputs)
    values = losses.cpu().double()  # not the other way round: Apple's GPUs have no float64
    interval = bootstrap.mean(values, bootstrap.new_rng())
    yield "held_out_loss", Measured(float(values.mean()), interval=interval, seed=inputs.objective.seed)
    yield from over_timesteps(losses, timesteps, inputs)


@dataclass(frozen=True)
class _Trained:
    """What of a run's config says by which loss it was trained."""

    loss: Annotated[Loss, LOSSES]
    seed: int


def objective_of(run: Path | None, noise_scheduler: DDPMScheduler, seed: int) -> Objective:
    """The loss that a run was trained with, at its own seed; the plain one of a model that is no run's."""
    trained = _Trained(MSE("mse"), seed) if run is None else read_part(run, _Trained)
    return Objective(noise_scheduler, trained.loss, trained.seed)


def why_no_loss(model: Model) -> str | None:
    return "it learned its variance, for which there is no loss here" if model.learned_variance else None


@torch.no_grad()
def held_out_losses(inputs: ModelInputs) -> tuple[Tensor, Tensor]:
    """The training objective of the held-out images (centre crops, unflipped), one timestep each; deterministic.

    Returns:
        The losses, float32 [N], and the timesteps at which they were measured, int64 [N].
    """
    unet, objective, images = inputs.unet, inputs.objective, inputs.held_out.images

    def measure(items: range, poll: Callable[[], None]) -> Tensor:
        poll()
        positions = torch.arange(items.start, items.stop, device=unet.device)
        x_0 = to_model_range(images.load(items).to(unet.device))
        purposes = (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP)
        noise, timesteps = objective.draw(tuple(x_0.shape[1:]), positions, purposes)
        losses = objective.per_image(unet, x_0, noise, timesteps)
        return torch.stack((losses, timesteps.float()), dim=1)

    measured = inputs.workers.fill(torch.zeros(len(images), 2, device=unet.device), measure, inputs.batch_size)
    return measured[:, 0], measured[:, 1].long()


def over_timesteps(losses: Tensor, timesteps: Tensor, inputs: ModelInputs) -> Iterator[Result]:
    """The loss in each part of the schedule, as numbers and as a picture, if parts are asked for."""
    if inputs.timestep_bins is None:
        return
    total = inputs.noise_scheduler.config.num_train_timesteps
    parts = loss_by_timestep(losses, timesteps, total, inputs.timestep_bins)
    for (start, end), loss in zip(pairwise(parts["edges"]), parts["loss"], strict=True):
        if loss is not None:
            yield f"held_out_loss_t{start:04}_{end - 1:04}", loss
    yield "loss_by_timestep", parts
    if inputs.workers.accelerator.is_main_process:  # which alone keeps pictures
        from ddpm_train.report import charts  # matplotlib takes a third of a second to import

        yield "loss_by_timestep", charts.loss_by_timestep({inputs.title: parts}).picture()


def loss_by_timestep(losses: Tensor, timesteps: Tensor, num_train_timesteps: int, num_bins: int) -> dict[str, Any]:
    """Means over bins of equal length (within one timestep).

    Returns:
        edges: where the bins start, and the number of timesteps; loss: the mean over the images of each bin, None where
        there are none; count: how many there are.
    """
    num_bins = min(num_bins, num_train_timesteps)
    edges = [round(number * num_train_timesteps / num_bins) for number in range(num_bins + 1)]
    losses, timesteps = losses.cpu().double(), timesteps.cpu()
    within = [(start <= timesteps) & (timesteps < end) for start, end in pairwise(edges)]
    means = [float(losses[mask].mean()) if mask.any() else None for mask in within]
    return {"edges": edges, "loss": means, "count": [int(mask.sum()) for mask in within]}
