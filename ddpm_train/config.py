"""The whole user surface, typed. The values stand in `conf/`; here is what each key may hold.

Hydra composes, `parse` checks once and returns frozen dataclasses; no `DictConfig` goes beyond this module.
Importing it is cheap: no torch, diffusers or datasets.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ddpm_train.mistakes import Mistakes, did_you_mean

_STRICT = ConfigDict(extra="forbid")

Positive = Annotated[int, Gt(0)]
NonNegative = Annotated[int, Ge(0)]
Byte = Annotated[int, Ge(0), Le(255)]
DownBlock = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]


def _height_and_width(value: object) -> object:
    if isinstance(value, int):
        return value, value
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("must be a whole number or [height,width]")
    return value


def _given(value: object) -> object:
    if value == "???":
        raise ValueError("missing; give it a value")
    return value


Resolution = Annotated[tuple[Positive, Positive], BeforeValidator(_height_and_width)]
Required = BeforeValidator(_given)  # `???` in a config: the user has to say


@dataclass(frozen=True, config=_STRICT)
class Dataset:
    """Where the images come from and how they become uint8 arrays [channels, height, width]."""

    source: Annotated[Literal["embedded", "folder", "hub"], Required]
    path: Annotated[str, Required]
    config_name: str | None  # the Hub dataset's configuration
    split: str
    revision: str | None
    image_column: str | None  # None: the one column of images
    validation_split: str | None  # None: hold out `validation_fraction` of the images
    validation_fraction: Annotated[float, Ge(0), Lt(1)]
    resolution: Resolution
    channels: Literal[1, 3, 4]
    background: tuple[Byte, Byte, Byte]  # what stands behind transparent pixels when channels < 4
    crop: Literal["center", "random"]
    random_flip: bool
    cache: Literal["disk", "none"]
    cache_dir: str | None  # None: $XDG_CACHE_HOME/ddpm-train
    num_workers: NonNegative | None  # None: one for each core
    max_broken_fraction: Annotated[float, Ge(0), Le(1)]
    max_pixels: Positive  # a larger image is not decoded (decompression bombs)


@dataclass(frozen=True, config=_STRICT)
class Model:
    """UNet2DModel's arguments; sample size and channels follow from the dataset."""

    center_input_sample: bool
    time_embedding_type: Literal["positional", "fourier", "learned"]
    time_embedding_dim: Positive | None
    freq_shift: int
    flip_sin_to_cos: bool
    down_block_types: Annotated[tuple[DownBlock, ...], Len(1)]
    mid_block_type: Literal["UNetMidBlock2D"] | None
    up_block_types: Annotated[tuple[UpBlock, ...], Len(1)]
    block_out_channels: Annotated[tuple[Positive, ...], Len(1)]
    layers_per_block: Positive
    mid_block_scale_factor: float
    downsample_padding: NonNegative
    downsample_type: Literal["conv", "resnet"]
    upsample_type: Literal["conv", "resnet"]
    dropout: Annotated[float, Ge(0), Lt(1)]
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"]
    attention_head_dim: Positive | None
    norm_num_groups: Positive
    attn_norm_num_groups: Positive | None
    norm_eps: Annotated[float, Gt(0)]
    resnet_time_scale_shift: Literal["default", "scale_shift"]
    add_attention: bool


@dataclass(frozen=True, config=_STRICT)
class NoiseScheduler:
    """DDPMScheduler's arguments."""

    num_train_timesteps: Positive
    beta_start: Annotated[float, Gt(0), Lt(1)]
    beta_end: Annotated[float, Gt(0), Lt(1)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    trained_betas: tuple[Annotated[float, Gt(0), Lt(1)], ...] | None
    variance_type: Literal[
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
    ]
    clip_sample: bool
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    thresholding: bool
    dynamic_thresholding_ratio: Annotated[float, Gt(0), Le(1)]
    clip_sample_range: Annotated[float, Gt(0)]
    sample_max_value: Annotated[float, Gt(0)]
    timestep_spacing: Literal["linspace", "leading", "trailing"]
    steps_offset: NonNegative
    rescale_betas_zero_snr: bool


@dataclass(frozen=True, config=_STRICT)
class MSE:
    """The mean squared error of the prediction (Ho et al. 2020, eq. 14)."""

    name: Literal["mse"]


@dataclass(frozen=True, config=_STRICT)
class MinSNR:
    """The mean squared error weighted by min(SNR, gamma) (Hang et al. 2023)."""

    name: Literal["min_snr"]
    gamma: Annotated[float, Gt(0)]


@dataclass(frozen=True, config=_STRICT)
class Adam:
    """AdamW, Adam, or AdamW with 8-bit state (bitsandbytes)."""

    name: Literal["adamw", "adam", "adamw_8bit"]
    lr: Annotated[float, Gt(0)]
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]]
    eps: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)]


@dataclass(frozen=True, config=_STRICT)
class SGD:
    name: Literal["sgd"]
    lr: Annotated[float, Gt(0)]
    momentum: Annotated[float, Ge(0), Lt(1)]
    weight_decay: Annotated[float, Ge(0)]
    nesterov: bool


@dataclass(frozen=True, config=_STRICT)
class LRScheduler:
    name: Literal["constant", "linear", "cosine"]
    warmup_steps: NonNegative


@dataclass(frozen=True, config=_STRICT)
class NoEMA:
    name: Literal["none"]


@dataclass(frozen=True, config=_STRICT)
class WarmupEMA:
    """diffusers' EMAModel with `use_ema_warmup=True`."""

    name: Literal["warmup"]
    max_decay: Annotated[float, Ge(0), Lt(1)]
    min_decay: Annotated[float, Ge(0), Lt(1)]
    inv_gamma: Annotated[float, Gt(0)]
    power: Annotated[float, Gt(0)]
    update_after_step: NonNegative


@dataclass(frozen=True, config=_STRICT)
class Train:
    batch_size: Positive  # the global batch
    micro_batch_size: Positive | None  # per device; None: the largest that needs no accumulation
    max_steps: Positive | None
    epochs: Annotated[float, Gt(0)] | None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"]
    gradient_checkpointing: bool
    max_grad_norm: Annotated[float, Gt(0)] | None
    log_every_steps: Positive  # how often metrics are read back from the device


@dataclass(frozen=True, config=_STRICT)
class Checkpoint:
    every_steps: Positive | None


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    name: Literal["none", "grid"]
    every_steps: Positive | None  # None: at the end only
    num_images: Positive
    batch_size: Positive
    num_inference_steps: Positive


@dataclass(frozen=True, config=_STRICT)
class Sampler:
    """A diffusers scheduler that samples, built from the model's own noise schedule."""

    name: Literal["ddpm", "ddim", "dpm_solver", "unipc", "euler", "heun"]


@dataclass(frozen=True, config=_STRICT)
class Trackers:
    """Accelerate's trackers by name; a value holds the arguments of the tracker's own constructor."""

    tensorboard: dict[str, Any] | None = None
    wandb: dict[str, Any] | None = None
    trackio: dict[str, Any] | None = None


@dataclass(frozen=True, config=_STRICT)
class Config:
    """All keys of `ddpm-train`."""

    name: Annotated[str, Field(pattern=r"^[\w.=,+-]+$")]
    output_dir: str
    seed: Annotated[int, Ge(0), Lt(2**63)]
    resume: str  # auto | never | a checkpoint's path
    dataset: Dataset
    model: Model
    noise_scheduler: NoiseScheduler
    loss: Annotated[MSE | MinSNR, Field(discriminator="name")]
    optimizer: Annotated[Adam | SGD, Field(discriminator="name")]
    lr_scheduler: LRScheduler
    ema: Annotated[NoEMA | WarmupEMA, Field(discriminator="name")]
    train: Train
    checkpoint: Checkpoint
    evaluation: Evaluation
    sampler: Sampler
    tracker: Trackers


_ADAPTER = TypeAdapter(Config)


def parse(values: Mapping[str, Any]) -> Config:
    """Check a composed config (plain dicts and lists) and return it typed.

    Raises:
        Mistakes: every wrong type, range, name and combination in it, a line each.
    """
    config, lines = inspect(values, {})
    if config is None or lines:
        raise Mistakes(*lines)
    return config


def inspect(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    """Find all mistakes in a composed config.

    Args:
        values: the config.
        defaults: takes the place of what is wrong, so that one mistake does not hide the next.

    Returns:
        The config (None if even the defaults cannot make one) and a line for each mistake.
    """
    try:
        config: Config = _ADAPTER.validate_python(values)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(detail) for detail in error.errors() if not _is_echo(detail)))
        try:
            config = _ADAPTER.validate_python(_repaired(values, defaults, error))
        except (ValidationError, KeyError, TypeError):
            return None, lines
        return config, [*lines, *cross_field_mistakes(config)]
    return config, list(cross_field_mistakes(config))


def _repaired(values: Mapping[str, Any], defaults: Mapping[str, Any], error: ValidationError) -> dict[str, Any]:
    """A copy of `values` with the two-part keys that `error` names taken from `defaults`."""
    repaired = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for detail in error.errors():
        section, *rest = _location(detail)
        if section not in defaults:
            del repaired[section]
        elif not rest or not isinstance(repaired.get(section), dict) or detail["input"] == "???":
            repaired[section] = defaults[section]
        elif rest[0] in defaults[section]:
            repaired[section][rest[0]] = defaults[section][rest[0]]
        else:
            repaired[section].pop(rest[0], None)
    return repaired


def _location(detail: Any) -> list[Any]:
    # A tagged union puts its tag (the group's choice) into the location; the user never wrote it.
    tags = {"mse", "min_snr", "adamw", "adam", "adamw_8bit", "sgd", "none", "warmup"}
    return [part for position, part in enumerate(detail["loc"]) if not (position == 1 and part in tags)]


def _is_echo(detail: Any) -> bool:
    """A list whose items were wrong is reported a second time, as too short."""
    return detail["type"] == "too_short" and len(detail["input"]) > 0


def _explain(detail: Any) -> str:
    """One validation error of pydantic as "key=value: what is wrong"."""
    key = ".".join(str(part) for part in _location(detail))
    value, kind, context = detail["input"], detail["type"], detail.get("ctx", {})
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: no such key"
    if kind == "value_error":
        return f"{key}={value}: {context['error']}"
    if kind in ("missing", "missing_argument"):
        return f"{key}: missing; give it a value"
    if kind in ("literal_error", "union_tag_invalid"):
        choices = context["expected"] if kind == "literal_error" else context["expected_tags"]
        if kind == "union_tag_invalid":
            key, value = f"{key}.name", context["tag"]
        known = [choice.strip("' ") for choice in choices.replace(" or ", ", ").split(",")]
        return f"{key}={value}: not one of {', '.join(known)};{did_you_mean(str(value), known)}".rstrip(";")
    wanted = {
        "int_parsing": "a whole number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "float_type": "a number",
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "string_type": "a text",
        "tuple_type": "a list",
        "greater_than": f"greater than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "string_pattern_mismatch": "made of letters, digits and . _ = , + -",
    }.get(kind)
    return f"{key}={value}: must be {wanted}" if wanted else f"{key}={value}: {detail['msg']}"


def cross_field_mistakes(config: Config) -> Iterator[str]:
    """What single keys cannot show: a line for each combination that cannot work."""
    yield from _model_mistakes(config)
    train, noise = config.train, config.noise_scheduler
    if (train.max_steps is None) == (train.epochs is None):
        given = f"train.max_steps={_text(train.max_steps)} train.epochs={_text(train.epochs)}"
        remedy = "give one of them" if train.epochs is None else "set the other to null"
        yield f"{given}: exactly one decides the length; {remedy}"
    if train.micro_batch_size and train.batch_size % train.micro_batch_size:
        yield (
            f"train.batch_size={train.batch_size}: not divisible by "
            f"train.micro_batch_size={train.micro_batch_size}; choose a multiple of it"
        )
    if noise.variance_type.startswith("learned"):
        yield (
            f"noise_scheduler.variance_type={noise.variance_type}: there is no loss for a learned variance; "
            "use fixed_small or fixed_large"
        )
    if noise.beta_start > noise.beta_end:
        yield f"noise_scheduler.beta_start={noise.beta_start}: above beta_end={noise.beta_end}; swap them"
    if noise.trained_betas is not None and len(noise.trained_betas) != noise.num_train_timesteps:
        yield (
            f"noise_scheduler.trained_betas: {len(noise.trained_betas)} values for "
            f"num_train_timesteps={noise.num_train_timesteps}; give as many"
        )
    if noise.rescale_betas_zero_snr and noise.prediction_type == "epsilon":
        reason = "min-SNR weighs it 0/0" if config.loss.name == "min_snr" else "pure noise says nothing of x_0"
        yield (
            "noise_scheduler.prediction_type=epsilon: with zero terminal SNR the last timestep cannot be learned "
            f"({reason}); use noise_scheduler.prediction_type=v_prediction"
        )
    if config.evaluation.num_inference_steps > noise.num_train_timesteps:
        yield (
            f"evaluation.num_inference_steps={config.evaluation.num_inference_steps}: more than "
            f"noise_scheduler.num_train_timesteps={noise.num_train_timesteps}; use at most that many"
        )
    if isinstance(config.ema, WarmupEMA) and config.ema.min_decay > config.ema.max_decay:
        yield f"ema.min_decay={config.ema.min_decay}: above ema.max_decay={config.ema.max_decay}; lower it"
    if isinstance(config.optimizer, SGD) and config.optimizer.nesterov and config.optimizer.momentum == 0:
        yield "optimizer.nesterov=true: needs momentum; set optimizer.momentum=0.9"


def _model_mistakes(config: Config) -> Iterator[str]:
    model, resolution = config.model, config.dataset.resolution
    levels = len(model.block_out_channels)
    for key in ("down_block_types", "up_block_types"):
        if len(getattr(model, key)) != levels:
            yield (
                f"model.{key}: {len(getattr(model, key))} blocks for {levels} model.block_out_channels; "
                "make the lists equally long"
            )
    factor = 2 ** (levels - 1)
    if any(side % factor for side in resolution):
        fitting = [max(factor, round(side / factor) * factor) for side in resolution]
        shown = fitting[0] if fitting[0] == fitting[1] else f"[{fitting[0]},{fitting[1]}]"
        yield (
            f"dataset.resolution={_resolution_text(resolution)}: {levels} levels need multiples of {factor}; "
            f"use dataset.resolution={shown} or fewer levels"
        )
    wrong = [channels for channels in model.block_out_channels if channels % model.norm_num_groups]
    if wrong:
        yield (
            f"model.norm_num_groups={model.norm_num_groups}: does not divide {wrong[0]} of "
            f"model.block_out_channels; use a common divisor"
        )
    attending = [
        channels
        for block, channels in zip(model.down_block_types, model.block_out_channels, strict=False)
        if block.startswith("Attn")
    ]
    if model.mid_block_type and model.add_attention:
        attending.append(model.block_out_channels[-1])
    head = model.attention_head_dim
    wrong = [channels for channels in attending if head and channels % head]
    if wrong:
        yield (
            f"model.attention_head_dim={head}: does not divide the {wrong[0]} channels of a level with attention; "
            "use a common divisor"
        )


def _text(value: object) -> str:
    return "null" if value is None else str(value)


def _resolution_text(resolution: tuple[int, int]) -> str:
    height, width = resolution
    return str(height) if height == width else f"[{height},{width}]"
