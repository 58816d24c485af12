"""A grid of samples."""

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

from ddpm_train.config.parts import Sampler
from ddpm_train.config.train import Evaluation
from ddpm_train.evaluation.shards import fill_sharded
from ddpm_train.sampling.loop import build_sampler, image_shape, sample, step_arguments
from ddpm_train.sampling.pictures import image_grid
from ddpm_train.system.signals import StopRequest


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
