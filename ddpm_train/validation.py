"""Finds every mistake in a composed config: wrong types, ranges and names, and combinations that cannot work.

Importing it is cheap: no torch, diffusers or datasets.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ddpm_train.config import SGD, Config, WarmupEMA
from ddpm_train.measures import FEWEST_IMAGES
from ddpm_train.mistakes import Mistakes, as_written, did_you_mean
from ddpm_train.samplers import argument_mistakes
from ddpm_train.selection import objective_mistakes

C = TypeVar("C")


class Schema(Generic[C]):
    """What a program's config must be.

    Args:
        config_type: a pydantic dataclass.
        cross_field_mistakes: yields a line for each combination of keys that cannot work.
    """

    def __init__(self, config_type: type[C], cross_field_mistakes: Callable[[C], Iterator[str]]) -> None:
        self._adapter: TypeAdapter[C] = TypeAdapter(config_type)
        self._cross_field_mistakes = cross_field_mistakes

    def parse(self, values: Mapping[str, Any]) -> C:
        """Check a composed config (plain dicts and lists) and return it typed.

        Raises:
            Mistakes: every wrong type, range, name and combination in it, a line each.
        """
        if lines := self.inspect(values, {}):
            raise Mistakes(*lines)
        return self._adapter.validate_python(values)

    def inspect(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any],
        preflight: Callable[[C], Iterator[str]] = lambda config: iter(()),
    ) -> list[str]:
        """Find all mistakes in a composed config, a line each.

        Args:
            values: the config.
            defaults: takes the place of what is wrong, so that one mistake does not hide the next.
            preflight: yields further mistakes of a config whose keys are right one by one.
        """
        lines: list[str] = []
        wrong: set[str] = set()
        try:
            config = self._adapter.validate_python(values)
        except ValidationError as error:
            wrong = {".".join(map(str, _location(detail)[:2])) for detail in error.errors()}
            known = [key for key in dotted(defaults) if key not in wrong]  # a file of the user may bring wrong keys
            lines = list(dict.fromkeys(_explain(detail, known) for detail in error.errors() if not _is_echo(detail)))
            try:
                config = self._adapter.validate_python(_repaired(values, defaults, error))
            except ValidationError:
                return lines
        further = chain(self._cross_field_mistakes(config), preflight(config))
        # What involves a repaired key says something of the default, not of what the user wrote.
        return lines + [line for line in further if not any(_mentions(line, key) for key in wrong)]


def parse(values: Mapping[str, Any]) -> Config:
    """Check a composed config of a run (plain dicts and lists) and return it typed.

    Raises:
        Mistakes: every wrong type, range, name and combination in it, a line each.
    """
    return TRAINING.parse(values)


_STAND_IN = "embedded"  # for what the defaults leave to the user: right as a source and as a path


def _repaired(values: Mapping[str, Any], defaults: Mapping[str, Any], error: ValidationError) -> dict[str, Any]:
    """A copy of `values` with the two-part keys that `error` names taken from `defaults`."""
    repaired = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for detail in error.errors():
        section, *rest = _location(detail)
        if section not in defaults:
            repaired.pop(section, None)
        elif not rest or not isinstance(repaired.get(section), dict):
            repaired[section] = defaults[section]
        elif rest[0] in defaults[section]:
            default = defaults[section][rest[0]]
            repaired[section][rest[0]] = _STAND_IN if default == "???" else default
        else:
            repaired[section].pop(rest[0], None)
    return repaired


# Sections whose keys depend on the group's choice; pydantic puts the choice into the location of their errors.
_TAGGED = {name for name, field in Config.__pydantic_fields__.items() if field.discriminator}  # type: ignore[attr-defined]


def _mentions(line: str, key: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", line) is not None


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of nested sections as one writes it: `train`, `train.batch_size`, …"""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def dotted_values(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested sections that is no section itself, with its value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _location(detail: Any) -> list[Any]:
    section, *rest = detail["loc"]
    return [section, *(rest[1:] if section in _TAGGED else rest)]


def _is_echo(detail: Any) -> bool:
    """A list whose items were wrong is reported a second time, as too short."""
    return detail["type"] == "too_short" and len(detail["input"]) > 0


def _explain(detail: Any, known_keys: list[str]) -> str:
    """One validation error of pydantic as "key=value: what is wrong"."""
    key = ".".join(map(str, _location(detail)))
    kind, context = detail["type"], detail.get("ctx", {})
    given = f"{key}={as_written(detail['input'])}"
    if kind == "unexpected_keyword_argument":
        return f"{given}: no such key;{did_you_mean(key, known_keys) or ' see --cfg job'}"
    if kind == "value_error":
        return f"{given}: {context['error']}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{key}{'' if kind == 'missing' else '.name'}: missing; give it a value"
    if kind == "union_tag_invalid":
        given, expected, word = f"{key}.name={context['tag']}", context["expected_tags"], context["tag"]
    elif kind == "literal_error":
        expected, word = context["expected"], detail["input"]
    else:
        return f"{given}: must be {_WANTED.get(kind, detail['msg']).format_map(context)}"
    known = [choice.strip("' ") for choice in expected.replace(" or ", ", ").split(",")]
    return f"{given}: not one of {', '.join(known)};{did_you_mean(str(word), known)}".rstrip(";")


# What pydantic's kinds of errors ask for, in words that follow "must be".
_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "dataclass_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "made of letters, digits and . _ = , + - and begin with a letter or digit",
}


def cross_field_mistakes(config: Config) -> Iterator[str]:
    """What single keys cannot show: a line for each combination that cannot work."""
    yield from _model_mistakes(config)
    train, noise = config.train, config.noise_scheduler
    if (train.max_steps is None) == (train.epochs is None):
        given = f"train.max_steps={as_written(train.max_steps)} train.epochs={as_written(train.epochs)}"
        remedy = "give one of them" if train.epochs is None else "set the other to null"
        yield f"{given}: exactly one decides the length; {remedy}"
    if isinstance(train.micro_batch_size, int) and train.batch_size % train.micro_batch_size:
        yield (
            f"train.batch_size={train.batch_size}: not divisible by "
            f"train.micro_batch_size={train.micro_batch_size}; choose a multiple of it"
        )
    if config.dataset.device_cache is True and config.dataset.cache == "none":
        yield "dataset.device_cache=true: copies prepared images, and dataset.cache=none keeps none; use disk or auto"
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
    if config.evaluation.metrics and config.evaluation.num_samples < FEWEST_IMAGES:
        yield (
            f"evaluation.num_samples={config.evaluation.num_samples}: too few for evaluation.metrics; "
            f"use at least {FEWEST_IMAGES}"
        )
    if isinstance(config.ema, WarmupEMA) and config.ema.min_decay > config.ema.max_decay:
        yield f"ema.min_decay={config.ema.min_decay}: above ema.max_decay={config.ema.max_decay}; lower it"
    if isinstance(config.optimizer, SGD) and config.optimizer.nesterov and config.optimizer.momentum == 0:
        yield "optimizer.nesterov=true: needs momentum; set optimizer.momentum=0.9"
    yield from argument_mistakes(config.sampler)
    yield from objective_mistakes(config)


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
    groups = model.attn_norm_num_groups
    if groups and model.mid_block_type and model.block_out_channels[-1] % groups:
        yield (
            f"model.attn_norm_num_groups={groups}: does not divide the {model.block_out_channels[-1]} channels of the "
            "middle block; use a divisor"
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


TRAINING = Schema(Config, cross_field_mistakes)


def _resolution_text(resolution: tuple[int, int]) -> str:
    height, width = resolution
    return str(height) if height == width else f"[{height},{width}]"
