"""The resolved config as a file, which runs again: `ddpm-train --config-path FOLDER --config-name config`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NAME = "config.yaml"
# What Hydra needs to read such a file as a whole config, and to stay as quiet as with ours.
_HYDRA = {
    "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
    "hydra": {"run": {"dir": "."}, "output_subdir": None},
}


def to_yaml(values: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump({**_HYDRA, **values}, sort_keys=False, allow_unicode=True).encode()


def read(path: Path) -> dict[str, Any]:
    """The values in such a file, without what is Hydra's.

    Raises:
        OSError, yaml.YAMLError: it cannot be read.
    """
    values = yaml.safe_load(path.read_text())
    return {key: value for key, value in values.items() if key not in _HYDRA}
