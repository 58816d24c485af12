"""From noise to images, with any diffusers scheduler: the loop of the diffusers documentation."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

SAMPLERS: dict[str, Any] = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm_solver": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
}


def build_sampler(name: str, noise_scheduler: DDPMScheduler) -> Any:
    """The diffusers scheduler of that name, on the model's own noise schedule and prediction type."""
    return SAMPLERS[name].from_config(noise_scheduler.config)


def image_seed(seed: int, index: int) -> int:
    """The seed of image `index`'s own torch.Generator, in [0, 2**32).

    torch's CPU generator keeps 32 bits of a seed. The golden-ratio multiple spreads the runs' seeds over them, so
    that images of neighbouring seeds do not coincide.
    """
    return (2654435761 * seed + index) % 2**32


@torch.no_grad()
def sample(
    unet: UNet2DModel,
    sampler: Any,
    indices: range,
    *,
    seed: int,
    num_inference_steps: int,
    before_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Denoise one batch. Image i depends on (seed, i) alone; the same numbers as DDPMPipeline.

    Args:
        unet: in eval mode; x_t is drawn in its dtype.
        sampler: a diffusers scheduler; its timesteps are set here.
        indices: which images, B of them.
        before_step: called before each denoising step (it may raise to end the loop).

    Returns:
        uint8 [B, C, H, W] on the UNet's device.
    """
    generators = [torch.Generator().manual_seed(image_seed(seed, index)) for index in indices]
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (len(indices), unet.config.in_channels, height, width)
    x_t = randn_tensor(shape, generator=generators, device=unet.device, dtype=unet.dtype)
    sampler.set_timesteps(num_inference_steps, device=unet.device)
    x_t = x_t * sampler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(sampler.step).parameters
    arguments = {"generator": generators} if takes_generator else {}
    for timestep in sampler.timesteps:
        before_step()
        prediction = unet(sampler.scale_model_input(x_t, timestep), timestep).sample
        x_t = sampler.step(prediction, timestep, x_t, **arguments).prev_sample
    return ((x_t / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
