"""Scores of the model itself, on held-out images: the likelihood's bound, and the training loss."""

import numpy as np
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_train.config.losses import Loss
from ddpm_train.config.metrics import LOWER_IS_BETTER
from ddpm_train.data.images import Images
from ddpm_train.diffusion.objective import Objective
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.held_out import HeldOutLosses, held_out_losses
from ddpm_train.evaluation.likelihood import Bound
from ddpm_train.evaluation.scores import DependsOn, Score
from ddpm_train.system.signals import StopRequest

_NORMAL_QUANTILE = 1.959964  # of CONFIDENCE, on both sides
_SEED = 2020


def bound_score(bound: Bound, depends_on: DependsOn) -> Score:
    """With the interval that the standard error gives."""
    reach = _NORMAL_QUANTILE * (bound.standard_error or 0)
    return Score(
        name="bits_per_dim",
        metric="bits_per_dim",
        value=bound.bits_per_dim,
        interval=(bound.bits_per_dim - reach, bound.bits_per_dim + reach) if bound.standard_error else None,
        lower_is_better=LOWER_IS_BETTER["bits_per_dim"],
        depends_on=depends_on,
    )


def measure_held_out(
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler,
    images: Images,
    *,
    loss: Loss,
    seed: int,
    batch_size: int,
    accelerator: Accelerator,
    stop: StopRequest,
) -> HeldOutLosses:
    """The loss as training measures it."""
    noise_scheduler.alphas_cumprod = noise_scheduler.alphas_cumprod.to(unet.device)
    objective = Objective(noise_scheduler, loss, seed)
    return held_out_losses(unet, images, objective, batch_size, accelerator=accelerator, stop=stop)


def held_out_score(measured: HeldOutLosses, depends_on: DependsOn) -> Score:
    losses = measured.losses.double().cpu().numpy()
    return Score(
        name="held_out_loss",
        metric="held_out_loss",
        value=measured.mean(),
        interval=bootstrap.mean(losses, np.random.default_rng(_SEED)),
        lower_is_better=LOWER_IS_BETTER["held_out_loss"],
        depends_on=depends_on,
    )
