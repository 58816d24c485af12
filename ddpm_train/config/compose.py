"""Composes one job's overrides with Hydra, and finds all that are wrong where Hydra would stop at the first."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ddpm_train.config.mistakes import did_you_mean
from ddpm_train.config.schema import dotted

NOT_COMPOSED = (HydraException, OmegaConfBaseException, yaml.YAMLError)
_SEVERAL_AT_ONCE = ("tracker", "experiment")
# Sections that may hold keys which no file names: the schema knows them.
_OPEN_SECTIONS = ("sampler",)


@dataclass
class Composition:
    """What became of one job's overrides: those with a mistake are left out."""

    mistakes: list[str]
    values: dict[str, Any] = field(default_factory=dict)  # empty: nothing could be composed
    defaults: dict[str, Any] = field(default_factory=dict)  # the same with no more than the group choices


def compose_job(
    name: str, hydra: list[str], overrides: Iterable[str], own_groups: tuple[str, ...] | None
) -> Composition:
    lines, groups, keys, wrong_groups = [], list(hydra), [], []
    loader = GlobalHydra.instance().config_loader()
    known_groups = [group for group in loader.list_groups("") if group != "hydra"]
    known_groups = [group for group in known_groups if own_groups is None or group in own_groups]
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
    except NOT_COMPOSED as error:
        return Composition(lines + (blame(name, hydra, groups[len(hydra) :]) or [_unexplained(name, error)]))
    usable = []
    for override, text in keys:
        section = override.key_or_group.split(".")[0]
        if section in wrong_groups:
            continue  # which keys there are depends on the choice
        if mistake := _key_mistake(override, text, defaults, known_groups):
            lines.append(mistake)
        else:
            usable.append(opened(text))
    try:
        return Composition(lines, _compose(name, [*groups, *usable]), defaults)
    except NOT_COMPOSED as error:
        return Composition(lines + (blame(name, groups, usable) or [_unexplained(name, error)]))


def opened(text: str) -> str:
    """The override as Hydra takes it for a key of an open section."""
    return f"++{text}" if text.split("=")[0].rpartition(".")[0] in _OPEN_SECTIONS else text


def _compose(name: str, overrides: list[str]) -> dict[str, Any]:
    composed = compose(name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(composed)  # for ${hydra:…} in values
    with open_dict(composed):
        del composed["hydra"]
    return plain(composed)


def plain(composed: DictConfig) -> dict[str, Any]:
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    return values


def blame(name: str, common: list[str], suspects: list[str]) -> list[str]:
    """A line for each override that Hydra cannot compose with the common ones."""
    lines = []
    for text in suspects:
        try:
            _compose(name, [*common, text])
        except NOT_COMPOSED as reason:
            if text.startswith("+") and "Multiple values" in str(reason):
                lines.append(f"{text}: chosen already; leave out the +")
            else:
                lines.append(f"{text}: {_first_line(reason)}")
    return lines


def _unexplained(name: str, error: Exception) -> str:
    return f"--config-name={name}: {_first_line(error)}"


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
    if group in _OPEN_SECTIONS and not override.is_delete():
        return None
    if key not in known and not override.is_add():
        return f"{text}: no such key;{did_you_mean(key, known) or ' see --cfg job'}"
    if override.is_delete() and not key.startswith("tracker."):
        return f"{text}: every run needs this key; give it a value"
    return None
