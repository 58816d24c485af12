"""Configs from elsewhere are read as values: nothing in them configures Hydra, names code or asks the machine.

Whatever folder `--config-path` or `--config-dir` names may have come from somebody else: a run's config, with the very
command that its model card recommends. Only the command line and the configs of this package may say more.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource  # there is no public one of files
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, OmegaConf

from ddpm_train.config.foreign import BadFile, read_yaml
from ddpm_train.config.grammar import is_free_text
from ddpm_train.config.mistakes import as_written
from ddpm_train.config.parts import WRITTEN
from ddpm_train.config.schema import dotted_values

# A reference to another key, as whatever else begins with `${` is none.
_REFERENCE = re.compile(r"\$\{\.*[A-Za-z_][\w.-]*\}", re.ASCII)
_CHOICE = re.compile(r"(override |optional )*/?[\w.-]+(/[\w.-]+)*(@[\w.]+)?", re.ASCII)


class Choices(FileConfigSource):
    """A folder of choices of one's own, for Hydra: they may build on other choices, and describe a search."""

    @staticmethod
    def scheme() -> str:
        return "choices"

    def load_config(self, config_path: str) -> ConfigResult:
        """The config in a file.

        Raises:
            BadFile: it is none, or holds more than values.
        """
        file = Path(self.path, self._normalize_file_name(config_path))
        try:
            read_yaml(file)  # of a size and kind that Hydra's own reader may be given
        except OSError as error:
            raise BadFile(f"{file}: {error.strerror}") from None
        loaded: ConfigResult = super().load_config(config_path)
        values: dict[str, Any] = OmegaConf.to_container(loaded.config, resolve=False)  # type: ignore[assignment]
        package = loaded.header["package"] or ""
        if _is_hydras(config_path) or _is_hydras(package):
            raise BadFile(f"{file}: configures Hydra ({package or config_path}); {_REMEDY}")
        if keys := [*self._further(values), *_asking(values)]:
            raise BadFile(f"{file}: {', '.join(keys)}: {_REMEDY}")
        above = package or ".".join(Path(config_path).parent.parts)
        _keep_texts(loaded.config, values, "" if above == "_global_" else above, file.read_text("utf-8-sig"))
        return loaded

    def _further(self, values: Mapping[str, Any]) -> Iterator[str]:
        """What is no value."""
        yield from _hydra_keys(values.get("hydra", {}), also="sweeper")
        for entry in _unwritten_defaults(values):
            if not all(map(_is_choice, _names(entry))):
                yield f"defaults.{as_written(entry)}"


class RunConfig(Choices):
    """The folder of a run, for Hydra: its config says what the run is, and nothing else."""

    @staticmethod
    def scheme() -> str:
        return "run"

    def _further(self, values: Mapping[str, Any]) -> Iterator[str]:
        yield from _hydra_keys(values.get("hydra", {}))
        yield from (f"defaults.{as_written(entry)}" for entry in _unwritten_defaults(values))


def _keep_texts(config: Container, values: Mapping[str, Any], above: str, text: str) -> None:
    """Let a key whose type is text hold what is written without quotes, as on the command line: YAML takes 1.10 and
    1_000 for other numbers, `no` and `on` for false and true."""
    held = dict(dotted_values(values))
    for key, written in _scalars(yaml.compose(text, yaml.CSafeLoader)):
        if is_free_text(f"{above}.{key}".lstrip(".")) and not isinstance(held.get(key), str | None):
            OmegaConf.update(config, key, written)


def _scalars(node: yaml.Node | None, key: str = "") -> Iterator[tuple[str, str]]:
    """The single values of nested mappings as they are written, each with its key."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node.value
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _scalars(value, f"{key}.{name.value}".lstrip("."))


_REMEDY = "a config is read as values, in which ${key} refers to another key; take it out, or give it in the command"


def unresolved_mistakes(values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value that is composed and still holds `${`: read again, from the run's config.yaml, it would
    be another; two harmless parts may make up what a config must not say."""
    for key, value in dotted_values(values):
        if "${" in str(value):
            yield f"{key}={value}: holds ${{, which would be resolved again with the saved config; leave it out"


def _hydra_keys(section: Any, also: str | None = None) -> Iterator[str]:
    """The keys of Hydra's section that this program does not write, but for those of the part `also`."""
    if not isinstance(section, Mapping):
        yield "hydra"
        return
    for key, value in dotted_values(section):
        allowed = key.split(".")[0] == also and "_target_" not in key
        if not allowed and (key, value) not in dotted_values(WRITTEN["hydra"]):
            yield f"hydra.{key}"


def _unwritten_defaults(values: Mapping[str, Any]) -> list[Any]:
    """The entries of a defaults list that this program does not write."""
    defaults = values.get("defaults", [])
    return [
        entry for entry in (defaults if isinstance(defaults, list) else [defaults]) if entry not in WRITTEN["defaults"]
    ]


def _asking(values: Any, key: str = "") -> Iterator[str]:
    """The keys of values that ask for more than another key: the environment, a file, Hydra."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _asking(str(name), f"{key}.{name}".lstrip("."))
            yield from _asking(value, f"{key}.{name}".lstrip("."))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from _asking(value, f"{key}.{number}")
    elif isinstance(values, str):
        references = _REFERENCE.findall(values)
        if values.count("${") > len(references) or any(map(_is_hydras, references)):
            yield f"{key}={values}"


def _names(entry: Any) -> list[Any]:
    """The texts in an entry of a defaults list."""
    if not isinstance(entry, Mapping):
        return [entry]
    chosen = [one for choice in entry.values() for one in (choice if isinstance(choice, list) else [choice])]
    return [*entry, *(choice for choice in chosen if choice is not None)]


def _is_choice(name: Any) -> bool:
    """Whether it names a group or a config within the folders of configs, and none of Hydra's."""
    return _CHOICE.fullmatch(str(name)) is not None and ".." not in str(name) and not _is_hydras(str(name))


def _is_hydras(name: str) -> bool:
    return "hydra" in re.split(r"\W+", name)
