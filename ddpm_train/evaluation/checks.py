"""Whether a model or a folder, a dataset and what is to be measured go together."""

from collections.abc import Iterator

import torch

from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.config.metrics import FEWEST_IMAGES, of_features
from ddpm_train.config.mistakes import as_written
from ddpm_train.config.parts import Dataset, Sampler
from ddpm_train.data.images import Images
from ddpm_train.data.loader import Data
from ddpm_train.diffusion.bound import BoundTerms
from ddpm_train.models.load import Model
from ddpm_train.sampling.recipe import compared, resolution_mistakes, sampler_mistakes

# Metrics that look at held-out images.
_OF_HELD_OUT = ("copy_rate", "bits_per_dim", "held_out_loss")


def misfits(
    config: EvaluateConfig, dataset: Dataset, data: Data, model: Model | None, folder: Images | None
) -> Iterator[str]:
    """A line for each thing that cannot be measured.

    Args:
        model, folder: what is scored, one of them.
    """
    if folder is not None and len(folder) < FEWEST_IMAGES:
        yield f"pipeline={config.pipeline}: {len(folder)} images, too few for a score; give at least {FEWEST_IMAGES}"
    if model is not None:
        yield from _model_misfits(config, dataset, model)
    held_out = 0 if data.validation is None else len(data.validation)
    wanted: list[str] = [name for name in config.metrics if name in _OF_HELD_OUT]
    if config.reference == "held_out":
        wanted.append("reference=held_out")
    if wanted and held_out < FEWEST_IMAGES:
        given = f"dataset.validation_fraction={dataset.validation_fraction}"
        if dataset.validation_split is not None:
            given = f"dataset.validation_split={dataset.validation_split}"
        yield f"{given}: {held_out} held-out images for {', '.join(wanted)}; hold out at least {FEWEST_IMAGES}"
    if len(data.train) < FEWEST_IMAGES and of_features(config.distribution_metrics):
        yield (
            f"dataset.path={dataset.path}: {len(data.train)} images, too few to compare with; "
            f"give at least {FEWEST_IMAGES}"
        )


def _model_misfits(config: EvaluateConfig, dataset: Dataset, model: Model) -> Iterator[str]:
    size = model.sample_size
    if size is not None and size != dataset.resolution:
        yield (
            f"dataset.resolution={_written(dataset.resolution)}: the model makes images of {size[0]}x{size[1]}; "
            f"use dataset.resolution={_written(size)}"
        )
        return
    if dataset.channels != model.unet.config.in_channels:
        yield (
            f"dataset.channels={dataset.channels}: the model makes images of {model.unet.config.in_channels} channels; "
            f"use dataset.channels={model.unet.config.in_channels}"
        )
    yield from resolution_mistakes(model, dataset.resolution)
    chosen: list[tuple[Sampler, int]] = []
    if of_features(config.metrics):
        chosen.append((config.sampler, config.num_inference_steps))
    samplers = [compared(config.sampler, name) for name in config.cost.samplers]
    chosen += [(sampler, steps) for sampler in samplers for steps in config.cost.steps]
    lines = (line for sampler, steps in chosen for line in sampler_mistakes(model, sampler, steps))
    yield from dict.fromkeys(lines)
    if "bits_per_dim" in config.metrics:
        try:
            BoundTerms(model.noise_scheduler, torch.device("cpu"))
        except ValueError as error:
            yield f"metrics={as_written(config.metrics)}: no bits_per_dim of this model: {error}; leave it out"
    if "held_out_loss" in config.metrics and model.learned_variance:
        yield (
            f"metrics={as_written(config.metrics)}: no held_out_loss of a model that learned its variance; leave it out"
        )


def _written(resolution: tuple[int, int]) -> str:
    return as_written(resolution[0] if resolution[0] == resolution[1] else resolution)
