"""Which of the prepared images are trained on, and which are held out."""

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.data.cache import Prepared
from ddpm_train.data.duplicates import first_equal
from ddpm_train.data.order import image_indices
from ddpm_train.data.sources import Source
from ddpm_train.system.console import counted

# The held-out part of a dataset must not move when the run's seed does.
_SPLIT_SEED = 0
_DIVIDED_FILES = (
    "dataset.validation_fraction={}: no file has so few frames, so single frames are held out, which may resemble "
    "those of the same file that are trained on; a larger fraction may hold out whole files"
)
_LARGE_GROUP = (
    "dataset.validation_fraction={}: no group of dataset.group_by={} has so few images, so the smallest is held out, "
    "{} of {}"
)
_SHARED = (
    "{} of {} have the same pixels as one that is trained on, so they say nothing about new images; "
    "dataset.drop_duplicates=true keeps one of each"
)


class Split(NamedTuple):
    """Rows of prepared images, int64, ascending."""

    train: np.ndarray
    held_out: np.ndarray
    divides_files: bool = False  # whether some frames of a file are held out and others trained on


@dataclass(frozen=True)
class Selection:
    """The images of a dataset that are used.

    Attributes:
        train: int64 [N], ascending: rows of the prepared images.
        held_out: int64 [M], ascending: of the same images, or of those of `dataset.validation_split`.
        changed: a hash of the rows where the config's keys have made them others than they are without them.
        notes: what the keys have come to, by a word for each.
        doubts: about which images are held out, in lines for a person.
        num_equal: how many of them have the same pixels as another.
        num_shared: how many held-out images have the same pixels as one that is trained on.
    """

    train: np.ndarray
    held_out: np.ndarray
    changed: str | None
    notes: dict[str, str]
    doubts: list[str]
    num_equal: int
    num_shared: int

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about it, in lines for a person."""
        shared = _SHARED.format(f"{self.num_shared:,}", counted(len(self.held_out), "held-out image"))
        return [*self.doubts, shared] if self.num_shared else self.doubts


def group_numbers(source: Source, config: Dataset) -> np.ndarray:
    """Which images of a source belong together by `dataset.group_by`: for each the number of the first of its group,
    int64 [N]. Without it each is a group of its own.

    Raises:
        Mistakes: the source knows no such groups, or only one.
    """
    if config.group_by is None or config.validation_split is not None:
        return np.arange(len(source))
    groups = getattr(source, "groups", None)
    if groups is None:
        raise Mistakes(
            f"dataset.group_by={config.group_by}: {type(source).__name__} has no method groups that says which images "
            "belong together; write one, or leave it out"
        )
    first: dict[Hashable, int] = {}
    found = (first.setdefault(group, index) for index, group in enumerate(groups(config.group_by)))
    numbers = np.fromiter(found, dtype=np.int64, count=len(source))
    if len(first) == 1:
        raise Mistakes(
            f"dataset.group_by={config.group_by}: all {counted(len(source), 'image')} are one group, of which none can "
            "be held out; group them by something else, or leave it out"
        )
    return numbers


def select(config: Dataset, groups: np.ndarray, train: Prepared, held_out: Prepared | None) -> Selection:
    """Divide the prepared images.

    Args:
        groups: int64: of each item of the source of `train`, see `group_numbers`.
        held_out: the images of `dataset.validation_split`; None: hold out some of the others.

    Raises:
        Mistakes: no image is left to train on.
    """
    found = _split(config, groups, train, held_out)
    if not len(found.train):
        key = "validation_fraction" if held_out is None else "drop_duplicates"
        raise Mistakes(f"dataset.{key}={as_written(getattr(config, key))}: leaves no image to train on")
    plain = _split(replace(config, group_by=None, drop_duplicates=False), np.arange(len(groups)), train, held_out)
    digest = _digest(found)
    hashes = (train.hashes()[found.train], (held_out or train).hashes()[found.held_out])
    first = first_equal(np.concatenate(hashes))
    return Selection(
        found.train,
        found.held_out,
        changed=digest if digest != _digest(plain) else None,
        notes=_notes(config, groups, found, train, held_out),
        doubts=list(_doubts(config, found)),
        num_equal=int((np.bincount(first)[first] > 1).sum()),
        num_shared=int((first[len(found.train) :] < len(found.train)).sum()),
    )


def _split(config: Dataset, groups: np.ndarray, train: Prepared, held_out: Prepared | None) -> Split:
    """Of images of the same pixels the first is kept if the config says so, and one of `dataset.validation_split`
    before one of the others."""
    sets = [each for each in (held_out, train) if each is not None]
    kept = [np.arange(len(each)) for each in sets]
    if config.drop_duplicates:
        first = first_equal(np.concatenate([each.hashes() for each in sets]))
        is_first = first == np.arange(len(first))
        kept = [np.flatnonzero(part) for part in np.split(is_first, [len(each) for each in sets[:-1]])]
    if held_out is not None:
        return Split(train=kept[1], held_out=kept[0])
    (rows,) = kept
    found = hold_out(groups[train.usable[rows]], config.validation_fraction, whole=config.group_by is not None)
    return Split(rows[found.train], rows[found.held_out], found.divides_files)


def hold_out(groups: np.ndarray, fraction: float, *, whole: bool = False) -> Split:
    """Hold out this part of the images, always the same ones. The frames of a file resemble each other, and so do the
    images of a group: whole groups are held out, as far as they fit into that part.

    Args:
        groups: int64 [N]: a number for the group or the file of each image, rising from one group's first image to
            the next one's.
        fraction: in [0, 1).
        whole: where no group fits, hold out the smallest; otherwise single images.
    """
    wanted = round(fraction * len(groups))
    _, starts, counts = np.unique(groups, return_index=True, return_counts=True)
    order = image_indices(np.arange(len(starts)), len(starts), _SPLIT_SEED)
    chosen = order[list(_fitting(counts[order], wanted))]
    if whole and wanted and not len(chosen):
        chosen = order[[np.argmin(counts[order])]]
    rows = np.arange(len(groups))
    held_out = np.isin(groups, groups[starts[chosen]])
    if divides := wanted > 0 and not len(chosen):
        held_out = np.isin(rows, image_indices(rows, len(rows), _SPLIT_SEED)[:wanted])
    return Split(rows[~held_out], rows[held_out], divides)


def _fitting(counts: np.ndarray, wanted: int) -> Iterator[int]:
    """The places of groups that have together at most so many images; the first ones that fit."""
    for place, count in enumerate(counts.tolist()):
        if not wanted:
            return
        if count <= wanted:
            wanted -= count
            yield place


def _digest(found: Split) -> str:
    digest = hashlib.sha256(f"{len(found.train)} {len(found.held_out)}".encode())
    for rows in (found.train, found.held_out):
        digest.update(rows.astype("<i8").tobytes())
    return digest.hexdigest()


def _doubts(config: Dataset, found: Split) -> Iterator[str]:
    fraction, total = config.validation_fraction, len(found.train) + len(found.held_out)
    if found.divides_files:
        yield _DIVIDED_FILES.format(fraction)
    if config.group_by is not None and len(found.held_out) > round(fraction * total):
        yield _LARGE_GROUP.format(fraction, config.group_by, f"{len(found.held_out):,}", counted(total, "image"))


def _notes(
    config: Dataset, groups: np.ndarray, found: Split, train: Prepared, held_out: Prepared | None
) -> dict[str, str]:
    told = {}
    if config.group_by is not None and held_out is None:
        apart, together = (len(np.unique(groups[train.usable[rows]])) for rows in (found.held_out, found.train))
        told["groups"] = f"{apart:,} of {apart + together:,} held out (dataset.group_by={config.group_by})"
    if config.drop_duplicates:
        dropped = len(train) + len(held_out or ()) - len(found.train) - len(found.held_out)
        told["duplicates"] = f"{counted(dropped, 'image')} left out, with the same pixels as another"
    return told
