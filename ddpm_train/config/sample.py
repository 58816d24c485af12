"""The keys of `ddpm-sample`, typed; the values stand in `conf/sample.yaml`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le
from pydantic import BeforeValidator

from ddpm_train.config.ema import Weights
from ddpm_train.config.guidance import GuidanceChoice
from ddpm_train.config.idle import idle_mistakes
from ddpm_train.config.mistakes import as_written
from ddpm_train.config.parts import (
    FilePath,
    FrameCount,
    ImageCount,
    Positive,
    Real,
    Required,
    Resolution,
    SamplerChoice,
    SamplerName,
    Section,
    Seed,
)
from ddpm_train.config.samplers import FITTED
from ddpm_train.config.schema import Schema

# Between two of its steps it must stand at x_t = alpha x_0 + sigma noise, with no memory of the steps before.
INPAINTING_SAMPLERS = ("ddpm", "ddim")


def _auto_is_none(value: object) -> object:
    return None if value == "auto" else value


@dataclass(frozen=True)
class Compare(Section):
    """Which samplers and step counts to compare with each other; empty: no comparison."""

    samplers: tuple[SamplerName, ...]
    steps: tuple[Positive, ...]


@dataclass(frozen=True)
class SampleConfig(Section):
    """All keys of `ddpm-sample`."""

    pipeline: Annotated[FilePath, Required]  # a run, a checkpoint, a folder of a model, or a Hub repository
    revision: str | None  # of the Hub repository
    weights: Weights
    num_images: ImageCount
    batch_size: Annotated[Positive | None, BeforeValidator(_auto_is_none)]  # on one device; None: the largest that fits
    seed: Seed
    sampler: SamplerChoice
    num_inference_steps: Positive
    resolution: Resolution | None  # None: what the model was made for
    output: FilePath | None  # None: by what is sampled, see `default_folder`
    format: Literal["auto", "png", "npz", "parquet", "npy", "tiff"]
    mixed_precision: Literal["auto", "no", "bf16"]
    compile: bool
    animation: Literal["gif", "webp"]
    trajectory: bool
    trajectory_every_steps: Positive | None  # None: about ten frames
    interpolate: bool
    interpolate_seed: Seed | None  # where the walk from `seed` goes; None: seed + 1
    interpolate_frames: Annotated[FrameCount, Gt(1)]
    compare: Compare
    from_image: FilePath | None
    strength: Annotated[Real, Gt(0), Le(1)]  # the share of the noise that from_image is given
    inpaint: FilePath | None  # a mask for from_image: white is painted anew
    inpaint_jump_steps: Positive  # how far RePaint goes back, in steps of the sampler
    inpaint_repeats: FrameCount  # how often it passes each stretch of them
    guidance: GuidanceChoice
    extensions: tuple[str, ...] = ()  # modules to import, which add choices of the user's own

    @property
    def visualizations(self) -> dict[str, str]:
        """The pictures that are asked for instead of images (trajectory, interpolate, compare), and by which key."""
        kinds = {"trajectory": self.trajectory, "interpolate": self.interpolate}
        asked_by = {kind: f"{kind}=true" for kind, wanted in kinds.items() if wanted}
        if self.compare.samplers:
            asked_by["compare"] = f"compare.samplers={as_written(self.compare.samplers)}"
        return asked_by

    @property
    def visualization(self) -> str | None:
        """The one of them that is asked for."""
        return next(iter(self.visualizations), None)

    @property
    def walks_to(self) -> int:
        """The seed at the end of an interpolation."""
        return self.seed + 1 if self.interpolate_seed is None else self.interpolate_seed


def cross_field_mistakes(config: SampleConfig) -> Iterator[str]:
    """What single keys cannot show: a line for each combination that cannot work."""
    yield from config.sampler.mistakes()
    yield from config.guidance.mistakes()
    if bool(config.compare.samplers) != bool(config.compare.steps):
        missing = "steps=[10,20,50]" if config.compare.samplers else "samplers=[ddim,dpm_solver]"
        yield f"compare={as_written(vars(config.compare))}: needs both lists; add compare.{missing}"
    if len(config.visualizations) > 1:
        yield f"{' '.join(config.visualizations.values())}: one picture at a time; leave out all but one"
    if config.from_image and config.visualization in ("interpolate", "compare"):
        yield f"from_image={config.from_image}: {config.visualization} begins with noise; leave one of them out"
    if config.interpolate_seed == config.seed:
        yield f"interpolate_seed={config.interpolate_seed}: the same as seed; choose another"
    if config.inpaint and not config.from_image:
        yield f"inpaint={config.inpaint}: the mask of which picture? give from_image=PATH"
    if config.inpaint and config.sampler.name not in INPAINTING_SAMPLERS:
        yield (
            f"sampler={config.sampler.name}: cannot inpaint, since it remembers or looks ahead; "
            f"use sampler={' or '.join(INPAINTING_SAMPLERS)}"
        )
    if config.from_image and config.sampler.name == FITTED:
        yield f"sampler={FITTED}: its steps begin with noise, and from_image with a picture; leave one of them out"
    yield from idle_mistakes(config, "sample", _idle(config))


def _idle(config: SampleConfig) -> Iterator[tuple[str, str]]:
    """The keys that do nothing, given the others, and why."""
    if not config.from_image or config.inpaint:
        yield "strength", f"with inpaint={config.inpaint}" if config.inpaint else "without from_image=PATH"
    if not config.inpaint:
        yield "inpaint_jump_steps", "without inpaint=PATH"
        yield "inpaint_repeats", "without inpaint=PATH"
    if not config.trajectory:
        yield "trajectory_every_steps", "without trajectory=true"
    if not config.interpolate:
        yield "interpolate_seed", "without interpolate=true"
        yield "interpolate_frames", "without interpolate=true"
    if not (config.trajectory or config.interpolate):
        yield "animation", "without trajectory=true or interpolate=true"
    if config.visualization is not None:
        yield "format", f"with {config.visualizations[config.visualization]}"
    if config.visualization == "compare":
        yield "num_inference_steps", f"with compare.steps={as_written(config.compare.steps)}"


SAMPLING = Schema(SampleConfig, cross_field_mistakes)
