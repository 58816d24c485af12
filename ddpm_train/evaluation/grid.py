"""A grid of samples."""

import math

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ddpm_train.config import Evaluation
from ddpm_train.diffusion.sampling import build_sampler, sample
from ddpm_train.evaluation.shards import fill_sharded
from ddpm_train.preemption import StopRequest

# Tiles smaller than this are enlarged without smoothing, so that a person can see them.
MIN_TILE_SIDE = 64


def sample_grid(
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler,
    config: Evaluation,
    *,
    sampler_name: str,
    seed: int,
    accelerator: Accelerator,
    stop: StopRequest,
) -> Image.Image:
    """Images 0 … num_images-1 of `seed` in one picture, the same for any number of processes."""
    side = unet.config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    shape = (config.num_images, unet.config.in_channels, height, width)
    sampler = build_sampler(sampler_name, noise_scheduler)
    sampler.set_timesteps(config.num_inference_steps)
    images = fill_sharded(
        torch.zeros(shape, dtype=torch.uint8, device=unet.device),
        lambda indices, before_step: sample(
            unet,
            sampler,
            indices,
            seed=seed,
            num_inference_steps=config.num_inference_steps,
            before_step=before_step,
        ),
        config.batch_size,
        polls_per_batch=len(sampler.timesteps),
        accelerator=accelerator,
        stop=stop,
    )
    return image_grid(images.cpu())


def image_grid(images: Tensor) -> Image.Image:
    """uint8 [N, C, H, W] -> one picture, nearly square, row by row; C is 1, 3 or 4."""
    factor = max(1, math.ceil(MIN_TILE_SIDE / max(images.shape[2:])))
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    grid = make_grid(enlarged, nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=255)
    pixels = grid.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if images.shape[1] == 1 else pixels)
