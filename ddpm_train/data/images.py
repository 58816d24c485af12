"""A set of prepared images, on the host or in the device's own memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.pixels import PixelValues
from ddpm_train.data.cache import Prepared
from ddpm_train.data.crops import CENTRE, crop_origin
from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.frames import frame_name
from ddpm_train.data.sources import Source
from ddpm_train.diffusion.pixels import to_model

_CHUNK_BYTES = 2**28  # copied to a device at once


@dataclass
class Images:
    """A set of images, by number: decoded from the cache, or from the source when there is no cache.

    Attributes:
        values: what the numbers of arrays mean; None: they are pictures, of which a model sees uint8 as ever.
    """

    source: Source
    decoder: Decoder
    prepared: Prepared
    rows: np.ndarray  # int64 [N]: each image's place in `prepared`
    cached: bool
    values: PixelValues | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory map, which would be copied whole; another process opens its own."""
        return {key: value for key, value in vars(self).items() if key != "_pixels"}

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [len(prepared) + 1]: where each prepared image's pixels start."""
        lengths = self.prepared.sizes.astype(np.int64).prod(axis=1) * self.decoder.channels
        return np.concatenate(([0], np.cumsum(lengths)))

    @cached_property
    def _pixels(self) -> np.ndarray:
        return self.prepared.pixels()

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) of what `load` returns."""
        return self.decoder.resolution

    def hashes(self) -> np.ndarray:
        """uint64 [N, 2]: equal where all pixels of the prepared images are, see `Prepared.hashes`."""
        return self.prepared.hashes()[self.rows]

    def load(self, numbers: Sequence[int] | np.ndarray, crops: np.ndarray | None = None) -> Tensor:
        """Images by number.

        Args:
            numbers: [B] in [0, len(self)).
            crops: int64 [B, 2] in [0, 2**32), where each random crop lies; None takes the centre.

        Returns:
            uint8 [B, C, H, W] in [0, 255]; of arrays that are no bytes float32 in [-1, 1].
        """
        return seen(torch.from_numpy(self._stored(numbers, crops)), self.values)

    def _stored(self, numbers: Sequence[int] | np.ndarray, crops: np.ndarray | None) -> np.ndarray:
        height, width = self.resolution
        if self.cached and self.decoder.crop == "center":
            grid = self._pixels.reshape(-1, self.decoder.channels, height, width)
            return grid[self.rows[numbers]]
        batch = np.empty((len(numbers), self.decoder.channels, height, width), dtype=self.prepared.dtype)
        for place, number in enumerate(numbers):
            image = self.stored(int(number))
            vertical, horizontal = (CENTRE, CENTRE) if crops is None else crops[place].tolist()
            top = crop_origin(vertical, image.shape[1], height)
            left = crop_origin(horizontal, image.shape[2], width)
            batch[place] = image[:, top : top + height, left : left + width]
        return batch

    def stored(self, number: int) -> np.ndarray:
        """All that a crop may choose from, [C, H, W], as the source has it."""
        row = int(self.rows[number])
        if self.cached:
            height, width = self.prepared.sizes[row]
            flat = self._pixels[self.offsets[row] : self.offsets[row + 1]]
            return flat.reshape(self.decoder.channels, height, width)
        return self.decode(row, self.decoder)

    def name(self, row: int) -> str:
        """How a person finds again what is at this place in `prepared`."""
        return frame_name(self.source.name(int(self.prepared.usable[row])), int(self.prepared.frames[row]))

    def decode(self, row: int, decoder: Decoder) -> np.ndarray:
        """What a decoder makes of what is at this place in `prepared`, anew from its source.

        Raises:
            Mistakes: it can no longer be decoded.
        """
        try:
            return self.source.load(int(self.prepared.usable[row]), decoder.at(int(self.prepared.frames[row])))
        except BrokenImage as error:
            raise Mistakes(f"{self.name(row)}: could be read at the start, but not now: {error}") from None


def seen(stored: Tensor, values: PixelValues | None) -> Tensor:
    """Pixels as `Images.load` returns them, [B, C, H, W]."""
    return stored if values is None or values.is_bytes else to_model(values, stored)


def fits(images: Images, device: torch.device) -> bool:
    """Whether `dataset.device_cache=auto` puts the images onto this device: a GPU with room for them."""
    if device.type == "cpu" or not images.cached:
        return False
    from ddpm_train.system.compute import memory  # workers import this module, and Accelerate takes them seconds

    free, _ = memory(device)  # before training starts; the network needs the rest
    return images.prepared.pixels().nbytes <= free / 4


class DeviceImages:
    """All images of a set, as they are stored, on a device, where a batch is one gather. They come from a cache."""

    def __init__(self, images: Images, device: torch.device) -> None:
        pixels = images.prepared.pixels()
        # Of uint16 the same bits: few operations know it.
        self._is_uint16, self._values = pixels.dtype == np.uint16, images.values
        pixels = pixels.view(np.int16) if self._is_uint16 else pixels
        self._pixels = torch.empty(len(pixels), dtype=torch.tensor(pixels[:1]).dtype, device=device)
        size = _CHUNK_BYTES // pixels.itemsize
        for start in range(0, len(pixels), size):
            chunk = torch.tensor(pixels[start : start + size])
            self._pixels[start : start + len(chunk)] = chunk.to(device)
        self._offsets = torch.from_numpy(images.offsets[images.rows]).to(device)
        self._sizes = torch.from_numpy(images.prepared.sizes[images.rows]).to(device, torch.int64)
        self._resolution = images.resolution
        self._channels = torch.arange(images.decoder.channels, device=device)
        self._rows = torch.arange(images.resolution[0], device=device)
        self._columns = torch.arange(images.resolution[1], device=device)

    def load(self, numbers: Tensor, crops: Tensor | None = None) -> Tensor:
        """As `Images.load`, for int64 tensors on the device."""
        height, width = self._sizes[numbers].unbind(1)
        vertical, horizontal = (CENTRE, CENTRE) if crops is None else crops.unbind(1)
        top = crop_origin(vertical, height, self._resolution[0])
        left = crop_origin(horizontal, width, self._resolution[1])
        rows = (top[:, None] + self._rows) * width[:, None]
        columns = left[:, None] + self._columns
        planes = self._offsets[numbers][:, None] + self._channels * (height * width)[:, None]
        places = planes[:, :, None, None] + rows[:, None, :, None] + columns[:, None, None, :]
        stored = self._pixels[places]
        return seen(stored.view(torch.uint16) if self._is_uint16 else stored, self._values)
