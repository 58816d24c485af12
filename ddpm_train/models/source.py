"""Where a model comes from: whether that can be a folder or a Hub repository at all. Imports no torch."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_train.config.mistakes import Mistakes, did_you_mean
from ddpm_train.runs.folder import is_best


def path_mistakes(pipeline: str, key: str = "pipeline") -> Iterator[str]:
    """A line if it is no folder and cannot be a repository, or was meant as a folder: its parent is here."""
    path = Path(pipeline).expanduser()
    if path.is_dir() or is_best(pipeline):
        return
    parent_is_here = path.parent != Path() and path.parent.is_dir()
    if parent_is_here or not re.fullmatch(r"[\w.-]+/[\w.-]+", pipeline):
        siblings = [str(path.parent / other.name) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        remedy = did_you_mean(pipeline, siblings) or " give a run, a model's folder, or a Hub repository (owner/name)"
        yield f"{key}={pipeline}: no such folder;{remedy}"


def read_json(place: str, path: Path) -> dict[str, Any]:
    """A JSON file of a model.

    Args:
        place: how the user named the model, such as "pipeline=outputs/cats".

    Raises:
        Mistakes: it is none.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise Mistakes(f"{place}: {path} is not JSON: {error}") from None
    return values
