"""Which files below a folder are its images, and what is left out there. Imports no torch.

A folder may hold what it is no dataset of: what file managers, notebooks and network storage keep there, and what
these programs themselves have written, for `dataset.path=.` is a way to train, too.
"""

import os
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.formats import REMEDIES, begins_like_image, decodable
from ddpm_train.data.paths import ZARR, ending_of
from ddpm_train.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    PIPELINE,
    RECORDS,
    REPORT,
    SAMPLES,
    SAMPLING,
    SCORES,
    SWEEP_PICTURE,
    SWEEP_TABLE,
    TENSORBOARD,
)
from ddpm_train.system.console import counted

# Besides what is hidden; in small letters. Of macOS, Windows, Linux, Synology, QNAP, NetApp and of package managers.
_NO_DATA = {
    *("__macosx", "network trash folder", "temporary items"),
    *("$recycle.bin", "recycler", "recycled", "system volume information"),
    *("lost+found", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"),
    *("__pycache__", "node_modules"),
}
_OF_A_RUN = {SAMPLES, EVALUATION, CHECKPOINTS, PIPELINE, TENSORBOARD, "wandb"}
_MOST_KINDS = 6  # that are told
_METADATA = {"metadata.csv", "metadata.jsonl"}
_MOST_LOOKED_INTO = 1000  # files of one ending that is none of images


@dataclass(frozen=True)
class ImageFiles:
    """What `find_images` found.

    Attributes:
        paths: of the images that can be decoded, relative to the folder, sorted.
        left_out: how many images are left out, by where they lie ("in .Trash-1000").
        unreadable: how many nothing installed reads, by their ending (".heic").
        metadata: the tables of the `datasets` library beside the images, relative to the folder, sorted.
    """

    paths: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    metadata: list[str] = field(default_factory=list)
    looked_into: Counter[str] = field(default_factory=Counter)  # files, by an ending that is none of images

    @property
    def total(self) -> int:
        """All that were meant, whether they can be read or not."""
        return len(self.paths) + self.unreadable.total()

    def lines(self) -> Iterator[str]:
        """What is not used, for a person."""
        if self.left_out:
            yield f"left out: {counted(self.left_out.total(), 'image')} ({_listed(self.left_out)})"
        if self.unreadable:
            yield self.unreadable_text

    @property
    def unreadable_text(self) -> str:
        kinds = Counter({f"{ending} ({REMEDIES[ending]})": count for ending, count in self.unreadable.items()})
        return f"{self.unreadable.total():,} of {counted(self.total, 'image')} cannot be read: {_listed(kinds)}"


def _listed(kinds: Counter[str]) -> str:
    shown = kinds.most_common(_MOST_KINDS)
    rest = kinds.total() - sum(count for _, count in shown)
    return ", ".join([*(f"{count:,} {kind}" for kind, count in shown), *([f"{rest:,} elsewhere"] if rest else [])])


def find_images(root: Path, arrays: Container[str] = ()) -> ImageFiles:
    """All images below a folder. Links are followed, but no folder is entered twice: they may lead in circles.

    Args:
        arrays: look for files of these endings instead, and leave pictures out.

    Raises:
        Mistakes: a folder that would belong to the dataset cannot be read.
    """
    found = ImageFiles()
    reasons: dict[str, str | None] = {str(root): None}  # why the images of a folder are left out
    entered = set()

    def refuse(error: OSError) -> None:
        if reasons.get(error.filename) is None:  # lost+found is root's alone
            raise Mistakes(f"dataset.path={root}: {error.filename}: {error.strerror}; make it readable or remove it")

    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        is_root = folder == str(root)
        reason = reasons.pop(folder) or (None if is_root else _written_by(subfolders, files))
        if reason is None:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                subfolders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
        if ZARR in arrays:
            stores = [name for name in subfolders if ending_of(name) == ZARR]
            subfolders[:] = [name for name in subfolders if name not in stores]
            files = [*files, *stores]
        subfolders.sort()
        own = _OF_A_RUN if _is_run(subfolders, files) else ()
        for name in subfolders:
            below = "in runs of ddpm-train" if name in own else _reserved(name)
            reasons[os.path.join(folder, name)] = reason or below
        # What is linked from there is entered, if at all, where it belongs to the dataset.
        paths = {name: os.path.join(folder, name) for name in subfolders}
        subfolders[:] = [name for name, path in paths.items() if reasons[path] is None or not os.path.islink(path)]
        if is_root and SAMPLING in files:  # ddpm-sample's: its images are in images/
            reason = "beside the images of ddpm-sample"
        _sort_out(root, os.path.relpath(folder, root), files, reason, found, arrays)
    found.paths.sort()
    found.metadata.sort()
    return found


def _sort_out(
    root: Path, folder: str, files: list[str], reason: str | None, found: ImageFiles, arrays: Container[str]
) -> None:
    known = arrays or decodable()
    for file in files:
        ending = ending_of(file)
        if file in _METADATA and reason is None:
            found.metadata.append(os.path.normpath(os.path.join(folder, file)))
        if ending not in known and ending not in REMEDIES:
            if (
                reason is None
                and not file.startswith(".")
                and _is_image(os.path.join(root, folder, file), ending, found)
            ):
                found.left_out[f"in files {f'that end in {ending}' if ending else 'without an ending'}"] += 1
            continue
        if reason is not None or file.startswith("."):
            found.left_out[reason or "hidden"] += 1
        elif ending in known:
            found.paths.append(os.path.normpath(os.path.join(folder, file)))
        elif not arrays:
            found.unreadable[ending] += 1


def _is_image(path: str, ending: str, found: ImageFiles) -> bool:
    """Whether a file of such an ending is an image after all; browsers and downloads leave any ending, or none."""
    found.looked_into[ending] += 1
    return found.looked_into[ending] <= _MOST_LOOKED_INTO and begins_like_image(path)


def _reserved(name: str) -> str | None:
    return f"in {name}" if name.startswith(".") or name.lower() in _NO_DATA else None


def _is_run(subfolders: list[str], files: list[str]) -> bool:
    return CONFIG in files and (CHECKPOINTS in subfolders or RECORDS in files)


def _written_by(subfolders: list[str], files: list[str]) -> str | None:
    """Why the images of such a folder are a program's."""
    if SAMPLING in files:
        return "in folders of ddpm-sample"
    if {SCORES, REPORT} <= {*files} and CONFIG not in files:
        return "in folders of ddpm-evaluate"
    if {SWEEP_TABLE, SWEEP_PICTURE} <= {*files}:
        return "in sweeps of ddpm-train"
    if "model_index.json" in files:
        return "in models"
    if "CACHEDIR.TAG" in files or {"blobs", "snapshots"} <= {*subfolders}:
        return "in caches"
    return "in Python environments" if "pyvenv.cfg" in files or "conda-meta" in subfolders else None
