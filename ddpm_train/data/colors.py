"""What a file means by its numbers where Pillow does not ask: profiles, gamma, palettes, blank alpha, white that is 0.

Imports no torch (it runs in workers).
"""

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

# Tags of TIFF, and a value.
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _COLOR_MAP, _EXTRA_SAMPLES = 258, 262, 320, 338
_WHITE_IS_ZERO = 0
# Their fourth channel is often nothing; what is blank all over is shown without it by Windows, Photoshop and browsers.
_WITHOUT_ALPHA = ("BMP", "DIB", "TGA", "ICO", "CUR")
_PROFILED = ("L", "RGB", "RGBA", "CMYK")
# A profile that moves no colour by more levels is sRGB under one of its many names.
_SAME_LEVELS = 3
_SRGB_GAMMA = 0.45455  # what a PNG file says that holds sRGB, or something near it
_NEAR_SRGB = 0.02


def transparent_grey(image: Image.Image) -> int | None:
    """Which grey of an opened PNG file is transparent, on the scale that its pixels have once they are loaded.

    Pillow spreads greys of 2 and 4 bits over 8, and leaves this one as it is.
    """
    grey = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(grey, int) or not (tiles := getattr(image, "tile", None)):
        return None
    return {"L;2": 85, "L;4": 17}.get(tiles[0].args, 1) * grey


def white_is_zero(image: Image.Image) -> bool:
    """Whether an opened TIFF file stores white as 0. Pillow inverts that for 8 bits and fewer."""
    return bool(_tags(image).get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO)


def stated_white(image: Image.Image) -> int | None:
    """The white of an opened grey TIFF file of 12 bits, which Pillow leaves as they are in integers of 16."""
    return 4095 if _tags(image).get(_BITS_PER_SAMPLE) == (12,) else None


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Those of a TIFF file."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def blank_alpha(image: Image.Image) -> bool:
    """Whether a loaded image has an alpha channel that is none."""
    unsaid = image.format in _WITHOUT_ALPHA or (image.format == "TIFF" and _EXTRA_SAMPLES not in _tags(image))
    return unsaid and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def with_palette_of_8_bits(image: Image.Image) -> None:
    """Correct the palette of a loaded TIFF file whose writer took the 16-bit entries for 8-bit ones.

    All of it would be black. The tools of libtiff tell such palettes by their values, too.
    """
    entries = _tags(image).get(_COLOR_MAP, ())
    if image.mode == "P" and entries and max(entries) <= 255:
        image.putpalette(bytes(entries), "RGB;L")


def uncovered(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Which box of an opened GIF file is all that its first frame paints; None: the whole picture.

    What lies around it is transparent wherever such a file is shown. Pillow fills it with the palette's first colour.
    """
    tiles = getattr(image, "tile", None)
    if image.format != "GIF" or image.tell() or not tiles:
        return None
    box: tuple[int, int, int, int] = tiles[0].extents
    return None if box == (0, 0, *image.size) else box


def transparent_around(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A loaded image with nothing outside the box."""
    picture = image.convert("RGBA")
    shown = Image.new("RGBA", image.size)
    shown.paste(picture.crop(box), box)
    return shown


def with_srgb_gamma(image: Image.Image) -> Image.Image:
    """An image of a PNG file whose numbers have another gamma than sRGB, such as renderers store light in, as sRGB.

    A profile, or the word that it is sRGB, stands above a gamma (PNG specification, third edition, 4.3).
    """
    info = image.info
    gamma = info.get("gamma")
    if not gamma or "srgb" in info or info.get("icc_profile") or abs(gamma - _SRGB_GAMMA) < _NEAR_SRGB:
        return image
    mode = {"1": "L", "P": "RGBA" if image.has_transparency_data else "RGB"}.get(image.mode, image.mode)
    if mode == "RGB" and image.has_transparency_data:
        mode = "RGBA"  # one of its colours is transparent
    light = (np.arange(256) / 255) ** (1 / gamma)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = np.rint(255 * levels).astype(int).tolist()
    alpha = list(range(256)) if mode in ("LA", "RGBA") else []
    return image.convert(mode).point(table * (len(mode) - bool(alpha)) + alpha)


def has_other_colors(image: Image.Image) -> bool:
    """Whether an image of 8 bits has an ICC profile of other colours than those of sRGB."""
    profile = image.info.get("icc_profile")
    return bool(profile) and image.mode in _PROFILED and _to_srgb(profile, image.mode) is not None


def in_srgb(image: Image.Image) -> Image.Image:
    """An image in the colours that its ICC profile says; without one it is taken for sRGB.

    Telephones store Display P3, some cameras Adobe RGB: taken for sRGB, either looks pale.
    """
    if not has_other_colors(image):
        return image
    if image.mode == "RGB" and image.has_transparency_data:
        image = image.convert("RGBA")  # one of its colours is transparent
    transform = _to_srgb(image.info["icc_profile"], image.mode)
    return image if transform is None else transform.apply(image)


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None: it is sRGB already, or no profile for such images."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = "RGBA" if mode == "RGBA" else "RGB"
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, srgb, mode, target)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
        return None
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    if mode == "L":
        colours = np.repeat(levels[None, :, None], 3, axis=2)
    before = Image.fromarray(colours).convert(mode)
    moved = np.asarray(transform.apply(before).convert("RGB")).astype(int) - colours
    return transform if np.abs(moved).max() > _SAME_LEVELS else None
