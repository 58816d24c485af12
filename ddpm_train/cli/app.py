"""What the programs share: finding the configs, finding every mistake, telling it."""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _run_hydra, create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ddpm_train import exit_codes
from ddpm_train.cli import cpu_processes
from ddpm_train.config import Config
from ddpm_train.mistakes import Mistakes, did_you_mean
from ddpm_train.validation import dotted, inspect, parse

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the configs inside the package; a checkout has them beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

_NOT_COMPOSED = (HydraException, OmegaConfBaseException, yaml.YAMLError)
_SEVERAL_AT_ONCE = ("tracker", "experiment")

Preflight = Callable[[Config], Iterator[str]]


def run(job: Callable[[Config, dict[str, Any]], None], preflight: Preflight) -> None:
    """Compose the command line's config with Hydra and hand it to `job`, typed and checked.

    Args:
        job: takes the config, and the same as plain values to be saved with the run.
        preflight: yields a line for each mistake that only a look at the machine shows (paths, devices).
    """
    parser = get_args_parser()
    arguments, unknown = parser.parse_known_args()
    # argparse takes no overrides after a flag that stands between them.
    arguments.overrides += [text for text in unknown if not text.startswith("-")]
    # Hydra would look for a relative folder beside this file.
    arguments.config_path = str(Path(arguments.config_path or CONF).resolve())
    arguments.config_name = (arguments.config_name or "config").removesuffix(".yaml")

    def hydra_job(composed: DictConfig) -> None:
        values = _plain(composed)
        try:
            job(parse(values), values)
        except Mistakes as mistakes:
            tell(mistakes)

    version.setbase("1.3")
    try:
        _check(arguments, unknown, preflight)
    except Mistakes as mistakes:
        tell(mistakes)
    # What the decorator `hydra.main` does, which would parse the command line once more.
    _run_hydra(arguments, parser, hydra_job, arguments.config_path, arguments.config_name)


def tell(mistakes: Mistakes) -> None:
    """Print the mistakes once, whatever the number of processes, and leave with code 2."""
    if os.environ.get("RANK", "0") == "0":
        for line in mistakes.lines:
            print(f"error: {line}", file=sys.stderr)
    sys.exit(exit_codes.MISTAKE)


def _check(arguments: argparse.Namespace, unknown: list[str], preflight: Preflight) -> None:
    """Find every mistake of a command line at once; Hydra alone would stop at the first.

    Raises:
        Mistakes: a line for each.
    """
    if lines := list(_flag_mistakes(arguments, unknown)):
        raise Mistakes(*lines)
    if arguments.help or arguments.hydra_help or arguments.shell_completion:
        return
    lines, jobs = _jobs(arguments.overrides, arguments.multirun)
    _open_configs(arguments.config_path, arguments.config_dir)
    compositions = [
        _compose_job(arguments.config_name, [f"hydra.job.num={number}"], overrides)
        for number, overrides in enumerate(jobs)
    ]
    GlobalHydra.instance().clear()
    for composition in compositions:
        lines += composition.mistakes
        if composition.values and not (arguments.cfg or arguments.info):
            lines += inspect(composition.values, composition.defaults, preflight)
    if arguments.multirun:
        lines += _sweep_mistakes(jobs, [composition.values for composition in compositions if not composition.mistakes])
    if lines:
        raise Mistakes(*dict.fromkeys(lines))


def _open_configs(config_path: str, config_dir: str | None) -> None:
    """What `hydra.main` does with the two flags, for `compose`."""
    places = create_config_search_path(config_path)
    if config_dir:
        places.prepend("command-line", f"file://{Path(config_dir).resolve()}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("app", places)


def _flag_mistakes(arguments: argparse.Namespace, unknown: list[str]) -> Iterator[str]:
    known = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    for flag in (text for text in unknown if text.startswith("-")):
        yield f"{flag}: no such flag;{did_you_mean(flag.split('=')[0], known) or ' see --help'}"
    if arguments.experimental_rerun:
        yield "--experimental-rerun: not for these runs; use --config-path RUN --config-name config"
    folders = {"--config-path": arguments.config_path, "--config-dir": arguments.config_dir}
    missing = [flag for flag, folder in folders.items() if folder and not Path(folder).is_dir()]
    for flag in missing:
        yield f"{flag}={folders[flag]}: no such folder"
    names = [path.stem for folder in folders.values() if folder for path in Path(folder).glob("*.yaml")]
    if not missing and arguments.config_name not in names:
        places = " or ".join(folder for folder in folders.values() if folder)
        yield (
            f"--config-name={arguments.config_name}: no such file in {places};"
            f"{did_you_mean(arguments.config_name, names)}"
        ).rstrip(";")
    if arguments.multirun and (count := cpu_processes.num_processes()) > 1:
        yield f"--multirun: each of {count} processes would sweep; start a launch for each choice, or sweep without one"


def _jobs(overrides: list[str], multirun: bool) -> tuple[list[str], list[tuple[str, ...]]]:
    """The lines for overrides that cannot be read, and the others as each job of a sweep gets them."""
    lines, choices = [], []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            lines.append(f"{text}: not of the form key=value (quote values with special characters)")
            continue
        if not override.is_sweep_override():
            choices.append([text])
        elif not override.is_discrete_sweep():
            lines.append(f"{text}: a sweep needs choices; write {override.key_or_group}=A,B or range(A,B)")
        elif not multirun:
            lines.append(f"{text}: several values; add --multirun to try each, or quote it if it is one text")
        else:
            key = override.get_key_element()
            choices.append([f"{key}={choice}" for choice in override.sweep_string_iterator()])
    return lines, list(itertools.product(*choices))


def _sweep_mistakes(jobs: list[tuple[str, ...]], configs: list[dict[str, Any]]) -> Iterator[str]:
    """Runs that share a folder would each go on where the one before it stopped."""
    folders = [config.get("output_dir") for config in configs]
    for folder in {folder: None for folder in folders if folders.count(folder) > 1}:
        swept = [texts[0].split("=")[0].lstrip("+") for texts in zip(*jobs, strict=True) if len(set(texts)) > 1]
        values = (f"hydra:runtime.choices.{key}" if isinstance(configs[0].get(key), dict) else key for key in swept)
        name = "_".join(["run", *(f"${{{value}}}" for value in values)])
        yield (
            f"output_dir={folder}: the same for {folders.count(folder)} runs of the sweep; "
            f"name them apart, such as name='{name}'"
        )


@dataclass
class _Composition:
    """What became of one job's overrides: those with a mistake are left out."""

    mistakes: list[str]
    values: dict[str, Any] = field(default_factory=dict)  # empty: nothing could be composed
    defaults: dict[str, Any] = field(default_factory=dict)  # the same with no more than the group choices


def _compose_job(name: str, hydra: list[str], overrides: Iterable[str]) -> _Composition:
    lines, groups, keys, wrong_groups = [], list(hydra), [], []
    loader = GlobalHydra.instance().config_loader()
    known_groups = [group for group in loader.list_groups("") if group != "hydra"]
    for text in overrides:
        override = OverridesParser.create().parse_override(text)
        if override.key_or_group.split(".")[0].split("/")[0] == "hydra":
            groups.append(text)
        elif override.key_or_group not in known_groups or isinstance(override.value(), dict):
            keys.append((override, text))
        elif mistakes := list(_group_mistakes(override, loader.get_group_options(override.key_or_group))):
            lines += mistakes
            wrong_groups.append(override.key_or_group)
        else:
            groups.append(text)
    try:
        defaults = _compose(name, groups)
    except _NOT_COMPOSED as error:
        return _Composition(lines + _blame(name, hydra, groups[len(hydra) :], error))
    usable = []
    for override, text in keys:
        section = override.key_or_group.split(".")[0]
        if section in wrong_groups:
            continue  # which keys there are depends on the choice
        if mistake := _key_mistake(override, text, defaults, known_groups):
            lines.append(mistake)
        else:
            usable.append(text)
    try:
        return _Composition(lines, _compose(name, [*groups, *usable]), defaults)
    except _NOT_COMPOSED as error:
        return _Composition(lines + _blame(name, groups, usable, error))


def _compose(name: str, overrides: list[str]) -> dict[str, Any]:
    composed = compose(name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(composed)  # for ${hydra:…} in values
    with open_dict(composed):
        del composed["hydra"]
    return _plain(composed)


def _plain(composed: DictConfig) -> dict[str, Any]:
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    return values


def _blame(name: str, common: list[str], suspects: list[str], error: Exception) -> list[str]:
    """A line for each override that Hydra cannot compose with the common ones."""
    lines = []
    for text in suspects:
        try:
            _compose(name, [*common, text])
        except _NOT_COMPOSED as reason:
            if text.startswith("+") and "Multiple values" in str(reason):
                lines.append(f"{text}: chosen already; leave out the +")
            else:
                lines.append(f"{text}: {_first_line(reason)}")
    return lines or [f"--config-name={name}: {_first_line(error)}"]


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _group_mistakes(override: Override, options: list[str]) -> Iterator[str]:
    group, value = override.key_or_group, override.value()
    if override.is_delete():
        yield f"~{group}: every run needs one; choose another with {group}=…"
    elif isinstance(value, list) and group not in _SEVERAL_AT_ONCE:
        yield f"{override.input_line}: takes one choice, not a list; write {group}={value[0] if value else '…'}"
    else:
        for choice in value if isinstance(value, list) else [value]:
            choice = "null" if choice is None else str(choice)
            if choice not in options:
                yield (
                    f"{group}={choice}: no such config;{did_you_mean(choice, options)} (one of {', '.join(options)})"
                )


def _key_mistake(override: Override, text: str, defaults: dict[str, Any], known_groups: list[str]) -> str | None:
    key = override.key_or_group
    group, _, last = key.rpartition(".")
    if group in known_groups and last == "name":
        return f"{text}: chosen with its group; write {group}={override.value()}"
    known = [*dotted(defaults), *known_groups]
    if key not in known and not override.is_add():
        return f"{text}: no such key;{did_you_mean(key, known) or ' see --cfg job'}"
    if override.is_delete() and not key.startswith("tracker."):
        return f"{text}: every run needs this key; give it a value"
    return None
