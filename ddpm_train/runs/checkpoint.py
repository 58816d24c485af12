"""Checkpoints that exist whole or not at all. Knows nothing of training: named tensors and scalars, by step.

    checkpoints/step_00001000/
      unet.safetensors …    one file for each named set of tensors
      state.json            the scalars
      manifest.json         size and SHA-256 of every other file; a folder without it is no checkpoint

A checkpoint is written into a staging folder, flushed to the disk, and published by one rename.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ddpm_train.system.files import fsync_path, sha256_file

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")
_STAGING = re.compile(r"\.step_\d{8,}\.staging")


class BadCheckpoint(Exception):
    """A folder that is not a whole checkpoint; the text says what is wrong with it."""


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise BadCheckpoint(f"{path.name} is not named step_NNNNNNNN")
    return int(match[1])


def save(directory: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, Any]) -> Path:
    """Write, publish and verify the checkpoint of `step`; returns its folder.

    Args:
        tensors: set name -> tensor name -> tensor, on the CPU. A set becomes the file NAME.safetensors.
        scalars: what JSON can hold.

    Raises:
        OSError: the disk did not take it; nothing was published.
        BadCheckpoint: the disk took it, but gives back something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / step_name(step)
    staging = directory / f".{path.name}.staging"
    _remove(staging)
    staging.mkdir()
    try:
        files: dict[str, dict[str, Any]] = {}
        for name, named_tensors in tensors.items():
            # The metadata is what other libraries, diffusers among them, expect of weights.
            data = safetensors.torch.save(dict(named_tensors), metadata={"format": "pt"})
            _write(staging / f"{name}.safetensors", data, files)
        _write(staging / STATE, json.dumps(scalars, indent=1).encode(), files)
        manifest = {"format": FORMAT, "step": step, "files": files}
        _write(staging / MANIFEST, json.dumps(manifest, indent=1).encode(), {})
        fsync_path(staging)
        os.rename(staging, path)
        fsync_path(directory)
    finally:
        _remove(staging)
    verify(path, step)
    return path


def _write(path: Path, data: bytes, files: dict[str, dict[str, Any]]) -> None:
    """Write a file through to the disk and note what it must hold: the hash is of the memory, not of the file."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    files[path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def verify(path: Path, step: int | None = None) -> None:
    """Check every file of a checkpoint against its manifest, and that it is of `step`, if that is known.

    Raises:
        BadCheckpoint: something is missing, foreign, of another size or of another content.
    """
    files = _read_manifest(path, step)
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    if problems := [f"{name} is missing" for name in sorted(set(files) - present)] + [
        f"{name} is foreign" for name in sorted(present - set(files))
    ]:
        raise BadCheckpoint("; ".join(problems))
    for name, expected in files.items():
        if (size := (path / name).stat().st_size) != expected["bytes"]:
            raise BadCheckpoint(f"{name} has {size} bytes, not {expected['bytes']}")
        if sha256_file(path / name) != expected["sha256"]:
            raise BadCheckpoint(f"{name} has another SHA-256 than its manifest says")


def _read_manifest(path: Path, step: int | None) -> dict[str, dict[str, Any]]:
    """File name -> {"bytes", "sha256"} of every file of a checkpoint but the manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files: dict[str, dict[str, Any]] = manifest["files"]
        if manifest["format"] != FORMAT:
            raise BadCheckpoint(f"format {manifest['format']}, this program reads {FORMAT}")
        if step is not None and manifest["step"] != step:
            raise BadCheckpoint(f"{MANIFEST} is of step {manifest['step']}")
    except FileNotFoundError:
        raise BadCheckpoint(f"no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, NotADirectoryError) as error:
        raise BadCheckpoint(f"{MANIFEST} cannot be read ({error})") from None
    return files


def load(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a verified checkpoint, on the CPU, by set."""
    return {file.stem: safetensors.torch.load_file(file) for file in path.glob("*.safetensors")}


def load_scalars(path: Path) -> dict[str, Any]:
    """The scalars of a verified checkpoint."""
    scalars: dict[str, Any] = json.loads((path / STATE).read_text())
    return scalars


def published(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, oldest first; unverified."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def newest_good(directory: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies. Bad ones are named and set aside; staging folders of the dead removed.

    Only the process that owns the run may call this.
    """
    if directory.is_dir():
        for path in directory.iterdir():
            if _STAGING.fullmatch(path.name):
                shutil.rmtree(path)
    for path in reversed(published(directory)):
        try:
            verify(path, step_of(path))
        except BadCheckpoint as error:
            aside = _free_name(path.with_name(f"{path.name}.bad"))
            os.rename(path, aside)
            warn(f"warning: checkpoint {path.name} is set aside as {aside.name}: {error}")
        else:
            return path
    return None


def _free_name(path: Path) -> Path:
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}-{count}")
    return candidate


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        keep_last: so many of the newest; None: all.
        keep_every_steps: besides, those whose step is a multiple of this.
        best: besides, the one it chooses of the steps that there are.
    """

    keep_last: int | None
    keep_every_steps: int | None
    best: Callable[[list[int]], int | None] = lambda steps: None

    def to_prune(self, steps: list[int]) -> list[int]:
        """Which of the published `steps` (oldest first) go."""
        old, best = steps[: -self.keep_last] if self.keep_last else [], self.best(steps)
        return [
            step for step in old if step != best and not (self.keep_every_steps and step % self.keep_every_steps == 0)
        ]


def prune(directory: Path, retention: Retention) -> None:
    """Remove what retention lets go. The newest checkpoint must have verified."""
    for step in retention.to_prune([step_of(path) for path in published(directory)]):
        # Renamed first: a checkpoint that is half removed must not look like one.
        doomed = directory / f".{step_name(step)}.staging"
        _remove(doomed)
        os.rename(directory / step_name(step), doomed)
        shutil.rmtree(doomed)
