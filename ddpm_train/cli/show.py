"""What a program says of itself instead of running: its help and its composed config."""

import textwrap
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import yaml
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from ddpm_train.cli.flags import Arguments
from ddpm_train.config.compose import compose_job, open_configs, options
from ddpm_train.config.metrics import METRICS
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.overrides import choice_mistakes, read_overrides, secret_mistakes
from ddpm_train.config.parts import CONF
from ddpm_train.config.program import Program
from ddpm_train.config.samplers import SAMPLERS
from ddpm_train.config.schema import dotted_values
from ddpm_train.config.text import printable


def show(program: Program[Any], arguments: Arguments) -> None:
    """Print what the flags ask for.

    Raises:
        Mistakes: there is no such config.
    """
    parsed, lines = read_overrides(arguments.overrides, arguments.config_dir)
    with open_configs(arguments.config_path, arguments.config_dir):
        if arguments.help:
            print(_help(program.name))
        else:
            lines += choice_mistakes(parsed, multirun=False)
            for line in _config(arguments, parsed, lines).splitlines():
                print(printable(line, len(line)))


def _help(name: str) -> str:
    text = yaml.safe_load((CONF / "hydra/help" / f"{name.replace('-', '_')}.yaml").read_text("utf-8"))["template"]
    groups = [group for group in options("", ObjectType.GROUP) if group != "hydra"]
    metrics = {key: f"{metric.meaning} {metric.source}".strip() for key, metric in METRICS.items()}
    return Template(text).substitute(
        GROUPS="".join(f"{group}: {', '.join(options(group))}\n" for group in groups),
        SAMPLERS=_table({key: sampler.meaning for key, sampler in SAMPLERS.items()}),
        METRICS=_table(metrics),
    )


def _table(meanings: Mapping[str, str]) -> str:
    width = max(map(len, meanings)) + 2
    lines = [textwrap.wrap(meaning, 118 - width) for meaning in meanings.values()]
    texts = [f"\n{'':{width + 2}}".join(line) for line in lines]
    return "".join(f"  {key:<{width}}{text}\n" for key, text in zip(meanings, texts, strict=True))


def _config(arguments: Arguments, overrides: Sequence[Override], lines: list[str]) -> str:
    single = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    composition = compose_job(arguments.config_name, single)
    lines += [*composition.mistakes, *composition.homeless_mistakes()]
    lines += secret_mistakes(f"{key}={value}" for key, value in dotted_values(composition.values))
    if lines or composition.composed is None:
        raise Mistakes(*dict.fromkeys(lines))
    return OmegaConf.to_yaml(OmegaConf.masked_copy(composition.composed, list(composition.values)))
