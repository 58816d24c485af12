"""How large a dataset's images are, by a look at the headers of some. Imports no torch."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.sources import Source

_LOOKED_AT = 256  # images, evenly spaced
Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class _Probe(Decoder):
    found: list[Size] = field(default_factory=list)

    def from_image(self, image: Image.Image) -> np.ndarray:
        self.found.append((image.height, image.width))
        return np.zeros((self.channels, *self.resolution), dtype=np.uint8)

    def from_array(self, array: np.ndarray) -> np.ndarray:
        self.found.append((array.shape[1], array.shape[2]))
        return array


def image_sizes(source: Source, max_pixels: int) -> list[Size]:
    """The sizes of some images, the same ones every time; broken ones are left out."""
    probe = _Probe((1, 1), 3, (0, 0, 0), "center", max_pixels)
    for index in np.unique(np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(int)).tolist():
        with suppress(BrokenImage):
            source.load(index, probe)
    return probe.found


def num_enlarged(sizes: Sequence[Size], resolution: Size) -> int:
    """How many of these images must be scaled up to cover (height, width)."""
    return sum(height < resolution[0] or width < resolution[1] for height, width in sizes)
