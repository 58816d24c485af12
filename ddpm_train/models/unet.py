"""The denoiser: a UNet2DModel from the config."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.model import Model
from ddpm_train.config.noise import NoiseScheduler
from ddpm_train.config.parts import Resolution
from ddpm_train.config.pixels import Dtype, PixelValues, Stretch, ValueRange, pixel_values
from ddpm_train.runs.folder import PIXEL_VALUES
from ddpm_train.seeding import Purpose, derived_seed


@dataclass(frozen=True)
class Images:
    """What of a dataset shapes a network, and what the numbers mean that it makes."""

    resolution: Resolution
    channels: int
    dtype: Dtype | Literal["auto"] | None = None
    value_range: ValueRange = None
    stretch: Stretch = "linear"

    @property
    def values(self) -> PixelValues | None:
        """What the numbers of a begun run's arrays mean; None: it is of pictures."""
        return pixel_values(self.dtype, self.value_range, self.stretch)


@dataclass(frozen=True)
class Description:
    """The parts of a run's config that say which model it trains. `read_part` reads them alone."""

    dataset: Images
    model: Model
    noise_scheduler: NoiseScheduler


def build_unet(model: Model, images: Dataset | Images, noise: NoiseScheduler, *, seed: int = 0) -> UNet2DModel:
    """A freshly initialised UNet2DModel, float32; the same weights for the same seed on every process."""
    torch.manual_seed(derived_seed(seed, Purpose.INIT, 0))
    return unet_of(model, images, noise.num_train_timesteps)


def unet_of(model: Model, images: Dataset | Images, num_train_timesteps: int) -> UNet2DModel:
    """The same on torch's default device, of any weights."""
    height, width = images.resolution
    return UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=images.channels,
        out_channels=images.channels,
        num_train_timesteps=num_train_timesteps,
        **unet_arguments(model),
    )


def unet_arguments(config: Model) -> dict[str, Any]:
    """What UNet2DModel takes of the config."""
    return {key: value for key, value in asdict(config).items() if key != "pretrained"}


def pipeline_files(
    unet: UNet2DModel, noise_scheduler: DDPMScheduler, values: PixelValues | None = None
) -> dict[str, str]:
    """Path -> text of a saved DDPMPipeline's files but for the weights, unet/diffusion_pytorch_model.safetensors."""
    pipeline = DDPMPipeline(unet=unet, scheduler=noise_scheduler)
    parts = {"model_index.json": pipeline, "unet/config.json": unet, "scheduler/scheduler_config.json": noise_scheduler}
    files = {} if values is None else {PIXEL_VALUES: json.dumps(asdict(values))}
    for name, part in parts.items():
        config = json.loads(part.to_json_string())
        config.pop("_name_or_path", None)  # where weights were loaded from: a path of this machine
        files[name] = json.dumps(config, indent=2) + "\n"
    return files
