"""A model as a folder that diffusers loads without this project."""

import json
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_train.config.pixels import PixelValues
from ddpm_train.runs.folder import ORIGIN, PIXEL_VALUES
from ddpm_train.system.files import replace_folder


def save_pipeline(
    folder: Path,
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler,
    step: int | None,
    weights: str | None,
    values: PixelValues | None,
) -> None:
    """Write a plain DDPMPipeline in the place of `folder`, with a file beside it that says which weights it holds.

    Args:
        step, weights, values: see `Model`.
    """
    with replace_folder(folder) as staging:
        DDPMPipeline(unet=unet, scheduler=noise_scheduler).save_pretrained(staging)
        (staging / ORIGIN).write_text(json.dumps({"step": step, "weights": weights}))
        if values is not None:
            (staging / PIXEL_VALUES).write_text(json.dumps(asdict(values)))
        for file in staging.rglob("*.safetensors"):  # which safetensors lets nobody else read, whatever the umask
            with suppress(OSError):  # some file systems have no modes
                shutil.copymode(staging / ORIGIN, file)
