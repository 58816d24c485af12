"""Checkpoints that exist whole or not at all. Knows nothing of training: named tensors and scalars, by step.

    checkpoints/step_00001000/
      unet.safetensors …    one file for each named set of tensors
      state.json            the scalars
      manifest.json         size and SHA-256 of every other file; a folder without it is no checkpoint

A checkpoint is written into a staging folder, flushed to the disk, and published by one rename.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_train.files import fsync_path, sha256_file

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")


class BadCheckpoint(Exception):
    """A folder that is not a whole checkpoint; the text says what is wrong with it."""


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def save(directory: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, Any]) -> Path:
    """Write and publish the checkpoint of `step`; returns its folder.

    Args:
        tensors: set name -> tensor name -> tensor. A set becomes the file NAME.safetensors.
        scalars: what JSON can hold.

    Raises:
        OSError: the disk did not take it; nothing was published.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / step_name(step)
    staging = directory / f".{path.name}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        for name, named_tensors in tensors.items():
            save_file(
                {key: tensor.contiguous() for key, tensor in named_tensors.items()}, staging / f"{name}.safetensors"
            )
        (staging / STATE).write_text(json.dumps(scalars, indent=1))
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in staging.iterdir()}
        manifest = {"format": FORMAT, "step": step, "files": files}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for entry in [*staging.iterdir(), staging]:
            fsync_path(entry)
        # Only a checkpoint that did not verify can stand here already: whoever resumes has set good ones to use.
        shutil.rmtree(path, ignore_errors=True)
        os.rename(staging, path)
        fsync_path(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def verify(path: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        BadCheckpoint: something is missing, foreign, of another size or of another content.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            raise BadCheckpoint(f"format {manifest['format']}, this program reads {FORMAT}")
    except FileNotFoundError:
        raise BadCheckpoint(f"no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, NotADirectoryError) as error:
        raise BadCheckpoint(f"{MANIFEST} cannot be read ({error})") from None
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    if present != set(files):
        missing, foreign = sorted(set(files) - present), sorted(present - set(files))
        raise BadCheckpoint(
            "; ".join([f"{name} is missing" for name in missing] + [f"{name} is foreign" for name in foreign])
        )
    for name, expected in files.items():
        if (size := (path / name).stat().st_size) != expected["bytes"]:
            raise BadCheckpoint(f"{name} has {size} bytes, not {expected['bytes']}")
        if sha256_file(path / name) != expected["sha256"]:
            raise BadCheckpoint(f"{name} has another SHA-256 than its manifest says")


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors (on the CPU) and scalars of a verified checkpoint."""
    tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    return tensors, json.loads((path / STATE).read_text())


def published(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, oldest first; unverified."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise BadCheckpoint(f"{path.name} is not named step_NNNNNNNN")
    return int(match[1])
