"""What a file means by its numbers where Pillow does not ask: colour profiles, blank alpha, white that is 0.

Imports no torch (it runs in workers).
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO = 262, 0
# Their fourth channel is often nothing; what is blank all over is shown without it by Windows, Photoshop and browsers.
_WITHOUT_ALPHA = ("BMP", "DIB", "TGA")
_PROFILED = ("L", "RGB", "RGBA", "CMYK")
# A profile that moves no colour by more levels is sRGB under one of its many names.
_SAME_LEVELS = 3


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
    return bool(getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO)


def blank_alpha(image: Image.Image) -> bool:
    """Whether a loaded image has an alpha channel that is none."""
    return image.format in _WITHOUT_ALPHA and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


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
