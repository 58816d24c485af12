"""What the programs share: finding the configs, finding every mistake, telling it."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_train.config import Config, inspect, parse
from ddpm_train.mistakes import Mistakes, did_you_mean

EXIT_MISTAKE = 2

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the configs inside the package; a checkout has them beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def run(job: Callable[[Config, dict[str, Any]], None], preflight: Callable[[Config], Iterator[str]]) -> None:
    """Compose the command line's config with Hydra and hand it to `job`, typed and checked.

    Args:
        job: takes the config, and the same as plain values to be saved with the run.
        preflight: yields a line for each mistake that only a look at the machine shows (paths, devices).
    """
    arguments = get_args_parser().parse_args()
    try:
        if not (arguments.help or arguments.hydra_help or arguments.cfg or arguments.info):
            _check(arguments, preflight)
    except Mistakes as mistakes:
        tell(mistakes)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def hydra_job(composed: DictConfig) -> None:
        values = _plain(composed)
        try:
            job(parse(values), values)
        except Mistakes as mistakes:
            tell(mistakes)

    hydra_job()


def tell(mistakes: Mistakes) -> None:
    """Print the mistakes once, whatever the number of processes, and leave with code 2."""
    if os.environ.get("RANK", "0") == "0":
        for line in mistakes.lines:
            print(f"error: {line}", file=sys.stderr)
    sys.exit(EXIT_MISTAKE)


def _check(arguments: argparse.Namespace, preflight: Callable[[Config], Iterator[str]]) -> None:
    """Find every mistake of a command line at once; Hydra alone would stop at the first.

    Raises:
        Mistakes: a line for each.
    """
    if arguments.config_path or (arguments.config_name and not arguments.config_dir):
        directory, name = Path(arguments.config_path or CONF).resolve(), arguments.config_name or "config"
    else:
        directory, name = CONF, arguments.config_name or "config"
    if not directory.is_dir():
        raise Mistakes(f"--config-path={directory}: no such folder")
    if arguments.config_dir and not Path(arguments.config_dir).is_dir():
        raise Mistakes(f"--config-dir={arguments.config_dir}: no such folder")
    extra = [f"hydra.searchpath=[file://{Path(arguments.config_dir).resolve()}]"] if arguments.config_dir else []
    with initialize_config_dir(str(directory), version_base="1.3"):
        lines, overrides = _sort_overrides(arguments.overrides, name, extra)
        try:
            values, defaults = (_plain(compose(name, [*extra, *chosen])) for chosen in (overrides, []))
        except (HydraException, OmegaConfBaseException) as error:
            raise Mistakes(*lines, str(error).splitlines()[0]) from None
    config, found = inspect(values, defaults)
    if lines := [*lines, *found, *(preflight(config) if config else [])]:
        raise Mistakes(*lines)


def _plain(composed: DictConfig) -> dict[str, Any]:
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    return values


def _sort_overrides(overrides: list[str], name: str, extra: list[str]) -> tuple[list[str], list[str]]:
    """Split overrides into the lines that tell what is wrong with some and the rest that can be composed.

    Of a sweep (`a=1,2`) the first choice stands for all; group names are checked in every choice.
    """
    lines, groups, keys = [], [], []
    loader = GlobalHydra.instance().config_loader()
    known_groups = [group for group in loader.list_groups("") if group != "hydra"]
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            lines.append(f"{text}: not of the form key=value (quote values with special characters)")
            continue
        if override.key_or_group.startswith("hydra"):
            extra.append(text)
        elif override.key_or_group in known_groups and not isinstance(override.value(), dict):
            options = loader.get_group_options(override.key_or_group)
            wrong = [choice for choice in _group_choices(override) if choice not in options]
            lines += [
                f"{override.key_or_group}={choice}: no such config;{did_you_mean(choice, options)} "
                f"(one of {', '.join(options)})"
                for choice in wrong
            ]
            if not wrong:
                groups.append(_first_choice(override, text))
        else:
            keys.append((override, _first_choice(override, text)))
    try:
        base = compose(name, [*extra, *groups])
    except HydraException as error:
        raise Mistakes(*lines, str(error).splitlines()[0]) from None
    known = [*_flat_keys(base), *known_groups]
    usable = list(groups)
    for override, text in keys:
        key = override.key_or_group
        if override.is_add() or _exists(base, key):
            usable.append(text)
        else:
            lines.append(f"{key}: no such key;{did_you_mean(key, known) or ' see --help and --cfg job'}")
    return lines, usable


def _group_choices(override: Override) -> list[str]:
    value = override.value()
    if override.is_sweep_override():
        return list(_choices(override))
    if value is None:
        return []
    return [str(choice) for choice in value] if isinstance(value, list) else [str(value)]


def _choices(override: Override) -> Iterator[str]:
    return (str(choice) for choice in override.sweep_string_iterator())


def _first_choice(override: Override, text: str) -> str:
    if not override.is_sweep_override():
        return text
    return f"{override.input_line.split('=')[0]}={next(_choices(override))}"  # type: ignore[union-attr]


def _exists(config: DictConfig, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in list(node):  # `in` denies keys that are still ???
            return False
        node = node._get_node(part)
    return True


def _flat_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        node = config._get_node(key)
        yield f"{prefix}{key}"
        if isinstance(node, DictConfig):
            yield from _flat_keys(node, f"{prefix}{key}.")
