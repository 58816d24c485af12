"""Whether a model or a folder of images, a dataset and what is to be measured go together."""

from collections.abc import Iterator
from dataclasses import replace

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.config.metrics import FEWEST_IMAGES, METRICS, names_needing
from ddpm_train.config.mistakes import as_written, resolution_text
from ddpm_train.config.parts import Sampler
from ddpm_train.config.pixels import PixelValues
from ddpm_train.config.registry import resolve
from ddpm_train.data.images import Images
from ddpm_train.data.loader import Data
from ddpm_train.models.load import Model
from ddpm_train.sampling.recipe import compared, resolution_mistakes, sampler_mistakes


def measurable(config: EvaluateConfig, data: Data) -> tuple[EvaluateConfig, list[str]]:
    """The config without the metrics that need more held-out images than there are, and a line on what is left out.

    Where nothing else is to be measured it stays as it is, which is a mistake.
    """
    held_out = 0 if data.validation is None else len(data.validation)
    left_out = names_needing("held_out_images", config.metrics) if held_out < FEWEST_IMAGES else ()
    kept = tuple(name for name in config.metrics if name not in left_out)
    if not left_out or not (kept or config.measures_cost or config.ema.widths):
        return config, []
    needs = "needs" if len(left_out) == 1 else "need"
    reason = f"{', '.join(left_out)} {needs} at least {FEWEST_IMAGES} held-out images, and there are {held_out}"
    return replace(config, metrics=kept), [f"left out: {reason}"]


def image_mistakes(config: EvaluateConfig, dataset: Dataset, data: Data, folder: Images | None) -> Iterator[str]:
    """A line for each thing that cannot be measured with these images.

    Args:
        folder: the images that are scored; None: a model's.
    """
    if folder is not None and len(folder) < FEWEST_IMAGES:
        yield f"pipeline={config.pipeline}: {len(folder)} images, too few for a score; give at least {FEWEST_IMAGES}"
    held_out = 0 if data.validation is None else len(data.validation)
    wanted = [*dict.fromkeys(names_needing("held_out_images", config.model_metrics))]
    if config.reference == "held_out":
        wanted.append("reference=held_out")
    if wanted and held_out < FEWEST_IMAGES:
        given = f"dataset.validation_fraction={dataset.validation_fraction}"
        if dataset.validation_split is not None:
            given = f"dataset.validation_split={dataset.validation_split}"
        if config.dataset is None:  # the run's own, which this program has no key for
            remedy = f"leave that out, or train a run that holds out at least {FEWEST_IMAGES}"
            yield f"pipeline={config.pipeline}: {held_out} held-out images for {', '.join(wanted)}; {remedy}"
        else:
            yield f"{given}: {held_out} held-out images for {', '.join(wanted)}; hold out at least {FEWEST_IMAGES}"
    if len(data.train) < FEWEST_IMAGES and names_needing("features", config.all_metrics):
        yield (
            f"dataset.path={dataset.path}: {len(data.train)} images, too few to compare with; "
            f"give at least {FEWEST_IMAGES}"
        )


def values_mistakes(dataset: Dataset, data: Data, made: PixelValues | None) -> Iterator[str]:
    """A line if the numbers of the images mean something else than those of what is scored."""
    if data.values != made:
        here, there = (each or "pictures of 8 bits" for each in (data.values, made))
        yield f"dataset.path={dataset.path}: {here}; what is scored: {there}; give images of the same kind and range"


def folder_mistakes(config: EvaluateConfig, dataset: Dataset) -> Iterator[str]:
    """A line if a folder of arrays cannot be measured so."""
    if dataset.dtype is not None and names_needing("features", config.all_metrics):
        yield from config.extractor.array_mistakes()


def shape_mistakes(dataset: Dataset, model: Model) -> Iterator[str]:
    """A line if the images are of another size or of other channels than those that the model makes."""
    size, channels = model.sample_size, model.unet.config.in_channels
    if size is not None and size != dataset.resolution:
        yield (
            f"dataset.resolution={resolution_text(dataset.resolution)}: the model makes images of {size[0]}x{size[1]}; "
            f"use dataset.resolution={resolution_text(size)}"
        )
        return
    if dataset.channels != channels:
        yield (
            f"dataset.channels={dataset.channels}: the model makes images of {channels} channels; "
            f"use dataset.channels={channels}"
        )
    yield from resolution_mistakes(model, dataset.resolution)


def model_mistakes(config: EvaluateConfig, dataset: Dataset, model: Model) -> Iterator[str]:
    """A line for each thing that this model cannot do, or that cannot be measured of it."""
    yield from shape_mistakes(dataset, model)
    if model.sample_size not in (None, dataset.resolution):
        return
    if model.values is not None and names_needing("features", config.all_metrics):
        yield from config.extractor.array_mistakes()
    chosen: list[tuple[Sampler, int]] = []
    if names_needing("features", config.model_metrics):
        chosen.append((config.sampler, config.num_inference_steps))
    samplers = [compared(config.sampler, name) for name in config.cost.samplers]
    chosen += [(sampler, steps) for sampler in samplers for steps in config.cost.steps]
    yield from sampler_mistakes(model.noise_scheduler, chosen, learned_variance=model.learned_variance)
    for name in dict.fromkeys(config.model_metrics):
        refuse = resolve(METRICS[name].refuse)
        if refuse is not None and (reason := refuse(model)):
            key = f"metrics={as_written(config.metrics)}" if name in config.metrics else f"ema.metric={name}"
            yield f"{key}: no {name} of this model: {reason}; leave it out"
