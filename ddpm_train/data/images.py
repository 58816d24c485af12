"""A set of prepared images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.cache import Prepared
from ddpm_train.data.decode import CENTRE, BrokenImage, Decoder, crop_origin
from ddpm_train.data.sources import Source


@dataclass
class Images:
    """A set of images, by number: decoded from the cache, or from the source when there is no cache.

    Attributes:
        rows: int64 [N], each image's place in `prepared`.
    """

    source: Source
    decoder: Decoder
    prepared: Prepared
    rows: np.ndarray
    cached: bool

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [len(prepared) + 1]: where each prepared image's pixels start."""
        lengths = self.prepared.sizes.astype(np.int64).prod(axis=1) * self.decoder.channels
        return np.concatenate(([0], np.cumsum(lengths)))

    @cached_property
    def _pixels(self) -> np.ndarray:  # opened late, so that the object pickles small for workers
        return self.prepared.pixels()

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) of what `load` returns."""
        return self.decoder.resolution

    def load(self, numbers: Sequence[int] | np.ndarray, crops: np.ndarray | None = None) -> Tensor:
        """Images by number.

        Args:
            numbers: [B] in [0, len(self)).
            crops: int64 [B, 2] in [0, 2**32), where each random crop lies; None takes the centre.

        Returns:
            uint8 [B, C, H, W].
        """
        height, width = self.resolution
        if self.cached and self.decoder.crop == "center":
            grid = self._pixels.reshape(-1, self.decoder.channels, height, width)
            return torch.from_numpy(grid[self.rows[numbers]])
        batch = np.empty((len(numbers), self.decoder.channels, height, width), dtype=np.uint8)
        for place, number in enumerate(numbers):
            image = self._image(int(self.rows[number]))
            vertical, horizontal = (CENTRE, CENTRE) if crops is None else crops[place].tolist()
            top = crop_origin(vertical, image.shape[1], height)
            left = crop_origin(horizontal, image.shape[2], width)
            batch[place] = image[:, top : top + height, left : left + width]
        return torch.from_numpy(batch)

    def _image(self, row: int) -> np.ndarray:
        if self.cached:
            height, width = self.prepared.sizes[row]
            flat = self._pixels[self.offsets[row] : self.offsets[row + 1]]
            return flat.reshape(self.decoder.channels, height, width)
        index = int(self.prepared.usable[row])
        try:
            return self.source.load(index, self.decoder)
        except BrokenImage as error:
            raise Mistakes(f"{self.source.name(index)}: could be read at the start, but not now: {error}") from None
