"""The resolved config as a file, which runs again: `ddpm-train --config-path FOLDER --config-name config`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIG = "config.yaml"
# What Hydra needs to read such a file as a whole config, and to stay as quiet as with ours.
_HYDRA = {
    "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
    "hydra": {"run": {"dir": "."}, "output_subdir": None},
}


def config_yaml(values: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump({**_HYDRA, **values}, sort_keys=False, allow_unicode=True).encode()


def read_config(path: Path) -> dict[str, Any]:
    """The values in such a file, without what is Hydra's.

    Raises:
        OSError, yaml.YAMLError: it cannot be read.
    """
    values = yaml.safe_load(path.read_text())
    return {key: value for key, value in values.items() if key not in _HYDRA}


BEST = "best"  # RUN/checkpoints/best: no folder, but the one that is best by the run's records


def is_best(pipeline: str) -> bool:
    """Whether a path means the best of a run's checkpoints."""
    path = Path(pipeline).expanduser()
    return path.name == BEST and path.parent.name == "checkpoints" and path.parent.is_dir()


def run_of(pipeline: str) -> Path | None:
    """The folder of the run that `pipeline` is, or is a checkpoint or the pipeline of; None: no run's."""
    folder = Path(pipeline).expanduser()
    if folder.name == "pipeline":
        folder = folder.parent
    elif folder.parent.name == "checkpoints":
        folder = folder.parent.parent
    return folder if (folder / "config.yaml").is_file() else None


RECORDS = "metrics.jsonl"
