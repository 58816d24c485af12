"""Frames of animations and pages of documents: which a file holds, and one after the other of them.

Imports no torch (it runs in workers).
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_train.data import tiff
from ddpm_train.data.decode import DAMAGE, BrokenImage, Decoder, LastFrame

# Of the others, further frames are previews, layers and sizes of the same picture.
_PAGES = ("TIFF", "DCX")  # where each picture stands for itself
_WITH_FRAMES = ("GIF", "WEBP", "PNG", "AVIF", *_PAGES)
MOST_FRAMES = 10_000  # of one file: some bytes are enough to claim a million, or to hold them


def frame_numbers(image: Image.Image) -> Sequence[int]:
    """Which frames of an opened image are pictures of their own: at least one, at most MOST_FRAMES + 1.

    Nothing is decoded. Of a damaged file the last of them is the first that cannot be read.
    """
    if image.format not in _WITH_FRAMES:
        return (0,)
    if image.format == "TIFF":
        return _pages(image)
    opened: Any = image
    try:
        count = opened.n_frames
    except DAMAGE:
        count = image.tell() + 2
        image.seek(0)
    # An animated PNG may begin with a picture for programs that know no animation.
    first = int(getattr(image, "default_image", False))
    return range(first, max(first + 1, min(count, first + MOST_FRAMES + 1)))


def _pages(image: Any) -> Sequence[int]:
    """Of a TIFF file. Its `n_frames` would compare each page with all before it, of which there may be a million."""
    pages = []
    for page in range(MOST_FRAMES + 1):
        try:
            image.seek(page)
            if not tiff.is_picture(image):
                continue
        except EOFError:
            break
        except DAMAGE:
            if image.tell() != page:  # where the next one would be is not known
                pages.append(page)
                break
        pages.append(page)
    image.seek(0)
    return (0, *pages[1:])


def frame_name(file: str, number: int) -> str:
    """How a person finds a frame again: they are counted from 1."""
    return f"{file}, frame {number + 1}" if number else file


@dataclass
class _Opened:
    image: Image.Image | None = None
    encoded: bytes | Path = b""
    numbers: Sequence[int] = (0,)


@dataclass(frozen=True)
class FrameReader(Decoder):
    """Decodes one frame after the other of a file that it keeps open: to open it anew for each would begin each time
    with the first."""

    opened: _Opened = field(default_factory=_Opened)

    @property
    def numbers(self) -> Sequence[int]:
        """The `frame_numbers` of the file whose first frame was decoded last."""
        return self.opened.numbers

    def __call__(self, encoded: bytes | Path) -> np.ndarray:
        """Decode one frame.

        Raises:
            LastFrame: so that none after it can be composed.
            BrokenImage: as a decoder.
        """
        try:
            return super().__call__(encoded)
        except BrokenImage as error:
            image = self.opened.image
            if image is not None and image.format in _PAGES:
                raise
            raise LastFrame(str(error)) from None

    def open(self, encoded: bytes | Path) -> AbstractContextManager[Image.Image]:
        if self.opened.image is None or encoded != self.opened.encoded:
            self.close()
            self.opened.image = super().open(encoded).__enter__()
            self.opened.encoded = encoded
        return nullcontext(self.opened.image)

    def from_image(self, image: Image.Image) -> np.ndarray:
        if not self.frame:
            self.opened.numbers = frame_numbers(image)
        return super().from_image(image)

    def close(self) -> None:
        """Close the file."""
        if self.opened.image is not None:
            self.opened.image.close()
        self.opened.image, self.opened.encoded, self.opened.numbers = None, b"", (0,)


def sizes(image: Image.Image, frames: str) -> Iterator[tuple[int, int]]:
    """(height, width) of what is used of an opened image, without decoding it. Only pages differ in size."""
    for number in frame_numbers(image) if frames == "all" and image.format in _PAGES else (0,):
        with suppress(*DAMAGE):
            tiff.seek_first(image) if image.format == "TIFF" and not number else image.seek(number)
            yield image.height, image.width
