"""What is white in a dataset's grey images of more than 8 bits: their file format does not say, their values do."""

from contextlib import suppress
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image

from ddpm_train.data.colors import stated_white
from ddpm_train.data.decode import DAMAGE, BrokenImage, Decoder, is_deep, white_for
from ddpm_train.data.frames import MOST_FRAMES, frame_numbers
from ddpm_train.data.sources import Source

_LOOKED_AT = 64  # images, evenly spaced, and if need be frames of them; of others the header is all that is read


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
            f"looked at): 0 is black, {self.white} white; give dataset.value_range=[low,high] if that is wrong"
        )


@dataclass(frozen=True)
class _Probe(Decoder):
    """Notes the values of the first frame, or of several, evenly spaced."""

    found: list[tuple[int, int] | None] = field(default_factory=list)  # None: of 8 bits
    num_frames: int = 1

    def from_image(self, image: Image.Image) -> np.ndarray:
        self._look(image)
        if self.found[-1] and self.frames == "all":
            numbers = frame_numbers(image)[:MOST_FRAMES]
            for place in _evenly_spaced(self.num_frames, len(numbers))[1:]:
                with suppress(*DAMAGE, BrokenImage):
                    self.at(numbers[place])._look(image)
        return np.zeros((self.channels, *self.resolution), dtype=np.uint8)

    def _look(self, image: Image.Image) -> None:
        self.seek(image)
        unsaid = is_deep(image) and image.mode != "F" and stated_white(image) is None
        values = np.asarray(image) if unsaid else None
        self.found.append(None if values is None else (int(values.min()), int(values.max())))


def find_greys(source: Source, decoder: Decoder) -> Greys | None:
    """Look at some images, the same ones every time; None if none of them is grey of more than 8 bits."""
    looked_at = _evenly_spaced(_LOOKED_AT, len(source))
    probe = _Probe(**asdict(decoder), num_frames=-(-_LOOKED_AT // max(1, len(looked_at))))
    for index in looked_at:
        with suppress(BrokenImage):
            source.load(index, probe)
    deep = [found for found in probe.found if found]
    if not deep:
        return None
    least, most = zip(*deep, strict=True)
    return Greys(min(least), max(most), len(deep), len(probe.found))


def _evenly_spaced(count: int, total: int) -> list[int]:
    """At most so many of the numbers below `total`; the first is 0."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()
