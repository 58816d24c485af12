"""Where a model comes from: whether that can be a folder or a Hub repository at all. Imports no torch."""

import re
from collections.abc import Iterator
from pathlib import Path

from ddpm_train.config.mistakes import did_you_mean
from ddpm_train.runs.folder import is_best
from ddpm_train.system.files import expanded


def path_mistakes(pipeline: str, key: str = "pipeline", revision: str | None = None) -> Iterator[str]:
    """A line if it is no folder and cannot be a repository, or was meant as a folder: its parent is here.

    Args:
        revision: of the repository.
    """
    path = expanded(pipeline)
    if path.is_dir() or is_best(pipeline):
        if revision is not None:
            yield f"revision={revision}: does nothing with {key}={pipeline}, which is no repository; leave it out"
        return
    parent_is_here = path.parent != Path() and path.parent.is_dir()
    if parent_is_here or not re.fullmatch(r"[\w.-]+/[\w.-]+", pipeline):
        siblings = [str(path.parent / other.name) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        remedy = did_you_mean(pipeline, siblings) or " give a run, a model's folder, or a Hub repository (owner/name)"
        yield f"{key}={pipeline}: no such folder;{remedy}"
