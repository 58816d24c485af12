"""Where Hydra finds what is this package's own: its folder of configs, and choices that need no file there."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from hydra._internal.core_plugins.file_config_source import FileConfigSource  # there is no public one of files
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from ddpm_train.config.foreign import parse_yaml
from ddpm_train.config.registry import Group
from ddpm_train.config.samplers import SAMPLERS
from ddpm_train.config.train import Config

_SECTIONS = get_type_hints(Config, include_extras=True)
_Names = list[str]


class Own(FileConfigSource):
    """The folder, read by libyaml; Hydra takes ten times as long."""

    @staticmethod
    def scheme() -> str:
        return "own"

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        text = file.read_text("utf-8")
        config = OmegaConf.create(parse_yaml(text, str(file)) or {})
        return ConfigResult(self.provider, self.full_path(), config, self._get_header_dict(text))


class Registered(ConfigSource):
    """The choices, of each the keys whose values its class gives, where no folder has a file of that name.

    Hydra's own store would do, but that is copied, with all that is in it, whenever a config is composed.
    """

    @staticmethod
    def scheme() -> str:
        return "registered"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path == "" or bool(_choices(config_path.rstrip("/")))

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        return name in _choices(group)

    def list(self, config_path: str, results_filter: ObjectType | None) -> _Names:
        if config_path:
            return [] if results_filter == ObjectType.GROUP else sorted(_choices(config_path.rstrip("/")))
        return [] if results_filter == ObjectType.CONFIG else sorted(filter(_choices, ("sampler", *_SECTIONS)))

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        config = OmegaConf.create({**_choices(group)[name], "name": name})
        return ConfigResult(self.provider, self.full_path(), config, header={"package": None})


def _choices(group: str) -> dict[str, dict[str, Any]]:
    if group == "sampler":
        return {sampler: {} for sampler in SAMPLERS}
    choices: dict[str, dict[str, Any]] = {}
    for mark in getattr(_SECTIONS.get(group), "__metadata__", ()):
        for name, choice in mark.items() if isinstance(mark, Group) else ():
            given = {key.name: key.default for key in fields(choice) if key.default is not MISSING}
            made = {key.name: key.default_factory() for key in fields(choice) if callable(key.default_factory)}
            choices[name] = {**given, **made}
    return choices
