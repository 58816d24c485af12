"""Composes one job's overrides with Hydra, and finds all that are wrong where Hydra would stop at the first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path
from typing import Any, ClassVar

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
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

from ddpm_train.config.elsewhere import Choices, RunConfig
from ddpm_train.config.grammar import SEVERAL_AT_ONCE, parse
from ddpm_train.config.mistakes import Mistakes, no_such_choice, no_such_key
from ddpm_train.config.overrides import is_hydra, is_open, opened
from ddpm_train.config.own import Own, Registered
from ddpm_train.config.parts import CONF
from ddpm_train.config.schema import dotted

# A name that no file can have, a group that is given a list, and a nested value too deep come as Python's own errors.
NOT_COMPOSED = (
    *(HydraException, OmegaConfBaseException, yaml.YAMLError),
    *(ValueError, OSError, AssertionError, TypeError, RecursionError),
)


@dataclass(frozen=True)
class Composition:
    """What became of one job's overrides: those with a mistake are left out."""

    mistakes: list[str]
    composed: DictConfig | None = None  # with Hydra's own section; None: nothing could be composed
    values: dict[str, Any] = field(default_factory=dict)  # the same, plain, without that section
    defaults: Callable[[], dict[str, Any]] = dict  # the values with no more than the group choices
    homeless: Mapping[str, str] = field(default_factory=dict)  # of an override that is left out, the value it is below

    def homeless_mistakes(self, told: Sequence[str] = ()) -> Iterator[str]:
        """A line for each override below a value, unless that value itself is told to be a mistake."""
        for text, key in self.homeless.items():
            if not any(line.startswith(f"{key}=") for line in told):
                yield f"{text}: no such key; {key} is no section of keys"


@contextmanager
def open_configs(path: Path = CONF, config_dir: Path | None = None) -> Iterator[None]:
    """Let Hydra find configs in these folders. Afterwards it is as it was, for whoever else uses it."""
    for plugin in (Own, Choices, RunConfig, Registered, _Folders):  # which also brings the choices of Hydra's plugins
        Plugins.instance().register(plugin)
    hydra, config, store = GlobalHydra.instance(), HydraConfig.instance(), ConfigStore.instance()
    base = VersionBase.instance()
    before = hydra.hydra, config.cfg, _shelves(store.repo), base.version_base
    hydra.clear()
    _Folders.opened = path.resolve(), config_dir
    try:
        with initialize_config_dir(str(path.resolve()), version_base="1.3"):
            yield
    finally:
        _Folders.opened = None
        GlobalHydra.instance().hydra, config.cfg, store.repo, base.version_base = before


def _shelves(stored: dict[str, Any]) -> dict[str, Any]:
    """A copy of what Hydra's store keeps where, of which the configs themselves are the same."""
    return {name: _shelves(kept) if isinstance(kept, dict) else kept for name, kept in stored.items()}


class _Folders(SearchPathPlugin):
    """How Hydra reads the folders of configs while they are open: those that are not ours as values."""

    opened: ClassVar[tuple[Path, Path | None] | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.opened is None:  # somebody else's use of Hydra
            return
        path, config_dir = self.opened
        for element in search_path.get_path():
            if element.provider == "main":
                element.path = f"{(Own if path == CONF.resolve() else RunConfig).scheme()}://{path}"
        if config_dir is not None:
            search_path.append("command-line", f"{Choices.scheme()}://{config_dir.resolve()}")
        search_path.append("ddpm-train", f"{Registered.scheme()}://")


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
        composed, values = hydra_compose(name, [*certain, *overrides])
    except NOT_COMPOSED:
        return _diagnose(name, certain, parsed)
    groups = _groups(composed)
    chosen = [override for override in parsed if is_hydra(override) or _is_choice(override, groups)]
    keys = [override for override in parsed if override not in chosen]
    if any(_choice_mistakes(chosen)) or any(_key_mistake(override, values, groups) for override in keys):
        return _diagnose(name, certain, parsed)
    without_keys = [*certain, *(str(override.input_line) for override in chosen)]
    return Composition([], composed, values, lambda: hydra_compose(name, without_keys)[1])


def _diagnose(name: str, certain: list[str], overrides: Sequence[Override]) -> Composition:
    """Find out which of the overrides are wrong, and compose the others."""
    lines: list[str] = []
    homeless: dict[str, str] = {}
    try:
        composed, defaults = _compose_or_blame(name, certain, [])
        groups = _groups(composed)
        chosen = [override for override in overrides if is_hydra(override) or _is_choice(override, groups)]
        lines += _choice_mistakes(chosen)
        wrong = [override for override in chosen if any(_choice_mistakes([override]))]
        right = [str(override.input_line) for override in chosen if override not in wrong]
        if right:
            composed, defaults = _compose_or_blame(name, certain, right)
        usable = []
        for override in overrides:
            if override in chosen or override.key_or_group.split(".")[0] in [group.key_or_group for group in wrong]:
                continue  # which keys there are depends on the choice
            if value_above := _value_above(override.key_or_group, defaults):
                homeless[str(override.input_line)] = value_above
            elif mistake := _key_mistake(override, defaults, groups):
                lines.append(mistake)
            else:
                usable.append(str(override.input_line))
        values = defaults
        if usable:
            composed, values = _compose_or_blame(name, [*certain, *right], usable)
    except Mistakes as mistakes:
        return Composition([*lines, *mistakes.lines])
    return Composition(lines, composed, values, lambda: defaults, homeless)


def _compose_or_blame(name: str, certain: Sequence[str], suspects: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The same as `hydra_compose`.

    Raises:
        Mistakes: a line for each suspect that Hydra cannot compose, or one for all if each alone can be.
    """
    try:
        return hydra_compose(name, [*certain, *suspects])
    except NOT_COMPOSED as error:
        lines = blame(name, certain, suspects) or [f"--config-name={name}: {_first_line(error)}"]
        raise Mistakes(*lines) from None


def hydra_compose(name: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """What Hydra makes of the overrides, and its values without Hydra's own section.

    Raises:
        NOT_COMPOSED: from Hydra.
    """
    composed = compose(name, list(map(opened, overrides)), return_hydra_config=True)
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
            elif isinstance(reason.__cause__, GrammarParseError):
                lines.append(f"{text}: ${{ begins a reference to another key, as ${{name}} is one; leave it out")
            else:
                lines.append(f"{text}: {_first_line(reason, text)}")
    return lines


def _first_line(error: BaseException, text: str = "") -> str:
    """What an error says; `text` is the override that stands before it."""
    if not str(error) and error.__cause__ is not None:
        return _first_line(error.__cause__, text)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, RecursionError):
        return "leads back to itself, in its list of defaults or in its values"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if (key := getattr(error, "full_key", None)) and not text.startswith(key):
        first = f"{key}: {first}"
    refers = isinstance(error, InterpolationResolutionError)
    return f"{first}; in a value, ${{name}} stands for the value of the key of that name" if refers else first


def _groups(composed: DictConfig) -> list[str]:
    """The groups that the config chooses from. Hydra does not list those of several choices."""
    several = [group for group in SEVERAL_AT_ONCE if group in composed and options(group)]
    return [*several, *(group for group in composed.hydra.runtime.choices if not group.startswith("hydra/"))]


def _is_choice(override: Override, groups: Sequence[str]) -> bool:
    value = override.value()
    if isinstance(value, list):
        return bool(options(override.key_or_group))
    return override.key_or_group in groups and not isinstance(value, dict)


def _choice_mistakes(chosen: Sequence[Override]) -> Iterator[str]:
    for override in filterfalse(is_hydra, chosen):
        group, value = override.key_or_group, override.value()
        if override.is_delete():
            yield f"~{group}: every run needs one; choose another with {group}=…"
        elif isinstance(value, list) and group not in SEVERAL_AT_ONCE:
            yield f"{override.input_line}: takes one choice, not a list; write {group}={value[0] if value else '…'}"
        else:
            known = options(group)
            for choice in value if isinstance(value, list) else [value]:
                choice = "null" if choice is None else str(choice)
                if choice not in known:
                    yield no_such_choice(group, choice, known)


def _value_above(key: str, values: Any) -> str | None:
    """The key above this one that holds a value, or nothing, where a section should be."""
    names = key.split(".")
    for depth, name in enumerate(names[:-1], start=1):
        if name not in values:
            return None
        if not isinstance(values := values[name], Mapping):
            return ".".join(names[:depth])
    return None


def _key_mistake(override: Override, values: Mapping[str, Any], groups: Sequence[str]) -> str | None:
    key, text = override.key_or_group, override.input_line
    group, _, last = key.rpartition(".")
    if group in groups and last == "name":
        return f"{text}: chosen with its group; write {group}={override.value()}"
    if is_open(key) and not override.is_delete():
        return None
    known = [*(key for key, _ in dotted(values)), *groups]
    if key not in known and not override.is_add():
        return no_such_key(str(text), key, known)
    if override.is_delete() and not key.startswith("tracker."):
        return f"{text}: every run needs this key; give it a value"
    if isinstance(values.get(key), Mapping) and options(key) and not isinstance(override.value(), dict):
        return f"{text}: must be a section of keys"  # Hydra would look for a choice
    return None
