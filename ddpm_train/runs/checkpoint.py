"""Checkpoints that exist whole or not at all. Knows nothing of training: named tensors and scalars, by step.

    checkpoints/step_00001000/
      unet.safetensors …    one file for each named set of tensors
      state.json            the scalars
      manifest.json         size and SHA-256 of every other file; a folder without it is no checkpoint

A checkpoint is written into a staging folder, flushed to the disk, and published by one rename.
Imports torch only to write and to read tensors.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Lt

from ddpm_train.config.foreign import BadFile, printable, read_json
from ddpm_train.system.failures import is_refused_by_disk, one_line
from ddpm_train.system.files import cleared, fsync_path, move_or_remove, sha256_file

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_NEEDED = (STATE, "unet.safetensors")
_NAME = re.compile(r"step_([0-9]{8}|[1-9][0-9]{8,17})")


class BadCheckpoint(Exception):
    """A folder that is not a whole checkpoint; the text says in one line what is wrong with it."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))  # it may name files from elsewhere


@dataclass(frozen=True)
class File:
    """What a file of a checkpoint must hold."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint must hold: every file but the manifest, by name."""

    format: int
    step: Annotated[int, Ge(0), Lt(10**18)]
    files: dict[str, File]


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise BadCheckpoint(f"{path.name} is not named step_NNNNNNNN")
    return int(match[1])


def save(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, "Tensor"]],
    scalars: Mapping[str, Any],
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write, publish and verify the checkpoint of `step`; returns its folder.

    Args:
        tensors: set name -> tensor name -> tensor, on the CPU. A set becomes the file NAME.safetensors.
        scalars: what JSON can hold.
        check: called before it is published; may raise.

    Raises:
        OSError: the disk did not take it; nothing was published.
        BadCheckpoint: the disk took it, but gives back something else.
    """
    import safetensors.torch

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / step_name(step)
    staging = cleared(directory / f".{path.name}.staging")
    staging.mkdir()
    files: dict[str, File] = {}
    try:
        for name, named_tensors in tensors.items():
            # The metadata is what other libraries, diffusers among them, expect of weights.
            data = safetensors.torch.save(dict(named_tensors), metadata={"format": "pt"})
            _write(staging / f"{name}.safetensors", data, files)
        _write(staging / STATE, json.dumps(scalars, indent=1).encode(), files)
        _write(staging / MANIFEST, json.dumps(asdict(Manifest(FORMAT, step, files)), indent=1).encode(), {})
        fsync_path(staging)
        check()
        os.rename(staging, path)
        fsync_path(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return verify(path, step)


def _write(path: Path, data: bytes, files: dict[str, File]) -> None:
    """Write a file through to the disk and note what it must hold: the hash is of the memory, not of the file."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    files[path.name] = File(len(data), hashlib.sha256(data).hexdigest())


def unreadable(error: Exception, text: str) -> BadCheckpoint:
    """What to raise for a checkpoint of which a part cannot be read.

    Raises:
        Exception: the error itself where the disk fails: the checkpoint may be as good as ever.
    """
    if is_refused_by_disk(error):
        raise error
    return BadCheckpoint(text)


def verify(path: Path, step: int | None = None, needed: Collection[str] = _NEEDED) -> Path:
    """Check every file of a checkpoint against its manifest, and that it is of `step`, if that is known; returns it.

    Args:
        needed: the files that it must have.

    Raises:
        BadCheckpoint: something is missing, foreign, of another size or of another content, or cannot be read.
        OSError: the disk fails.
    """
    manifest = read_manifest(path)
    if step is not None and manifest.step != step:
        raise BadCheckpoint(f"{MANIFEST} is of step {manifest.step}")
    try:
        present = {file.name for file in path.iterdir()} - {MANIFEST}
        problems = [f"{name} is missing" for name in sorted({*manifest.files, *needed} - present)]
        problems += [f"{name} is foreign" for name in sorted(present - set(manifest.files))]
        if problems:
            raise BadCheckpoint("; ".join(problems))
        for name, expected in manifest.files.items():
            _verify_file(path / name, expected)
    except OSError as error:
        raise unreadable(error, f"it cannot be read: {one_line(error)}") from None
    return path


def verify_state(path: Path) -> Path:
    """Check a checkpoint's scalars alone, which takes no time; returns it.

    Raises:
        BadCheckpoint: see `verify`.
    """
    if (expected := read_manifest(path).files.get(STATE)) is None:
        raise BadCheckpoint(f"{STATE} is foreign")
    try:
        _verify_file(path / STATE, expected)
    except OSError as error:
        raise unreadable(error, f"it cannot be read: {one_line(error)}") from None
    return path


def _verify_file(path: Path, expected: File) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for its other end
        raise BadCheckpoint(f"{path.name} is no regular file")
    if status.st_size != expected.bytes:
        raise BadCheckpoint(f"{path.name} has {status.st_size} bytes, not {expected.bytes}")
    if sha256_file(path) != expected.sha256:
        raise BadCheckpoint(f"{path.name} has another SHA-256 than its manifest says")


def read_manifest(path: Path) -> Manifest:
    """The manifest in a checkpoint's folder, unverified; raises BadCheckpoint."""
    try:
        manifest = read_json(path / MANIFEST, Manifest)
    except FileNotFoundError:
        raise BadCheckpoint(f"no {MANIFEST}") from None
    except (BadFile, OSError) as error:
        raise unreadable(error, f"{MANIFEST} cannot be read ({one_line(error)})") from None
    if manifest.format != FORMAT:
        raise BadCheckpoint(f"format {manifest.format}, this program reads {FORMAT}")
    return manifest


def check_tensors(path: Path) -> None:
    """Raise BadCheckpoint if a set of tensors in a verified checkpoint cannot be opened; reads their headers only."""
    import safetensors

    for file in path.glob("*.safetensors"):
        try:
            safetensors.safe_open(file, framework="np")  # which needs no torch
        except (safetensors.SafetensorError, OSError) as error:
            raise unreadable(error, f"{file.name} cannot be read ({one_line(error)})") from None


def load(path: Path) -> "dict[str, Mapping[str, Tensor]]":
    """The tensors of a verified checkpoint, on the CPU, by set. Each is read from the disk when it is asked for."""
    return {file.stem: _StoredTensors(file) for file in path.glob("*.safetensors")}


class _StoredTensors(Mapping[str, "Tensor"]):
    """The tensors in a safetensors file; they need not fit into memory together."""

    def __init__(self, path: Path) -> None:
        import safetensors

        self._file = safetensors.safe_open(path, framework="pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> "Tensor":
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def by_step(folder: Path, suffix: str = "") -> dict[int, Path]:
    """Step -> what is named step_NNNNNNNN, with `suffix`, in a folder; the oldest first."""
    found = ((_NAME.fullmatch(path.name.removesuffix(suffix)), path) for path in folder.glob(f"step_*{suffix}"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def published(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, oldest first; unverified."""
    return list(by_step(directory).values())


def remove_leftovers(directory: Path) -> None:
    """Remove what saves that were killed have left. Only the process that owns the run may call this."""
    for path in directory.glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)  # the next save says what is wrong with the disk


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        keep_last: so many of the newest; None: all.
        keep_every_steps: besides, those whose step is a multiple of this.
        best: besides, the one it chooses of the steps that there are.
        branch: besides, this step, from which a longer run can go on; None: there is none.
    """

    keep_last: int | None
    keep_every_steps: int | None
    best: Callable[[list[int]], int | None] = lambda steps: None
    branch: int | None = None

    def to_prune(self, steps: list[int]) -> list[int]:
        """Which of the published `steps` (oldest first) go."""
        old, every = steps[: -self.keep_last] if self.keep_last else [], self.keep_every_steps
        kept = (self.best(steps), self.branch)
        return [step for step in old if step not in kept and not (every and step % every == 0)]


def prune(directory: Path, retention: Retention) -> None:
    """Remove what retention lets go. The newest checkpoint must have verified."""
    for step in retention.to_prune([step_of(path) for path in published(directory)]):
        # Renamed first: a checkpoint that is half removed must not look like one.
        doomed = cleared(directory / f".{step_name(step)}.staging")
        move_or_remove(directory / step_name(step), doomed)
        shutil.rmtree(doomed, ignore_errors=True)
