"""Which images of a dataset without a split for that are held out."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddpm_train.data.order import image_indices

# The held-out part of a dataset must not move when the run's seed does.
_SPLIT_SEED = 0


class Split(NamedTuple):
    """Rows of the prepared images, int64 [N], ascending."""

    train: np.ndarray
    held_out: np.ndarray
    divides_files: bool  # whether some frames of a file are held out and others trained on


def hold_out(files: np.ndarray, fraction: float) -> Split:
    """Hold out this part of the images, always the same ones. The frames of a file resemble each other: whole files
    are held out, as far as they fit into that part, and single frames only where no file does.

    Args:
        files: int64 [N], ascending: from which file each image comes.
        fraction: in [0, 1).
    """
    wanted = round(fraction * len(files))
    _, starts, counts = np.unique(files, return_index=True, return_counts=True)
    order = image_indices(np.arange(len(starts)), len(starts), _SPLIT_SEED)
    chosen = order[list(_fitting(counts[order], wanted))]
    rows = np.arange(len(files))
    held_out = np.isin(files, files[starts[chosen]])
    if divides := wanted > 0 and not len(chosen):
        held_out = np.isin(rows, image_indices(rows, len(rows), _SPLIT_SEED)[:wanted])
    return Split(rows[~held_out], rows[held_out], divides)


def _fitting(counts: np.ndarray, wanted: int) -> Iterator[int]:
    """The places of files that have together at most so many images; the first ones that fit."""
    for place, count in enumerate(counts.tolist()):
        if not wanted:
            return
        if count <= wanted:
            wanted -= count
            yield place
