"""What is wrong with sampling on this machine, before anything slow starts. Imports no torch."""

import os
from collections.abc import Collection, Iterator, Sequence

from ddpm_train.config.guidance import GuidanceChoice
from ddpm_train.config.mistakes import as_written, not_installed, one_of
from ddpm_train.config.program import Program
from ddpm_train.config.sample import SAMPLING, SampleConfig
from ddpm_train.config.samplers import sampler_package_mistakes
from ddpm_train.models.source import path_mistakes
from ddpm_train.sampling.refined import with_recipe
from ddpm_train.system.files import expanded, output_mistakes
from ddpm_train.system.launch import launch_mistakes


def preflight(config: SampleConfig) -> Iterator[str]:
    """What is wrong with this config on this machine, as far as it shows without torch; a line each."""
    yield from output_mistakes("output", config.output or "samples")
    yield from launch_mistakes()
    yield from making_mistakes(config)
    yield from loading_mistakes(config)


def loading_mistakes(config: SampleConfig) -> Iterator[str]:
    """What keeps the model from being loaded and called as the config says."""
    yield from precision_mistakes("mixed_precision", config.mixed_precision, ("bf16", "no", "auto"))
    yield from path_mistakes(config.pipeline, revision=config.revision)


def making_mistakes(config: SampleConfig, pictures: Collection[str] = ()) -> Iterator[str]:
    """What keeps a loaded model from making what the config asks for.

    Args:
        pictures: the keys whose pictures are no files.
    """
    for key in ("from_image", "inpaint"):
        path = getattr(config, key)
        if path is not None and key not in pictures and not expanded(path).is_file():
            yield f"{key}={path}: no such file"
    if config.format == "tiff":
        yield from not_installed("format=tiff", "tifffile", "scientific")
    yield from sampler_package_mistakes(config.sampler.name)
    yield from guide_mistakes(config.guidance)
    samplers = config.compare.samplers
    yield from sampler_package_mistakes(*samplers, given=f"compare.samplers={as_written(samplers)}")


def guide_mistakes(choice: GuidanceChoice) -> Iterator[str]:
    """A line if the guide cannot be a model."""
    if choice.pipeline is not None:
        yield from path_mistakes(choice.pipeline, "guidance.pipeline", choice.revision)


def precision_mistakes(key: str, mixed_precision: str, choices: Sequence[str]) -> Iterator[str]:
    """A line if this machine cannot do a precision that is forced.

    Args:
        key: what forces it.
        choices: what that may be.
    """
    if mixed_precision not in ("bf16", "fp16"):
        return
    import torch

    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "True"
    others = one_of([choice for choice in choices if choice != mixed_precision])
    if mixed_precision == "fp16" and not cuda:
        yield f"{key}=fp16: needs a CUDA GPU, and there is none; use {others}"
    if mixed_precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield f"{key}=bf16: {torch.cuda.get_device_name()} has none; use {others}"


PROGRAM = Program("ddpm-sample", "sample", "output", "output='samples/{}'", SAMPLING, preflight, with_recipe)
