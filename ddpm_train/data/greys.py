"""What is white in a dataset's grey images of more than 8 bits: their file format does not say, their values do."""

from contextlib import suppress
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image

from ddpm_train.data.decode import BrokenImage, Decoder, is_deep, white_for
from ddpm_train.data.sources import Source

_LOOKED_AT = 64  # images, evenly spaced; of others the header is all that is read


@dataclass(frozen=True)
class Greys:
    """The values that were found in grey images of more than 8 bits."""

    least: int
    most: int
    num_deep: int  # how many such images there were
    num_images: int  # of so many

    @property
    def white(self) -> int:
        """255 or 65535; a dark image among others of 16 bits is meant dark."""
        return white_for(self.most)

    def __str__(self) -> str:
        return (
            f"{self.least} to {self.most} in grey images of more than 8 bits ({self.num_deep} of {self.num_images} "
            f"looked at): 0 is black, {self.white} white; dataset.value_range=[low,high] says otherwise"
        )


@dataclass(frozen=True)
class _Probe(Decoder):
    found: list[tuple[int, int]] = field(default_factory=list)

    def from_image(self, image: Image.Image) -> np.ndarray:
        if is_deep(image) and image.mode != "F":
            values = np.asarray(image)
            self.found.append((int(values.min()), int(values.max())))
        return np.zeros((self.channels, *self.resolution), dtype=np.uint8)


def find_greys(source: Source, decoder: Decoder) -> Greys | None:
    """Look at some images, the same ones every time; None if none of them is grey of more than 8 bits."""
    probe = _Probe(**asdict(decoder))
    looked_at = np.unique(np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(int)).tolist()
    for index in looked_at:
        with suppress(BrokenImage):
            source.load(index, probe)
    if not probe.found:
        return None
    least, most = zip(*probe.found, strict=True)
    return Greys(min(least), max(most), len(probe.found), len(looked_at))
