"""Composes one job's overrides with Hydra, and finds all that are wrong where Hydra would stop at the first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_train.config.mistakes import did_you_mean
from ddpm_train.config.overrides import OPEN_SECTIONS, is_hydra, is_open, opened, parse
from ddpm_train.config.parts import CONF
from ddpm_train.config.samplers import SAMPLERS
from ddpm_train.config.schema import dotted

C = TypeVar("C")
NOT_COMPOSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
_SEVERAL_AT_ONCE = ("tracker", "experiment")


@dataclass(frozen=True)
class Composition:
    """What became of one job's overrides: those with a mistake are left out."""

    mistakes: list[str]
    composed: DictConfig | None = None  # with Hydra's own section; None: nothing could be composed
    values: dict[str, Any] = field(default_factory=dict)  # the same, plain, without that section
    defaults: Callable[[], dict[str, Any]] = dict  # the values with no more than the group choices


@contextmanager
def open_configs(path: Path = CONF, config_dir: Path | None = None) -> Iterator[None]:
    """Let Hydra find configs in these folders. Whoever uses Hydra besides us finds it afterwards as it was."""
    hydra, config, version_base = GlobalHydra.instance(), HydraConfig.instance(), VersionBase.instance()
    before = hydra.hydra, config.cfg, version_base.version_base
    hydra.clear()
    for sampler in SAMPLERS:
        ConfigStore.instance().store(group="sampler", name=sampler, node={"name": sampler}, provider="ddpm-train")
    Plugins.instance().register(_ConfigDir)
    _ConfigDir.path = config_dir
    try:
        with initialize_config_dir(str(path.resolve()), version_base="1.3"):
            yield
    finally:
        _ConfigDir.path = None
        GlobalHydra.instance().hydra, config.cfg, version_base.version_base = before


class _ConfigDir(SearchPathPlugin):
    """Where Hydra looks besides, while configs are open."""

    path: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.path is not None:
            search_path.append("command-line", f"file://{self.path.resolve()}")


def options(group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
    """The choices of a group in the open configs, or the groups within it; the groups of all for ""."""
    sources = GlobalHydra.instance().config_loader().get_sources()
    return sorted({name for source in sources if source.is_group(group) for name in source.list(group, kind)})


def compose_job(name: str, overrides: Sequence[str], number: int = 0) -> Composition:
    """Compose one job's overrides.

    Args:
        name: of the config, in the open ones.
        number: of the job in its sweep.
    """
    parsed = [parse(text) for text in overrides]
    certain = [f"hydra.job.num={number}"]
    try:
        composed, values = hydra_compose(name, [*certain, *map(opened, overrides)])
    except NOT_COMPOSED:
        return _diagnose(name, certain, parsed)
    choices = _choices(composed)
    chosen = [override for override in parsed if is_hydra(override) or _is_choice(override, choices)]
    keys = [override for override in parsed if override not in chosen]
    if any(_choice_mistakes(chosen)) or any(_key_mistake(override, values, choices) for override in keys):
        return _diagnose(name, certain, parsed)
    without_keys = [*certain, *(str(override.input_line) for override in chosen)]
    return Composition([], composed, values, lambda: hydra_compose(name, without_keys)[1])


def _diagnose(name: str, certain: list[str], overrides: Sequence[Override]) -> Composition:
    """Find out which of the overrides are wrong, and compose the others."""
    try:
        composed, values = hydra_compose(name, certain)
    except NOT_COMPOSED as error:
        return Composition([_unexplained(name, error)])
    choices = _choices(composed)
    chosen = [override for override in overrides if is_hydra(override) or _is_choice(override, choices)]
    lines = list(_choice_mistakes(chosen))
    wrong = [override for override in chosen if any(_choice_mistakes([override]))]
    right = [str(override.input_line) for override in chosen if override not in wrong]
    try:
        if right:
            composed, values = hydra_compose(name, [*certain, *right])
    except NOT_COMPOSED as error:
        return Composition(lines + (blame(name, certain, right) or [_unexplained(name, error)]))
    defaults, usable = values, []
    for override in overrides:
        if override in chosen or override.key_or_group.split(".")[0] in [group.key_or_group for group in wrong]:
            continue  # which keys there are depends on the choice
        if mistake := _key_mistake(override, defaults, choices):
            lines.append(mistake)
        else:
            usable.append(opened(str(override.input_line)))
    try:
        if usable:
            composed, values = hydra_compose(name, [*certain, *right, *usable])
    except NOT_COMPOSED as error:
        return Composition(lines + (blame(name, [*certain, *right], usable) or [_unexplained(name, error)]))
    return Composition(lines, composed, values, lambda: defaults)


def hydra_compose(name: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """What Hydra makes of the overrides, and its values without Hydra's own section.

    Raises:
        NOT_COMPOSED: from Hydra.
    """
    composed = compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(composed)  # for ${hydra:…} in values
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    values: dict[str, Any] = OmegaConf.to_container(own, resolve=True)  # type: ignore[assignment]
    return composed, values


def blame(name: str, certain: Sequence[str], suspects: Sequence[str]) -> list[str]:
    """A line for each override that Hydra cannot compose with what is certain."""
    lines = []
    for text in suspects:
        try:
            hydra_compose(name, [*certain, text])
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


def _choices(composed: DictConfig) -> list[str]:
    """The groups that the config chooses from. Hydra does not list those of several choices."""
    several = [group for group in _SEVERAL_AT_ONCE if group in composed and options(group)]
    return [*several, *(group for group in composed.hydra.runtime.choices if not group.startswith("hydra/"))]


def _is_choice(override: Override, choices: Sequence[str]) -> bool:
    value = override.value()
    if isinstance(value, list):
        return bool(options(override.key_or_group))
    return override.key_or_group in choices and not isinstance(value, dict)


def _choice_mistakes(chosen: Sequence[Override]) -> Iterator[str]:
    for override in filterfalse(is_hydra, chosen):
        group, value = override.key_or_group, override.value()
        if override.is_delete():
            yield f"~{group}: every run needs one; choose another with {group}=…"
        elif isinstance(value, list) and group not in _SEVERAL_AT_ONCE:
            yield f"{override.input_line}: takes one choice, not a list; write {group}={value[0] if value else '…'}"
        else:
            known = options(group)
            for choice in value if isinstance(value, list) else [value]:
                choice = "null" if choice is None else str(choice)
                if choice not in known:
                    remedy = did_you_mean(choice, known)
                    yield f"{group}={choice}: no such config;{remedy} (one of {', '.join(known)})"


def _key_mistake(override: Override, values: Mapping[str, Any], choices: Sequence[str]) -> str | None:
    key, text = override.key_or_group, override.input_line
    group, _, last = key.rpartition(".")
    if group in choices and last == "name":
        return f"{text}: chosen with its group; write {group}={override.value()}"
    if is_open(key) and not override.is_delete():
        return None
    known = [*dotted(values), *choices]
    if key not in known and not override.is_add():
        return f"{text}: no such key;{did_you_mean(key, known) or ' see --cfg job'}"
    if override.is_delete() and not key.startswith("tracker."):
        return f"{text}: every run needs this key; give it a value"
    if key in OPEN_SECTIONS and not isinstance(override.value(), dict):
        return f"{text}: must be a section of keys"
    return None
