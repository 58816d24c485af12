"""What single keys of a training run cannot show: combinations that cannot work."""

from collections.abc import Iterator

from ddpm_train.config.metrics import FEWEST_IMAGES
from ddpm_train.config.mistakes import as_written, resolution_text
from ddpm_train.config.objective import objective_mistakes
from ddpm_train.config.parts import Section
from ddpm_train.config.schema import Schema
from ddpm_train.config.train import Config


def cross_field_mistakes(config: Config) -> Iterator[str]:
    """What single keys cannot show: a line for each combination that cannot work."""
    yield from _model_mistakes(config)
    for section in vars(config).values():
        if isinstance(section, Section):
            yield from section.mistakes()
    train, noise = config.train, config.noise_scheduler
    if (train.max_steps is None) == (train.epochs is None):
        given = f"train.max_steps={as_written(train.max_steps)} train.epochs={as_written(train.epochs)}"
        remedy = "give one of them" if train.epochs is None else "set the other to null"
        yield f"{given}: exactly one decides the length; {remedy}"
    elif train.max_steps is not None:
        yield from config.lr_scheduler.length_mistakes(train.max_steps)
    if isinstance(train.micro_batch_size, int) and train.batch_size % train.micro_batch_size:
        yield (
            f"train.batch_size={train.batch_size}: not divisible by "
            f"train.micro_batch_size={train.micro_batch_size}; choose a multiple of it"
        )
    if config.dataset.device_cache is True and config.dataset.cache == "none":
        yield (
            "dataset.device_cache=true: needs prepared images, and dataset.cache=none keeps none; use "
            "dataset.cache=disk or dataset.device_cache=auto"
        )
    yield from _prediction_mistakes(config)
    if train.channels_last is True and config.optimizer.is_contiguous:
        yield (
            f"train.channels_last=true: optimizer={config.optimizer.name} lays the weights out contiguously; "
            "use false or auto"
        )
    if config.evaluation.num_inference_steps > noise.num_train_timesteps:
        yield (
            f"evaluation.num_inference_steps={config.evaluation.num_inference_steps}: more than "
            f"noise_scheduler.num_train_timesteps={noise.num_train_timesteps}; use at most that many"
        )
    if config.evaluation.metrics and config.evaluation.num_samples < FEWEST_IMAGES:
        yield (
            f"evaluation.num_samples={config.evaluation.num_samples}: too few for evaluation.metrics; "
            f"use at least {FEWEST_IMAGES}"
        )
    if config.dataset.dtype is not None and config.evaluation.metrics:
        yield from config.evaluation.extractor.array_mistakes("evaluation.")
    yield from config.augmentation.channel_mistakes(config.dataset.channels)
    yield from objective_mistakes(config)


def _prediction_mistakes(config: Config) -> Iterator[str]:
    """Where the noise cannot be predicted, or cannot be weighed so."""
    noise = config.noise_scheduler
    if noise.rescale_betas_zero_snr and noise.prediction_type == "epsilon":
        reason = "min-SNR weighs it 0/0" if config.loss.name == "min_snr" else "pure noise says nothing of x_0"
        yield (
            "noise_scheduler.prediction_type=epsilon: with zero terminal SNR the last timestep cannot be learned "
            f"({reason}); use noise_scheduler.prediction_type=v_prediction"
        )
    if config.loss.name == "edm" and noise.prediction_type == "epsilon":
        yield (
            "loss=edm: with noise_scheduler.prediction_type=epsilon the weight of pure noise has no bound; "
            "use noise_scheduler.prediction_type=v_prediction"
        )


def _model_mistakes(config: Config) -> Iterator[str]:
    model, resolution = config.model, config.dataset.resolution
    if model.time_embedding_type == "fourier":
        yield (
            "model.time_embedding_type=fourier: takes the logarithm of the timestep, and the first timestep is 0; "
            "use positional"
        )
    levels = len(model.block_out_channels)
    for key in ("down_block_types", "up_block_types"):
        if len(getattr(model, key)) != levels:
            yield (
                f"model.{key}: {len(getattr(model, key))} blocks for {levels} model.block_out_channels; "
                "make the lists equally long"
            )
    factor = 2 ** (levels - 1)
    if any(side % factor for side in resolution):
        height, width = (max(factor, round(side / factor) * factor) for side in resolution)
        yield (
            f"dataset.resolution={resolution_text(resolution)}: {levels} levels need multiples of {factor}; "
            f"use dataset.resolution={resolution_text((height, width))} or fewer levels"
        )
    channels, middle = model.block_out_channels, model.block_out_channels[-1:] if model.mid_block_type else ()
    blocks = list(zip(channels, model.down_block_types, reversed(model.up_block_types), strict=False))
    # Skip blocks choose their groups themselves.
    grouped = [channels[0], *(width for width, *both in blocks if not all("Skip" in block for block in both)), *middle]
    attending = [width for width, *both in blocks if any(block.startswith("Attn") for block in both)]
    middle = middle if model.add_attention else ()
    for key, several, what in (
        ("norm_num_groups", grouped, "{} of model.block_out_channels; use a common divisor"),
        ("attn_norm_num_groups", middle, "the {} channels of the middle block; use a divisor"),
    ):
        divisor = getattr(model, key)
        if divisor and (wrong := [width for width in several if width % divisor]):
            yield f"model.{key}={divisor}: does not divide {what.format(wrong[0])}"
    narrowest = min([*attending, *middle], default=None)
    if model.attention_head_dim and narrowest and model.attention_head_dim > narrowest:
        yield (
            f"model.attention_head_dim={model.attention_head_dim}: wider than the {narrowest} channels of a level with "
            "attention; use at most that"
        )


TRAINING = Schema(Config, cross_field_mistakes)
