"""The real images that others are compared with; their features are computed once and kept on the disk."""

import hashlib
import io
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm_train.config.dataset import Dataset
from ddpm_train.data.images import Images
from ddpm_train.data.order import image_indices
from ddpm_train.evaluation.image_sets import extract
from ddpm_train.evaluation.scores import Reference
from ddpm_train.evaluation.workers import Workers
from ddpm_train.system.files import cache_folder, write_atomic
from ddpm_train.system.ranks import on_main

if TYPE_CHECKING:  # of an extra
    from ddpm_train.evaluation.features import Extractor

_FORMAT = 1  # of what is computed from an image and how it is kept


@dataclass
class RealImages:
    """The training images of a dataset, or the held-out ones: centre crops, unflipped."""

    images: Images
    dataset: Dataset
    workers: Workers
    held_out: bool = False
    _features: Tensor | None = field(init=False, default=None)

    @property
    def split(self) -> str:
        if not self.held_out:
            return self.dataset.split
        return self.dataset.validation_split or f"{self.dataset.split}, held out"

    def at_most(self, count: int | None) -> "RealImages":
        """The same `count` images of a larger set every time, chosen without regard to their order; None: all."""
        if count is None or count >= len(self.images):
            return self
        chosen = image_indices(np.arange(count), len(self.images), seed=0)
        return replace(self, images=replace(self.images, rows=self.images.rows[np.sort(chosen)]))

    @cached_property
    def described(self) -> Reference:
        """What a score says of these images."""
        digest = hashlib.sha256(self.images.prepared.content.encode())
        digest.update(np.ascontiguousarray(self.images.rows, dtype=np.int64).tobytes())
        return Reference(
            dataset=self.dataset.path,
            split=self.split,
            resolution=self.images.resolution,
            num_images=len(self.images),
            hash=digest.hexdigest()[:32],
        )

    def features(self, extractor: "Extractor") -> Tensor:
        """float32 [N, D] on the CPU, computed or found in the cache. All processes do this together.

        Only the main process, which alone computes scores, gets them; the others get none, [0, D].
        """
        if self._features is None:
            is_main = self.workers.accelerator.is_main_process
            path, shape = self._path(extractor), (len(self.images), extractor.dimension)
            kept = _read(path, shape) if is_main else None
            if on_main(lambda: kept is None):
                kept = extract(extractor, self.images, self.workers, "real image")
                if is_main:
                    _write(path, kept)
            self._features = kept if kept is not None and is_main else torch.zeros(0, extractor.dimension)
        return self._features

    def _path(self, extractor: "Extractor") -> Path:
        parts = [str(_FORMAT), self.described.hash, extractor.name, extractor.weights_hash]
        key = "\0".join([*parts, repr(self.images.values)] if self.images.values else parts)
        return (
            cache_folder(self.dataset.cache_dir) / "features" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        )


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """None if the file is not there, or not whole."""
    try:
        features = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return features if tuple(features.shape) == shape and features.dtype == torch.float32 else None


def _write(path: Path, features: Tensor) -> None:
    """A disk that is full only makes the next evaluation compute them again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, features.numpy(), allow_pickle=False)
        write_atomic(path, buffer.getvalue())
    except OSError:
        return
