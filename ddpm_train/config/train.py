"""The whole user surface, typed. The values stand in `conf/`; here is what each key may hold.

Hydra composes, `schema.py` checks once and returns these frozen dataclasses; beyond it there is no `DictConfig`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import Field

from ddpm_train.config.augmentation import AUGMENTATIONS, NONE, Augmentation
from ddpm_train.config.dataset import Dataset
from ddpm_train.config.ema import AVERAGES, EMA
from ddpm_train.config.losses import LOSSES, Loss
from ddpm_train.config.metrics import FeatureMetricName
from ddpm_train.config.model import Model
from ddpm_train.config.noise import PLAIN_NOISE, Noise, NoiseScheduler
from ddpm_train.config.optimizers import LR_SCHEDULERS, OPTIMIZERS, LRScheduler, Optimizer
from ddpm_train.config.parts import (
    AutoBool,
    AutoCount,
    Compiling,
    Extractor,
    FilePath,
    FrameCount,
    Hub,
    ImageCount,
    Minutes,
    Positive,
    Real,
    SamplerChoice,
    Section,
    Seed,
)
from ddpm_train.config.timesteps import TIMESTEP_DISTRIBUTIONS, UNIFORM, TimestepDistribution


@dataclass(frozen=True)
class Train(Section):
    batch_size: Positive  # the global batch
    micro_batch_size: AutoCount  # per device
    max_steps: Positive | None
    epochs: Annotated[Real, Gt(0)] | None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"]
    channels_last: AutoBool
    attention: Literal["auto", "fused", "math"]
    compile: Compiling
    allow_tf32: bool
    gradient_checkpointing: bool
    max_grad_norm: Annotated[Real, Gt(0)] | None
    log_every_steps: Positive  # how often metrics are read back from the device
    patience: Positive | None  # evaluations without a better `objective` after which the run ends; None: never
    stop_before_copying: bool = False  # end when copying may begin before the next evaluation; older configs lack it
    deterministic: bool = False  # the same bits again on the same device, at a price; older configs do not have it


@dataclass(frozen=True)
class Checkpoint(Section):
    """When a run saves, and what it keeps. It also saves at its end and when it is asked to stop."""

    every_steps: Positive | None
    every_minutes: Minutes | None
    keep_last: Positive | None  # None: all
    keep_every_steps: Positive | None  # checkpoints at multiples of this are kept, too
    keep_best: bool  # the best evaluated step by `objective` is saved, and kept besides
    max_failures: Positive  # saves that may fail in a row before the run stops
    mirror: str | None  # an fsspec URL that each checkpoint is copied to, below the run's name


# With `evaluation.every_steps=auto`. The default run has four: fewer do not show whether it goes on to learn.
_MOST_EVALUATIONS, _FEWEST_STEPS_BETWEEN = 8, 350


@dataclass(frozen=True)
class Evaluation(Section):
    """What is measured in the midst of a run, by its sampling weights."""

    name: Literal["none", "grid", "full"]
    every_steps: AutoCount  # None: at the end only
    num_images: FrameCount  # in the grid
    batch_size: Positive
    num_inference_steps: Positive
    timestep_bins: FrameCount | None  # the held-out loss in so many parts of the schedule
    metrics: tuple[FeatureMetricName, ...]
    extractor: Extractor
    num_samples: ImageCount  # for the metrics
    first_step: Positive | None = None  # one more, early; older configs do not have it

    def interval(self, max_steps: int) -> int | None:
        """The steps between two evaluations of a run of that length; None: it evaluates at its end only."""
        if self.every_steps != "auto":
            return self.every_steps
        number = min(_MOST_EVALUATIONS, max_steps // _FEWEST_STEPS_BETWEEN)
        return math.ceil(max_steps / number) if number > 1 else None


@dataclass(frozen=True)
class Trackers(Section):
    """Accelerate's trackers by name; a value holds the arguments of the tracker's own constructor."""

    tensorboard: dict[str, Any] | None = None
    wandb: dict[str, Any] | None = None
    trackio: dict[str, Any] | None = None


@dataclass(frozen=True)
class Config(Section):
    """All keys of `ddpm-train`."""

    name: Annotated[FilePath, Field(pattern=r"^\w[\w.=,+-]*$")]
    output_dir: FilePath
    seed: Seed
    resume: FilePath  # auto | never | a checkpoint's path | hf://owner/name[@revision]
    objective: str | None  # what the run is judged by: a number that its evaluations measure; auto: the held-out loss
    allow_change: tuple[str, ...]  # keys that a resumed run may change although they make it another run
    dataset: Dataset
    model: Model
    noise_scheduler: NoiseScheduler
    loss: Annotated[Loss, LOSSES]
    optimizer: Annotated[Optimizer, OPTIMIZERS]
    lr_scheduler: Annotated[LRScheduler, LR_SCHEDULERS]
    ema: Annotated[EMA, AVERAGES]
    train: Train
    checkpoint: Checkpoint
    hub: Hub
    evaluation: Evaluation
    sampler: SamplerChoice
    tracker: Trackers
    # Older configs do not have these.
    timestep_distribution: Annotated[TimestepDistribution, TIMESTEP_DISTRIBUTIONS] = UNIFORM
    augmentation: Annotated[Augmentation, AUGMENTATIONS] = NONE
    noise: Noise = PLAIN_NOISE  # likewise
    extensions: tuple[str, ...] = ()  # modules to import, which add choices of the user's own; see docs/extending.md


# At 16 pixels, 700 steps on 290 photographs made pictures of something, and 350 steps spots of colour. And the smallest
# batch of a published recipe is 16 images: of fewer, more steps are needed.
FEWEST_STEPS, FEWEST_IMAGES_SEEN = 500, 16_000


def too_short(steps: int, batch_size: int) -> bool:
    """Whether so many steps make nothing but noise or spots of colour, whatever the dataset and the network."""
    return steps < FEWEST_STEPS or steps * batch_size < FEWEST_IMAGES_SEEN
