"""How much better a model knows its training images than unseen ones: the sign that copying is to come."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_train.config.metrics import FEWEST_IMAGES
from ddpm_train.diffusion.noise import signal_to_noise
from ddpm_train.diffusion.objective import to_model_range
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.measure import ModelInputs
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.seeding import Purpose

# The noise levels that are measured, as signal-to-noise ratios. With more noise, models part known from unknown images
# long before they make copies, and the sooner the fewer images there are; with less, only long after.
LEAST_SNR, MOST_SNR = 40.0, 400.0
NUM_NOISED = 512  # training images, and as many held-out ones


@dataclass(frozen=True)
class LossRatio:
    """The held-out loss by the training loss, of geometric means, and its interval, which covers the choice of images.

    Both are measured at the same noise and timesteps: weights of timesteps and the prediction type cancel out.
    """

    value: float
    interval: tuple[float, float]


@torch.no_grad()
def measure_loss_ratio(inputs: ModelInputs, training: RealImages) -> LossRatio | None:
    """At little noise; deterministic. All processes do this together.

    Returns:
        None if too few images are held out, or the schedule has no timestep with so much noise.

    Raises:
        Stopped: all processes, when one of them was asked to stop.
    """
    objective, device = inputs.objective, inputs.unet.device
    sets = [images.at_most(NUM_NOISED).images for images in (training, inputs.held_out)]
    timesteps = little_noise(inputs.noise_scheduler).nonzero()[:, 0]
    if not len(timesteps) or len(sets[1]) < FEWEST_IMAGES:
        return None
    shape, total = (sets[0].decoder.channels, *sets[0].resolution), inputs.noise_scheduler.config.num_train_timesteps

    def measure(items: range, poll: Callable[[], None]) -> Tensor:
        poll()
        positions = torch.arange(items.start, items.stop, device=device)
        noise, drawn = objective.draw(shape, positions, (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP))
        noised_to, losses = timesteps[drawn * len(timesteps) // total], []
        for images in sets:
            x_0 = to_model_range(images.load([number % len(images) for number in items]).to(device))
            losses.append(objective.per_image(inputs.unet, x_0, noise, noised_to))
        return torch.stack(losses, dim=1)

    measured = inputs.workers.fill(torch.zeros(NUM_NOISED, 2, device=device), measure, inputs.batch_size)
    numbers = [torch.arange(NUM_NOISED) % len(images) for images in sets]
    return loss_ratio(*measured.cpu().unbind(dim=1), *numbers)


def little_noise(noise_scheduler: DDPMScheduler) -> Tensor:
    """Which timesteps are measured, bool [T]."""
    snr = signal_to_noise(noise_scheduler)
    return (snr >= LEAST_SNR) & (snr <= MOST_SNR)


def loss_ratio(training: Tensor, held_out: Tensor, training_images: Tensor, held_out_images: Tensor) -> LossRatio:
    """From losses, float32 [N], and the numbers of the images that they belong to, int64 [N]."""
    rng = bootstrap.new_rng()
    known, of_known = _log_mean(training, training_images, rng)
    unseen, of_unseen = _log_mean(held_out, held_out_images, rng)
    value = math.exp(unseen - known)
    return LossRatio(value, bootstrap.ends(value, np.exp(of_unseen - of_known)))


def _log_mean(losses: Tensor, images: Tensor, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """The mean of their logarithms, and the same for each resample of the images, float64 [RESAMPLES]."""
    logs = losses.double().clamp_min(torch.finfo(torch.float32).tiny).log()  # 0 has none
    _, owners = images.unique(return_inverse=True)
    counts = owners.bincount().double()
    sums = torch.zeros_like(counts).index_add_(0, owners, logs)
    weights = bootstrap.weights(rng, len(counts)).T
    return float(logs.mean()), ((weights @ sums) / (weights @ counts)).numpy()
