"""What an evaluation measures, without a run around it."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_train.config.program import compose_configs
from ddpm_train.data.loader import Data, open_data
from ddpm_train.diffusion.objective import Objective
from ddpm_train.evaluation.measure import ModelInputs
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.evaluation.workers import Workers
from ddpm_train.system.console import Console
from ddpm_train.system.signals import StopRequest
from ddpm_train.training.preflight import PROGRAM
from helpers.images import dataset_config


def half_held_out(root: Path, images: list[Image.Image]) -> Data:
    """These images at 8 px, one half to learn, the other held out; they are written below `root`."""
    (root / "images").mkdir()
    for number, image in enumerate(images):
        image.save(root / "images" / f"{number:02}.png")
    values = {"resolution": 8, "channels": 1, "validation_fraction": 0.5, "cache_dir": str(root / "cache")}
    return open_data(dataset_config("folder", root / "images", **values), progress=False)


def noise_schedule(*overrides: str) -> DDPMScheduler:
    """That of a run with these overrides."""
    ((config, _),) = compose_configs(PROGRAM, list(overrides))
    return config.noise_scheduler.build()


def model_inputs(data: Data, objective: Objective, unet: Any, **dataset: Any) -> tuple[ModelInputs, RealImages]:
    """Of the held-out images, and the images that are trained on; `dataset` has keys of theirs."""
    workers = Workers(Accelerator(), StopRequest(), Console(enabled=False))
    config = dataset_config("folder", Path("images"), **dataset)
    assert data.validation is not None
    inputs = ModelInputs(
        unet=unet,
        noise_scheduler=objective.noise_scheduler,
        title="",
        objective=objective,
        held_out=RealImages(data.validation, config, workers, held_out=True),
        seed=objective.seed,
        batch_size=64,
        timestep_bins=None,
        workers=workers,
    )
    return inputs, RealImages(data.train, config, workers)
