"""The keys of `ddpm-refine`, typed; the values stand in `conf/refine.yaml`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.ema import Width
from ddpm_train.config.idle import idle_mistakes
from ddpm_train.config.metrics import FEWEST_IMAGES
from ddpm_train.config.parts import (
    ExtractorChoice,
    FilePath,
    ImageCount,
    Positive,
    Real,
    Required,
    SamplerChoice,
    SamplerName,
    Section,
    Seed,
)
from ddpm_train.config.schema import Schema


@dataclass(frozen=True)
class RefineConfig(Section):
    """All keys of `ddpm-refine`."""

    pipeline: Annotated[FilePath, Required]  # what ddpm-sample loads
    revision: str | None  # of the Hub repository
    stages: tuple[Literal["average", "guidance", "sampler"], ...]
    widths: tuple[Width, ...]
    scales: tuple[Annotated[Real, Gt(1), Le(100)], ...]
    samplers: tuple[SamplerName, ...]
    sampler: SamplerChoice  # to begin with
    num_inference_steps: Positive
    metric: Literal["kid", "fid"]
    extractor: ExtractorChoice
    num_images: ImageCount
    batch_size: Positive
    seed: Seed
    mixed_precision: Literal["no", "bf16"]
    output: FilePath | None  # None: `refined` in the run's folder, or here
    dataset: Dataset | None = None  # None: the run's own
    extensions: tuple[str, ...] = ()  # modules to import, which add choices of the user's own


def cross_field_mistakes(config: RefineConfig) -> Iterator[str]:
    """What single keys cannot show: a line for each combination that cannot work."""
    yield from config.sampler.mistakes()
    if config.dataset is not None:
        yield from config.dataset.mistakes()
    if not config.stages:
        yield "stages=[]: nothing to try; give some of average, guidance, sampler"
    if config.num_images < FEWEST_IMAGES:
        yield f"num_images={config.num_images}: too few for a score; use at least {FEWEST_IMAGES}"
    keys = {"widths": "average", "scales": "guidance", "samplers": "sampler"}
    idle = [(key, f"without {stage} among stages") for key, stage in keys.items() if stage not in config.stages]
    yield from idle_mistakes(config, "refine", idle)


REFINING = Schema(RefineConfig, cross_field_mistakes)
