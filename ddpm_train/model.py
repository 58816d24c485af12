"""The denoiser: a UNet2DModel from the config."""

from dataclasses import asdict

import torch
from diffusers import UNet2DModel

from ddpm_train.config import Config
from ddpm_train.seeding import Purpose, derived_seed


def build_unet(config: Config) -> UNet2DModel:
    """A freshly initialised UNet2DModel, float32; the same weights for the same seed on every process."""
    height, width = config.dataset.resolution
    torch.manual_seed(derived_seed(config.seed, Purpose.INIT, 0))
    unet = UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=config.dataset.channels,
        out_channels=config.dataset.channels,
        num_train_timesteps=config.noise_scheduler.num_train_timesteps,
        **asdict(config.model),
    )
    if config.train.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def num_parameters(unet: UNet2DModel) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())
