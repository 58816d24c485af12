"""The whole user surface, typed. The values stand in `conf/`; here is what each key may hold.

Hydra composes, `validation.parse` checks once and returns these frozen dataclasses; beyond it there is no `DictConfig`.
"""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from ddpm_train.measures import DistributionMetric, ExtractorName

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the configs inside the package; a checkout has them beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

# A name such as 2024 is a text; infinity is not a rate.
STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):  # which Python, and so pydantic, takes for 0 or 1
        raise ValueError("must be a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Real = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Whole, Gt(0)]
NonNegative = Annotated[Whole, Ge(0)]
Byte = Annotated[Whole, Ge(0), Le(255)]
DownBlock = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]


SamplerName = Literal[
    "ddpm", "ddim", "pndm", "dpm_solver", "dpm_solver_singlestep", "dpm_solver_sde", "unipc", "deis", "sa_solver",
    "euler", "euler_ancestral", "heun", "kdpm2", "kdpm2_ancestral", "lms",
]  # fmt: skip


def _height_and_width(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("must be a whole number or [height,width]")
    return value


def _auto_or_bool(value: object) -> object:
    if value not in ("auto", True, False):
        raise ValueError("must be auto, true or false")
    return value


def _auto_or_count(value: object) -> object:
    if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("must be a whole number above 0, auto or null")


def _given(value: object) -> object:
    if value == "???":
        raise ValueError("missing; give it a value")
    return value


Resolution = Annotated[tuple[Positive, Positive], BeforeValidator(_height_and_width)]
AutoBool = Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)]
Required = BeforeValidator(_given)  # `???` in a config: the user has to say


@dataclass(frozen=True, config=STRICT)
class Dataset:
    """Where the images come from and how they become uint8 arrays [channels, height, width]."""

    source: Annotated[Literal["embedded", "folder", "hub"], Required]
    path: Annotated[str, Required]
    config_name: str | None  # the Hub dataset's configuration
    split: str
    revision: str | None
    image_column: str | None  # None: the one column of images
    validation_split: str | None  # None: hold out `validation_fraction` of the images
    validation_fraction: Annotated[Real, Ge(0), Lt(1)]
    resolution: Resolution
    channels: Annotated[Literal[1, 3, 4], BeforeValidator(_no_bool)]
    background: tuple[Byte, Byte, Byte]  # what stands behind transparent pixels when channels < 4
    crop: Literal["center", "random"]
    random_flip: bool
    cache: Literal["disk", "none"]
    device_cache: AutoBool  # all prepared images in the GPU's memory; auto: where they fit
    cache_dir: str | None  # None: $XDG_CACHE_HOME/ddpm-train
    num_workers: NonNegative | None  # None: one for each core
    max_broken_fraction: Annotated[Real, Ge(0), Le(1)]
    max_pixels: Positive  # a larger image is not decoded (decompression bombs)


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
class MSE:
    """The mean squared error of the prediction (Ho et al. 2020, eq. 14)."""

    name: Literal["mse"]


@dataclass(frozen=True, config=STRICT)
class MinSNR:
    """The mean squared error weighted by min(SNR, gamma) (Hang et al. 2023)."""

    name: Literal["min_snr"]
    gamma: Annotated[Real, Gt(0)]


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
class ExtractorChoice:
    """What turns images into features."""

    name: ExtractorName
    weights: str | None  # a local file; None: those published


def _name_alone(value: object) -> object:
    return {"name": value, "weights": None} if isinstance(value, str) else value


@dataclass(frozen=True, config=STRICT)
class Hub:
    """What a run pushes to the Hugging Face Hub, and when. No key holds a token: configs are saved and pushed."""

    push: bool
    repo_id: str | None  # None: the token's user and the run's name
    private: bool | None  # of a repository that does not exist yet; None: as the account has it
    revision: str | None  # a branch; None: main
    # Names of transformers. "checkpoint" and "all_checkpoints" push what a resume needs besides the pipeline.
    strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"]
    retry_minutes: Annotated[Real, Gt(0)]  # a push that fails is tried again for so long
    finish_minutes: Annotated[Real, Gt(0)]  # the end of a run waits for its push no longer than this
    stall_seconds: Annotated[Real, Gt(0)]  # a connection on which nothing moves for so long is given up


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
class Sampler:
    """A diffusers scheduler that samples, built from the model's own noise schedule.

    In a config the arguments, of its constructor and of its `step`, stand beside the name: `sampler.eta=0.5`.
    """

    name: SamplerName
    arguments: dict[str, Any] = field(default_factory=dict)


def _arguments_apart(value: object) -> object:
    if not isinstance(value, Mapping) or "name" not in value:
        return value
    return {"name": value["name"], "arguments": {key: item for key, item in value.items() if key != "name"}}


SamplerChoice = Annotated[Sampler, BeforeValidator(_arguments_apart)]


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
