"""One image file to one uint8 array: modes, orientation, transparency, size. Imports no torch (it runs in workers)."""

import io
import os
import struct
import warnings
import zlib
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ddpm_train.data import gif, tiff
from ddpm_train.data.colors import (
    blank_alpha,
    correct_palette,
    has_other_colors,
    in_srgb,
    note_unread_colors,
    stated_white,
    transparent_color,
    use_camera_profile,
    use_code_points,
    white_is_zero,
    with_srgb_gamma,
    with_stored_numbers,
)
from ddpm_train.data.formats import formats_of, what_it_is

_WHITE_IS_ZERO, _WHITE = "white is zero", "white"  # among what an image says of itself
# Of EXIF: a tag, and what its values are undone by.
_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# What Pillow converts to one other mode only.
_SINGLE_WAYS = {"LAB": "RGB", "La": "LA"}
# Pillow's plugins answer damaged files with any of these.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError),
    *(AssertionError, RuntimeError, MemoryError, struct.error, zlib.error),
)
# `Decoder.max_pixels` is the limit, compared before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# Programs that paint and render write megabytes of settings into a PNG file; those of all its texts bound the memory.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# A random crop keeps what it may choose from, up to this many times the crop's own side.
MAX_CROP_RANGE = 4


class BrokenImage(Exception):
    """An image that cannot be used; the text says why in one line."""


class LastFrame(BrokenImage):
    """A frame that cannot be used, after which none of its file can."""


Broken = tuple[str, str]  # the name of an image that does not decode, and why


@dataclass(frozen=True)
class Decoder:
    """Turns encoded images into uint8 arrays [channels, height, width].

    With crop="center" every array has the size `resolution`. With crop="random" images are only resized: the shorter
    side fits, the longer one is kept up to MAX_CROP_RANGE times the crop's. The crop is drawn at each visit.
    """

    resolution: tuple[int, int]  # (height, width) of the crop
    channels: int  # 1 (grey), 3 (RGB) or 4 (RGBA)
    background: tuple[int, int, int]  # RGB behind transparent pixels when `channels` is 1 or 3, each in [0, 255]
    crop: str  # "center" or "random"
    max_pixels: int  # a larger image is refused before it is decoded
    # Of grey images of more than 8 bits: black and white, beyond which values are cut off; None: 0 and `grey_white`.
    value_range: tuple[float, float] | None = None
    grey_white: int | None = None  # None: 255 or 65535, as each image's own values have it
    frames: str = "first"  # which frames or pages of a file are images of the dataset: "first" or "all"
    frame: int = 0  # the one that is decoded, composed with those before it as viewers do; 0: the first picture

    def at(self, frame: int) -> Self:
        """A decoder of another frame."""
        return replace(self, frame=frame)

    @property
    def _reach(self) -> int:
        return MAX_CROP_RANGE if self.crop == "random" else 1

    @property
    def max_bytes(self) -> int:
        """No decoded image is larger."""
        return self.channels * self.resolution[0] * self.resolution[1] * self._reach

    def __call__(self, encoded: bytes | Path) -> np.ndarray:
        """Decode one image.

        Raises:
            BrokenImage: not an image, no regular file, truncated, of an unknown mode, or above `max_pixels`; or it has
                no such frame.
        """
        if isinstance(encoded, Path) and os.path.exists(encoded) and not os.path.isfile(encoded):
            raise BrokenImage("not a regular file")  # opening a pipe would wait for ever
        try:
            with warnings.catch_warnings():
                # Whatever Pillow finds odd about a file, either it decodes or the reason is given once.
                warnings.simplefilter("ignore")
                with self.open(encoded) as image:
                    return self.from_image(image)
        except UnidentifiedImageError:
            raise BrokenImage(what_it_is(encoded)) from None
        except DAMAGE as error:
            raise BrokenImage(_reason(error)) from None

    def open(self, encoded: bytes | Path) -> AbstractContextManager[Image.Image]:
        """Opened for as long as it is decoded."""
        file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        image = Image.open(file, formats=formats_of(encoded))
        note_unread_colors(image, encoded)
        return image

    def from_image(self, image: Image.Image) -> np.ndarray:
        """The same for an opened image."""
        self.seek(image)
        image = upright(image)
        if is_deep(image):
            image = self._to_eight_bits(image)
        if has_other_colors(image) and image.mode != "P" and not image.has_transparency_data:
            image = in_srgb(self._resize(image))  # sooner: 12 megapixels take longer to convert than to decode
        image = self._resize(to_mode(image, self.channels, self.background))
        array = np.asarray(image)
        return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))

    def from_array(self, array: np.ndarray) -> np.ndarray:
        """The same for pixels of any type, [channels, height, width]: where they have the size, none is changed.

        Raises:
            BrokenImage: it is above `max_pixels`.
        """
        height, width = array.shape[1:]
        if height * width > self.max_pixels:
            raise BrokenImage(f"{height}x{width}, more than dataset.max_pixels={self.max_pixels}")
        if max(self.resolution[0] / height, self.resolution[1] / width) == 1:
            reach = [side * self._reach for side in self.resolution]
            top, left = (max(0, size - most) // 2 for size, most in zip((height, width), reach, strict=True))
            return np.ascontiguousarray(array[:, top : top + reach[0], left : left + reach[1]])
        planes = [np.asarray(self._resize(Image.fromarray(plane.astype(np.float32)))) for plane in array]
        # The filter overshoots at edges, to numbers that the source may not know, such as less than none.
        resized = np.stack([new.clip(old.min(), old.max()) for new, old in zip(planes, array, strict=True)])
        return (np.rint(resized) if array.dtype.kind in "iu" else resized).astype(array.dtype)

    def seek(self, image: Image.Image) -> None:
        """Turn an opened image to the frame, and compare its size with `max_pixels` before it is decoded.

        Raises:
            BrokenImage: it is too large, or cannot be reached.
        """
        if self.frame:
            # Frames may be larger than the first, and are composed on the way. Pillow refuses twice as many pixels.
            Image.MAX_IMAGE_PIXELS = self.max_pixels // 2
            try:
                gif.seek(image, self.frame) if image.format == "GIF" else image.seek(self.frame)
            except Image.DecompressionBombError:
                raise LastFrame(f"is larger than dataset.max_pixels={self.max_pixels}") from None
            except DAMAGE as error:
                if image.tell() != self.frame:
                    raise LastFrame(_reason(error)) from None
                raise
            finally:
                Image.MAX_IMAGE_PIXELS = None
        elif image.format == "TIFF" and not tiff.seek_first(image):
            raise BrokenImage("a raw photo, of which Pillow reads a preview alone (convert to .png)")
        if (pixels := image.width * image.height) > self.max_pixels:
            raise BrokenImage(f"{pixels / 1e6:.0f} megapixels, more than dataset.max_pixels={self.max_pixels}")

    def _to_eight_bits(self, image: Image.Image) -> Image.Image:
        """Mode I (whatever its dtype) or F to L, scaled and rounded; never cut off unless `value_range` says so.

        Raises:
            BrokenImage: nothing says what is black and white.
        """
        values = np.asarray(image)
        least, most = values.min(), values.max()
        if self.value_range is not None:
            if not (np.isfinite(least) and np.isfinite(most)):
                raise BrokenImage("holds values that are not finite")
            low, high = self.value_range
        else:
            low, high = 0, image.info.get(_WHITE) or self.grey_white or white_for(most)
            if image.mode == "F" or least < 0 or most > high:
                raise BrokenImage(
                    f"grey values from {least:g} to {most:g}, and nothing says which of them are black and "
                    "white; give dataset.value_range=[low,high]"
                )
        # Exact for 8 and 16 bits.
        scaled = (values.astype(np.float32).clip(low, high) - low) * np.float32(255 / (high - low))
        greys = np.rint(scaled).astype(np.uint8)
        if self.value_range is None and image.info.get(_WHITE_IS_ZERO):
            greys = 255 - greys
        picture = Image.fromarray(greys)
        if self.value_range is None:
            picture.info = {key: image.info[key] for key in ("gamma", "srgb", "icc_profile") if key in image.info}
        if (transparent := image.info.get("transparency")) is not None:
            picture.putalpha(Image.fromarray(values != transparent).convert("L"))
        return picture

    def _resize(self, image: Image.Image) -> Image.Image:
        """Antialiased resize until `resolution` is covered, then the centre crop.

        Lanczos, as in EDM's dataset_tool; Pillow widens the filter when it scales down, which is the antialiasing.
        """
        height, width = self.resolution
        scale = max(height / image.height, width / image.width)
        # What a crop can never reach need not be resized.
        box_width = min(image.width, self._reach * width / scale)
        box_height = min(image.height, self._reach * height / scale)
        left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
        size = (max(width, round(box_width * scale)), max(height, round(box_height * scale)))
        box = (left, top, left + box_width, top + box_height)
        return image.resize(size, Image.Resampling.LANCZOS, box=box)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits: integers of 16 or 32, or floating-point numbers."""
    return image.mode == "F" or image.mode.startswith("I")


def white_for(most: float) -> int:
    """What is white if the largest value is this one: integers of 8 bits are stored in larger ones, too."""
    return 255 if most <= 255 else 65535


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it was meant.

    Raises:
        BrokenImage: its colours are of a kind that cannot be shown.
    """
    if unknown := use_code_points(image):
        raise BrokenImage(unknown)
    color = transparent_color(image)
    if image.format == "GIF" and not image.tell():
        gif.load_first(image)
    if image.format == "TIFF":
        tiff.read_planes(image)
        if not isinstance(image.info.get("xmp"), bytes):
            image.info.pop("xmp", None)  # which Pillow would look for an orientation in
    image.load()  # damage to the pixels shows here
    correct_palette(image)
    with suppress(*DAMAGE):
        use_camera_profile(image)
    turn = _TURNS.get(_orientation(image))
    picture = with_stored_numbers(image, image.copy() if turn is None else image.transpose(turn))
    if color is not None:
        picture.info["transparency"] = color
    picture.info |= {_WHITE_IS_ZERO: white_is_zero(image), _WHITE: stated_white(image)}
    return picture.convert("RGB") if blank_alpha(image) else picture


def _orientation(image: Image.Image) -> Any:
    """What the EXIF or XMP of a loaded image says; Pillow has turned TIFF already.

    Not by `ImageOps.exif_transpose`, which writes the rest of the EXIF anew: what is odd in it would keep the picture
    from being turned.
    """
    with suppress(*DAMAGE):
        image.getexif()  # as far as it can be read
    with suppress(*DAMAGE):
        return image.getexif().get(_ORIENTATION)
    return None


def to_mode(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """Convert any mode to L, RGB or RGBA, in sRGB, without losing what the mode meant.

    Transparency is kept for 4 channels and otherwise composed over `background`.
    """
    image = image.convert(_SINGLE_WAYS.get(image.mode, image.mode))
    image = with_srgb_gamma(in_srgb(image))
    if image.has_transparency_data and channels < 4:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(backdrop, image).convert("RGB")
    return image.convert(MODES[channels])
