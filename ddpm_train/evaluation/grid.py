"""A grid of samples."""

import math

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ddpm_train.config import Evaluation, Sampler
from ddpm_train.diffusion.sampling import build_sampler, image_shape, sample, step_arguments
from ddpm_train.evaluation.shards import fill_sharded
from ddpm_train.preemption import StopRequest

# Tiles smaller than this are enlarged without smoothing, so that a person can see them.
MIN_TILE_SIDE = 64


def sample_grid(
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler,
    config: Evaluation,
    *,
    sampler: Sampler,
    seed: int,
    accelerator: Accelerator,
    stop: StopRequest,
) -> Image.Image:
    """Images 0 … num_images-1 of `seed` in one picture, the same for any number of processes."""
    shape = (config.num_images, *image_shape(unet))
    scheduler = build_sampler(sampler.name, noise_scheduler, sampler.arguments)
    scheduler.set_timesteps(config.num_inference_steps)
    images = fill_sharded(
        torch.zeros(shape, dtype=torch.uint8, device=unet.device),
        lambda indices, before_step: sample(
            unet,
            scheduler,
            indices,
            seed=seed,
            num_inference_steps=config.num_inference_steps,
            step_arguments=step_arguments(sampler.name, sampler.arguments),
            before_step=before_step,
        ),
        config.batch_size,
        polls_per_batch=len(scheduler.timesteps),
        accelerator=accelerator,
        stop=stop,
    )
    return image_grid(images.cpu())


def image_grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """uint8 [N, C, H, W] -> one picture, nearly square unless told otherwise, row by row; C is 1, 3 or 4."""
    factor = max(1, math.ceil(MIN_TILE_SIDE / max(images.shape[2:])))
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    grid = make_grid(enlarged, nrow=columns or math.ceil(math.sqrt(len(images))), padding=2, pad_value=255)
    pixels = grid.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if images.shape[1] == 1 else pixels)
