"""What a file means by its numbers where Pillow does not ask: profiles, code points, gamma, blank alpha, …

Imports no torch (it runs in workers).
"""

import io
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

# Tags of TIFF, and values of some.
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _COLOR_MAP, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 320, 338, 339
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED = 1, 2
# Their fourth channel is often nothing; what is blank all over is shown without it by Windows, Photoshop and browsers.
_WITHOUT_ALPHA = ("BMP", "DIB", "TGA", "ICO", "CUR")
# Modes, and that of the colours in them which a profile is for.
_PROFILED = {"L": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK"}
# A profile that moves no colour by more levels is sRGB under one of its many names.
_SAME_LEVELS = 3
# Adobe RGB (1998), which cameras tell by EXIF alone.
_ADOBE_PRIMARIES, _ADOBE_GAMMA = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)), 563 / 256
_INTEROPERABILITY, _INDEX, _ADOBE_INDEX = 0xA005, 1, "R03"  # of EXIF: a directory, a tag in it, a value of that
_BMP_HEADER_5 = 124  # bytes, of the version that may have a profile
_SRGB_GAMMA = 0.45455  # what a PNG file says that holds sRGB, or something near it
_NEAR_SRGB = 0.02
# ITU-T H.273 numbers colours by their primaries and their transfer function; 2 says nothing.
_CODE_POINTS, _UNSPECIFIED = "code points", (2, 2)
_SRGB_PRIMARIES = (1, 2)
_D65 = (0.3127, 0.3290)  # the white of these
_PRIMARIES = {
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),  # BT.601, 625 lines
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),  # BT.601, 525 lines
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),  # SMPTE 240M
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
# What cameras and encoders of films name so is meant for the same screens: BT.709 and its kin, a gamma of 2.2.
_SRGB_CURVES = (1, 2, 4, 6, 7, 13, 14, 15)
_HIGH_DYNAMIC_RANGE = {16: "high dynamic range, PQ", 18: "high dynamic range, HLG"}


def transparent_color(image: Image.Image) -> int | tuple[int, ...] | None:
    """Which grey or colour of an opened PNG file is transparent, on the scale that its pixels have once loaded.

    Pillow spreads greys of 2 and 4 bits over 8, keeps 8 of the 16 bits of colours, and leaves this one as it is.
    """
    color = image.info.get("transparency")
    if image.format != "PNG" or not (tiles := getattr(image, "tile", None)):
        return None
    if isinstance(color, int):
        return {"L;2": 85, "L;4": 17}.get(tiles[0].args, 1) * color
    if isinstance(color, tuple) and tiles[0].args == "RGB;16B":
        return tuple(value >> 8 for value in color)
    return None


def white_is_zero(image: Image.Image) -> bool:
    """Whether an opened TIFF file stores white as 0. Pillow inverts that for 8 bits and fewer."""
    return bool(_tags(image).get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO)


def stated_white(image: Image.Image) -> int | None:
    """The white of an opened grey TIFF file of 12 bits, which Pillow leaves as they are in integers of 16."""
    return 4095 if _tags(image).get(_BITS_PER_SAMPLE) == (12,) else None


def with_stored_numbers(image: Image.Image, picture: Image.Image) -> Image.Image:
    """A picture made of a loaded TIFF file, with the greys that the file has.

    Pillow takes signed integers of 8 bits for unsigned ones, and unsigned ones of 32 for signed ones.
    """
    kind, bits = (_tags(image).get(tag, (1,)) for tag in (_SAMPLE_FORMAT, _BITS_PER_SAMPLE))
    if image.mode == "L" and kind == (_SIGNED,):
        return Image.fromarray(np.asarray(picture).view(np.int8).astype(np.int32))
    if image.mode == "I" and kind == (_UNSIGNED,) and bits == (32,) and np.asarray(picture).min() < 0:
        return Image.fromarray(np.asarray(picture).view(np.uint32).astype(np.float32))
    return picture


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Those of a TIFF file."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def blank_alpha(image: Image.Image) -> bool:
    """Whether a loaded image has an alpha channel that is none."""
    unsaid = image.format in _WITHOUT_ALPHA or (image.format == "TIFF" and _EXTRA_SAMPLES not in _tags(image))
    return unsaid and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def correct_palette(image: Image.Image) -> None:
    """Correct the palette of a loaded image: inks that Pillow takes for colours, and entries of a TIFF file whose
    writer took those of 16 bits for 8-bit ones.

    All of the latter would be black. The tools of libtiff tell such palettes by their values, too.
    """
    if image.mode == "P" and image.palette is not None and image.palette.mode == "CMYK":  # of JPEG 2000
        inks = image.palette.tobytes()
        image.putpalette(Image.frombytes("CMYK", (len(inks) // 4, 1), inks).convert("RGB").tobytes())
    entries = _tags(image).get(_COLOR_MAP, ())
    if image.mode == "P" and entries and max(entries) <= 255:
        image.putpalette(bytes(entries), "RGB;L")


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


def note_unread_colors(image: Image.Image, encoded: bytes | Path) -> None:
    """Note in an image opened from such a file what it says of its colours, where Pillow does not read that.

    AVIF and HEIF name them by numbers; JPEG 2000 and BMP may hold a profile. Of PNG, Pillow hands it over: see below.
    """
    if image.format not in ("AVIF", "HEIF", "JPEG2000", "BMP") or "icc_profile" in image.info:
        return
    data = encoded if isinstance(encoded, bytes) else encoded.read_bytes()
    if image.format == "JPEG2000":
        if (place := data.find(b"colr\2")) >= 4:  # a box: its length, its name, a method and two bytes more
            length = int.from_bytes(data[place - 4 : place])
            image.info["icc_profile"] = data[place + 7 : place - 4 + length]
    elif image.format == "BMP":
        if data[14:18] == struct.pack("<I", _BMP_HEADER_5) and data[70:74] == b"DEBM":
            place, length = struct.unpack_from("<2I", data, 14 + 112)
            image.info["icc_profile"] = data[14 + place : 14 + place + length]
    elif (place := data.find(b"colrnclx") + 8) >= 8:
        image.info[_CODE_POINTS] = struct.unpack_from(">HH", data, place)


def _png_code_points(stream: Any, place: int, length: int) -> bytes:
    data: bytes = stream.fp.read(length)
    stream.im_info[_CODE_POINTS] = (data[0], data[1])
    return data


def _refuse_png(stream: Any, place: int, length: int) -> bytes:
    raise SyntaxError("not as the specification has it")


# Pillow asks its stream for a method of the name of each chunk, and has none for these. CgBI tells of Apple's own kind.
PngImagePlugin.PngStream.chunk_cICP = _png_code_points  # type: ignore[attr-defined]
PngImagePlugin.PngStream.chunk_CgBI = _refuse_png  # type: ignore[attr-defined]


def use_code_points(image: Image.Image) -> str | None:
    """Give an opened image the profile of the colours that its file names by numbers (ITU-T H.273), if it does.

    They stand above a profile and a gamma (PNG specification, third edition, 4.3).

    Returns:
        What it holds, if nothing here can show that.
    """
    primaries, transfer = image.info.pop(_CODE_POINTS, _UNSPECIFIED)
    if (primaries, transfer) == _UNSPECIFIED:
        return None
    if transfer not in _SRGB_CURVES or primaries not in (*_SRGB_PRIMARIES, *_PRIMARIES):
        kind = _HIGH_DYNAMIC_RANGE.get(transfer, f"colours with the code points {primaries} and {transfer}")
        return f"{kind} (convert to sRGB)"
    image.info["srgb"] = 0
    image.info.pop("icc_profile", None)
    if primaries in _PRIMARIES:
        image.info["icc_profile"] = _profile(_PRIMARIES[primaries])
    return None


def use_camera_profile(image: Image.Image) -> None:
    """Give a loaded photo of a camera that was set to Adobe RGB its profile: such files say it in EXIF (DCF 2.0)."""
    if image.format in ("JPEG", "MPO") and not image.info.get("icc_profile") and image.info.get("exif"):
        index = image.getexif().get_ifd(_INTEROPERABILITY).get(_INDEX)
        if str(index).rstrip("\0") == _ADOBE_INDEX:
            image.info["icc_profile"] = _profile(_ADOBE_PRIMARIES, _ADOBE_GAMMA)


@lru_cache
def _profile(primaries: tuple[tuple[float, float], ...], gamma: float | None = None) -> bytes:
    """The ICC profile of sRGB with other primaries, as (x, y), and perhaps a plain gamma."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132])
    places = {name: place for name, place, _ in struct.iter_unpack(">4sII", data[132 : 132 + 12 * count])}
    to_d50 = np.array(struct.unpack_from(">9i", data, places[b"chad"] + 8)).reshape(3, 3)
    colours = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    x, y = _D65
    amounts = np.linalg.solve(colours, (x / y, 1, (1 - x - y) / y))  # of each primary in white
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), (to_d50 @ (colours * amounts)).T, strict=True):
        struct.pack_into(">3i", data, places[name] + 8, *np.rint(column).astype(int).tolist())
    if gamma is not None:
        for name in (b"rTRC", b"gTRC", b"bTRC"):
            struct.pack_into(">H2xi", data, places[name] + 8, 0, round(gamma * 65536))  # a parametric curve, of kind 0
    return bytes(data)


def has_other_colors(image: Image.Image) -> bool:
    """Whether an image of 8 bits has an ICC profile of other colours than those of sRGB."""
    profile, colours = image.info.get("icc_profile"), _PROFILED.get(image.mode)
    return bool(profile and colours) and _to_srgb(profile, colours) is not None


def in_srgb(image: Image.Image) -> Image.Image:
    """An image in the colours that its ICC profile says; without one it is taken for sRGB.

    Telephones store Display P3, some cameras Adobe RGB: taken for sRGB, either looks pale.
    """
    profile, colours = image.info.get("icc_profile"), _PROFILED.get(image.mode)
    transform = _to_srgb(profile, colours) if profile and colours else None
    if transform is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    picture = transform.apply(image.convert(colours))
    if alpha is not None:
        picture.putalpha(alpha)
    return picture


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None: it is sRGB already, or no profile for such images."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
        return None
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    if mode == "L":
        colours = np.repeat(levels[None, :, None], 3, axis=2)
    before = Image.fromarray(colours).convert(mode)
    moved = np.asarray(transform.apply(before).convert("RGB")).astype(int) - colours
    return transform if np.abs(moved).max() > _SAME_LEVELS else None
