"""From what a command or a Python call says to a checked config: composed once, with every mistake in it told."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ddpm_train.config.compose import compose_job, open_configs
from ddpm_train.config.extensions import import_extensions
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.overrides import choice_mistakes, parse_overrides, token_mistakes
from ddpm_train.config.parts import CONF
from ddpm_train.config.schema import Schema, dotted_values

C = TypeVar("C")


def _unchanged(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    return values, []


@dataclass(frozen=True)
class Program(Generic[C]):
    """What a program's config is, and how it is checked.

    Attributes:
        config_name: its config in `conf/`.
        preflight: yields a line for each mistake that only a look at the machine shows (paths, devices).
        resolve: completes a composed config by what it points to, given the overrides; also returns mistakes.
    """

    config_name: str
    schema: Schema[C]
    preflight: Callable[[C], Iterator[str]]
    resolve: Callable[[dict[str, Any], Sequence[str]], tuple[dict[str, Any], list[str]]] = lambda values, _: (
        values,
        [],
    )


@dataclass(frozen=True)
class Checked(Generic[C]):
    """A job's config, typed and as plain values."""

    config: C | None  # None: it has a mistake
    values: dict[str, Any]  # empty: it could not be composed


def compose_config(
    program: Program[C],
    overrides: Sequence[str],
    *,
    name: str | None = None,
    path: Path = CONF,
    config_dir: Path | None = None,
) -> tuple[C, dict[str, Any]]:
    """The config that the overrides describe, typed and checked, and the same as plain values.

    Args:
        name: of the config in `path`; None: the program's.
        config_dir: a folder with further choices.

    Raises:
        Mistakes: a line for each.
    """
    parsed, lines = parse_overrides(overrides)
    import_extensions(parsed, config_dir)
    lines += choice_mistakes(parsed, multirun=False)
    single = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    with open_configs(path, config_dir):
        (checked,), further = check_jobs(program, name or program.config_name, [single])
    if further or lines or checked.config is None:
        raise Mistakes(*dict.fromkeys(lines + further))
    return checked.config, checked.values


def check_jobs(
    program: Program[C], name: str, jobs: Sequence[Sequence[str]], preflight: Callable[[C], Iterator[str]] | None = None
) -> tuple[list[Checked[C]], list[str]]:
    """Compose and check jobs, each of its own overrides.

    Args:
        preflight: in place of the program's own.

    Returns:
        What became of each, and a line for each mistake in any of them.
    """
    checked, lines = [], []
    for number, overrides in enumerate(jobs):
        composition = compose_job(name, overrides, number)
        values, config = composition.values, None
        lines += composition.mistakes
        lines += token_mistakes(f"{key}={value}" for key, value in dotted_values(values))
        if values:
            values, mistakes = program.resolve(values, overrides)
            config, further = program.schema.check(values, composition.defaults, preflight or program.preflight)
            lines += mistakes + further
        checked.append(Checked(config, {} if composition.mistakes else values))
    return checked, lines
