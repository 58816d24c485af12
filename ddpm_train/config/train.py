"""The whole user surface, typed. The values stand in `conf/`; here is what each key may hold.

Hydra composes, `validation.parse` checks once and returns these frozen dataclasses; beyond it there is no `DictConfig`.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from ddpm_train.config.losses import MSE, MinSNR
from ddpm_train.config.metrics import DistributionMetric
from ddpm_train.config.parts import (
    STRICT,
    AutoBool,
    Dataset,
    ExtractorChoice,
    Hub,
    NonNegative,
    Positive,
    Real,
    SamplerChoice,
    Whole,
    _auto_or_count,
    _name_alone,
)

DownBlock = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]


@dataclass(frozen=True, config=STRICT)
class Model:
    """UNet2DModel's arguments; sample size and channels follow from the dataset."""

    pretrained: str | None  # a folder or owner/name whose weights a new run starts from, and whose arguments it takes
    center_input_sample: bool
    time_embedding_type: Literal["positional", "fourier", "learned"]
    time_embedding_dim: Positive | None
    freq_shift: Whole
    flip_sin_to_cos: bool
    down_block_types: Annotated[tuple[DownBlock, ...], Len(1)]
    mid_block_type: Literal["UNetMidBlock2D"] | None
    up_block_types: Annotated[tuple[UpBlock, ...], Len(1)]
    block_out_channels: Annotated[tuple[Positive, ...], Len(1)]
    layers_per_block: Positive
    mid_block_scale_factor: Real
    downsample_padding: NonNegative
    downsample_type: Literal["conv", "resnet"]
    upsample_type: Literal["conv", "resnet"]
    dropout: Annotated[Real, Ge(0), Lt(1)]
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"]
    attention_head_dim: Positive | None
    norm_num_groups: Positive
    attn_norm_num_groups: Positive | None
    norm_eps: Annotated[Real, Gt(0)]
    resnet_time_scale_shift: Literal["default", "scale_shift"]
    add_attention: bool


@dataclass(frozen=True, config=STRICT)
class NoiseScheduler:
    """DDPMScheduler's arguments."""

    num_train_timesteps: Positive
    beta_start: Annotated[Real, Gt(0), Lt(1)]
    beta_end: Annotated[Real, Gt(0), Lt(1)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    trained_betas: tuple[Annotated[Real, Gt(0), Lt(1)], ...] | None
    variance_type: Literal[
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
    ]
    clip_sample: bool
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    thresholding: bool
    dynamic_thresholding_ratio: Annotated[Real, Gt(0), Le(1)]
    clip_sample_range: Annotated[Real, Gt(0)]
    sample_max_value: Annotated[Real, Gt(0)]
    timestep_spacing: Literal["linspace", "leading", "trailing"]
    steps_offset: NonNegative
    rescale_betas_zero_snr: bool


@dataclass(frozen=True, config=STRICT)
class Adam:
    """AdamW, Adam, or AdamW with 8-bit state (bitsandbytes)."""

    name: Literal["adamw", "adam", "adamw_8bit"]
    lr: Annotated[Real, Gt(0)]
    betas: tuple[Annotated[Real, Ge(0), Lt(1)], Annotated[Real, Ge(0), Lt(1)]]
    eps: Annotated[Real, Gt(0)]
    weight_decay: Annotated[Real, Ge(0)]


@dataclass(frozen=True, config=STRICT)
class SGD:
    name: Literal["sgd"]
    lr: Annotated[Real, Gt(0)]
    momentum: Annotated[Real, Ge(0), Lt(1)]
    weight_decay: Annotated[Real, Ge(0)]
    nesterov: bool


@dataclass(frozen=True, config=STRICT)
class LRScheduler:
    name: Literal["constant", "linear", "cosine"]
    warmup_steps: NonNegative


@dataclass(frozen=True, config=STRICT)
class NoEMA:
    name: Literal["none"]


@dataclass(frozen=True, config=STRICT)
class WarmupEMA:
    """diffusers' EMAModel with `use_ema_warmup=True`."""

    name: Literal["warmup"]
    max_decay: Annotated[Real, Ge(0), Lt(1)]
    min_decay: Annotated[Real, Ge(0), Lt(1)]
    inv_gamma: Annotated[Real, Gt(0)]
    power: Annotated[Real, Gt(0)]
    update_after_step: NonNegative


@dataclass(frozen=True, config=STRICT)
class Train:
    batch_size: Positive  # the global batch
    micro_batch_size: Annotated[int | Literal["auto"] | None, BeforeValidator(_auto_or_count)]  # per device
    max_steps: Positive | None
    epochs: Annotated[Real, Gt(0)] | None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"]
    channels_last: AutoBool
    attention: Literal["auto", "fused", "math"]
    compile: AutoBool
    allow_tf32: bool
    gradient_checkpointing: bool
    max_grad_norm: Annotated[Real, Gt(0)] | None
    log_every_steps: Positive  # how often metrics are read back from the device
    patience: Positive | None  # evaluations without a better `objective` after which the run ends; None: never


@dataclass(frozen=True, config=STRICT)
class Checkpoint:
    """When a run saves, and what it keeps. It also saves at its end and when it is asked to stop."""

    every_steps: Positive | None
    every_minutes: Annotated[float, Gt(0)] | None
    keep_last: Positive | None  # None: all
    keep_every_steps: Positive | None  # multiples of this are kept besides
    keep_best: bool  # the best evaluated step by `objective` is saved, and kept besides
    max_failures: Positive  # saves that may fail in a row before the run stops
    mirror: str | None  # an fsspec URL that each checkpoint is copied to, below the run's name


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """What is measured in the midst of a run, by its sampling weights."""

    name: Literal["none", "grid", "full"]
    every_steps: Positive | None  # None: at the end only
    num_images: Positive  # in the grid
    batch_size: Positive
    num_inference_steps: Positive
    timestep_bins: Positive | None  # the held-out loss in so many parts of the schedule
    metrics: tuple[DistributionMetric, ...]
    extractor: Annotated[ExtractorChoice, BeforeValidator(_name_alone)]
    num_samples: Positive  # for the metrics


@dataclass(frozen=True, config=STRICT)
class Trackers:
    """Accelerate's trackers by name; a value holds the arguments of the tracker's own constructor."""

    tensorboard: dict[str, Any] | None = None
    wandb: dict[str, Any] | None = None
    trackio: dict[str, Any] | None = None


@dataclass(frozen=True, config=STRICT)
class Config:
    """All keys of `ddpm-train`."""

    name: Annotated[str, Field(pattern=r"^\w[\w.=,+-]*$")]
    output_dir: str
    seed: Annotated[Whole, Ge(0), Lt(2**63)]
    resume: str  # auto | never | a checkpoint's path | hf://owner/name[@revision]
    objective: str | None  # what the run is judged by: a number that its evaluations measure; auto: the held-out loss
    allow_change: tuple[str, ...]  # keys that a resumed run may change although they make it another run
    dataset: Dataset
    model: Model
    noise_scheduler: NoiseScheduler
    loss: Annotated[MSE | MinSNR, Field(discriminator="name")]
    optimizer: Annotated[Adam | SGD, Field(discriminator="name")]
    lr_scheduler: LRScheduler
    ema: Annotated[NoEMA | WarmupEMA, Field(discriminator="name")]
    train: Train
    checkpoint: Checkpoint
    hub: Hub
    evaluation: Evaluation
    sampler: SamplerChoice
    tracker: Trackers
