"""From what a command or a Python call says to checked configs: composed once, with every mistake in them told."""

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from hydra.core.override_parser.types import Override

from ddpm_train.config.compose import compose_job, open_configs
from ddpm_train.config.elsewhere import unresolved_mistakes
from ddpm_train.config.grammar import as_one_value
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.overrides import (
    choice_mistakes,
    discrete,
    read_overrides,
    secret_mistakes,
    swept_text_mistakes,
)
from ddpm_train.config.parts import CONF
from ddpm_train.config.schema import MISSING, Schema, dotted_values

C = TypeVar("C")
_MOST_FORGOTTEN = 5  # keys in a config that builds on the program's own


@dataclass(frozen=True)
class Program(Generic[C]):
    """What sets one program's config and command line apart from another's.

    Attributes:
        name: how a user calls it.
        config_name: its config in `conf/`.
        output_key: the key that names the folder of a run.
        naming: how to name the runs of a sweep apart, with {} for what varies.
        preflight: yields a line for each mistake that only a look at the machine shows (paths, devices).
        resolve: completes a composed config by what it points to, given the overrides; also returns mistakes.
        settle: completes a checked config, typed and as plain values, by what must be loaded, given the overrides.
            Raises `Mistakes`.
        trial: yields a line for each mistake that only a try shows, where nothing else is wrong, of a config, typed and
            as plain values. May import torch.
    """

    name: str
    config_name: str
    output_key: str
    naming: str
    schema: Schema[C]
    preflight: Callable[[C], Iterator[str]]
    resolve: Callable[[dict[str, Any], Sequence[str]], tuple[dict[str, Any], list[str]]] = lambda values, overrides: (
        values,
        [],
    )
    settle: Callable[[C, dict[str, Any], Sequence[str]], dict[str, Any]] = lambda config, values, overrides: values
    trial: Callable[[C, dict[str, Any]], Iterator[str]] = lambda config, values: iter(())


def compose_configs(
    program: Program[C],
    overrides: Sequence[str],
    *,
    name: str | None = None,
    path: Path = CONF,
    config_dir: Path | None = None,
    multirun: bool = False,
    before_trial: Callable[[], None] = lambda: None,
) -> list[tuple[C, dict[str, Any]]]:
    """The config that the overrides describe, typed and checked, and the same as plain values.

    Args:
        name: of the config in `path`; None: the program's.
        config_dir: a folder with further choices.
        multirun: whether overrides may have several values; then there is a config for each combination.
        before_trial: called before what may take seconds: a dataset to be loaded, and the trial, which imports torch.

    Raises:
        Mistakes: a line for each.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise Mistakes("the current folder has been deleted; change to one that exists (cd)") from None
    if sys.platform == "linux" and not os.path.exists("/proc/self/stat"):  # psutil takes every process for dead
        raise Mistakes("/proc: not mounted, so that memory and processes cannot be seen; mount -t proc proc /proc")
    parsed, lines = read_overrides(overrides, config_dir, multirun=multirun)
    lines += choice_mistakes(parsed, multirun=multirun)
    jobs = list(itertools.product(*(texts for override in parsed if (texts := _looked_at(override, multirun)))))
    with open_configs(path, config_dir):
        checked, further = check_jobs(program, name or program.config_name, jobs)
    configs = [(config, values) for config, values in checked if config is not None]
    lines += swept_text_mistakes(parsed, further)
    if lines or further or len(configs) < len(jobs):
        raise Mistakes(*dict.fromkeys(lines + further))
    before_trial()
    configs = [_settled(program, *each, overrides) for each, overrides in zip(configs, jobs, strict=True)]
    try_out(program, configs)
    return configs


def _settled(
    program: Program[C], config: C, values: dict[str, Any], overrides: Sequence[str]
) -> tuple[C, dict[str, Any]]:
    settled = program.settle(config, values, overrides)
    if settled is values:
        return config, values
    checked, lines = program.schema.check(settled, lambda: values, program.preflight)
    if checked is None:
        raise Mistakes(*lines)
    return checked, settled


def _looked_at(override: Override, multirun: bool) -> list[str]:
    """The overrides that are checked; where nothing is swept one of several, beside the line that says so."""
    if multirun or not override.is_sweep_override():
        return discrete(override)
    one = as_one_value(override)
    return [one] if one else discrete(override)[:1]


def try_out(program: Program[C], configs: Iterable[tuple[C, dict[str, Any]]]) -> None:
    """Raises `Mistakes`, a line for each that only a try of these configs shows."""
    if lines := dict.fromkeys(line for config, values in configs for line in program.trial(config, values)):
        raise Mistakes(*lines)


def check_jobs(
    program: Program[C], name: str, jobs: Sequence[Sequence[str]], preflight: Callable[[C], Iterator[str]] | None = None
) -> tuple[list[tuple[C | None, dict[str, Any]]], list[str]]:
    """Compose and check jobs, each of its own overrides.

    Args:
        preflight: in place of the program's own.

    Returns:
        Of each job the config, typed (None: it has a mistake) and as plain values (empty: it cannot be composed); and
        a line for each mistake in any of them.
    """
    checked: list[tuple[C | None, dict[str, Any]]] = []
    lines: list[str] = []
    for number, overrides in enumerate(jobs):
        composition = compose_job(name, overrides, number)
        values, config = composition.values, None
        further: list[str] = []
        lines += composition.mistakes
        lines += secret_mistakes(f"{key}={value}" for key, value in dotted_values(values))
        lines += unresolved_mistakes(values)
        if values:
            values, mistakes = program.resolve(values, overrides)
            config, further = program.schema.check(values, composition.defaults, preflight or program.preflight)
            lines += mistakes + further
        lines += composition.homeless_mistakes(further)
        checked.append((config, {} if composition.mistakes else values))
    if name != program.config_name and sum(line.endswith(MISSING) for line in lines) > _MOST_FORGOTTEN:
        base = program.config_name
        return checked, [f"--config-name={name}: has few of the keys; begin its file with `defaults: [{base}, _self_]`"]
    lines += _same_folder_mistakes(program, jobs, [values for _, values in checked])
    return checked, lines


def _same_folder_mistakes(
    program: Program[Any], jobs: Sequence[Sequence[str]], configs: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """A line for each folder of several runs, of which each would go on where the one before it stopped."""
    folders = [config.get(program.output_key) for config in configs]
    for folder in {folder: None for folder in folders if folder is not None and folders.count(folder) > 1}:
        swept = [texts[0].split("=")[0].lstrip("+") for texts in zip(*jobs, strict=True) if len(set(texts)) > 1]
        values = (f"hydra:runtime.choices.{name}" if isinstance(configs[0].get(name), dict) else name for name in swept)
        name = "_".join(["run", *(f"${{{value}}}" for value in values)])
        yield (
            f"{program.output_key}={folder}: the same for {folders.count(folder)} runs of the sweep; "
            f"name them apart, such as {program.naming.format(name)}"
        )
