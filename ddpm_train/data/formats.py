"""Which endings are those of images: what the installed Pillow decodes, and what nothing here does. No torch."""

import os
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import Image

from ddpm_train.system.files import LFS_POINTER

# Each is known by how it begins, whatever its file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
# Of what is only read from files of its ending, these are recognised in others.
_BY_ENDING = ("PSD", "ICO", "ICNS", "DDS", "SGI", "QOI")
# What Pillow has an ending for besides, and is no picture of pixels: it hands drawings to helper programs (EPS to
# Ghostscript), and films and fields of measurements are none (of FITS it reads numbers without their scale and sign).
# Today's .pcd are point clouds.
_NO_PICTURES = {"EPS", "WMF", "PDF", "MPEG", "FLI", "BUFR", "GRIB", "HDF5", "FITS", "PCD"}
# What a package teaches Pillow: its module, what registers it there, the format and the endings.
_PACKAGES = {
    "pillow-heif": ("pillow_heif", "register_heif_opener", "HEIF", (".heic", ".heif", ".hif")),
    "pillow-jxl-plugin": ("pillow_jxl", None, "JXL", (".jxl",)),
}
_CONVERT = "convert to .png"
_RAW = (
    *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    *(".3fr", ".erf", ".kdc", ".mrw", ".rwl", ".x3f"),
)
_OTHERS = (".exr", ".hdr", ".psb", ".xcf", ".kra", ".dcm", ".bpg", ".jxr", ".wdp", ".pam", ".fits", ".fit", ".fts")
# Endings of images that nothing may be there to read, and what then helps. Raw photos begin like TIFF, with a preview.
REMEDIES = {
    **{ending: f"pip install {package}" for package, (_, _, _, endings) in _PACKAGES.items() for ending in endings},
    **dict.fromkeys((".avif", ".avifs", ".webp"), "pip install -U pillow"),
    **dict.fromkeys((*_RAW, *_OTHERS), _CONVERT),
}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_BEGINNING_BYTES = 256
# What else is found where an image was meant, by how it begins, in small letters.
_BEGINNINGS = {
    LFS_POINTER: "a Git LFS pointer (git lfs pull)",
    **dict.fromkeys((b"pk\3\4", b"\x1f\x8b", b"rar!", b"7z\xbc\xaf"), "an archive (unpack it)"),
    **dict.fromkeys((b"<!doctype html", b"<html"), "a web page (download it anew)"),
    b"<svg": f"SVG ({_CONVERT})",
    b"p7\n": f"PAM ({_CONVERT})",
    b"simple  =": f"FITS ({_CONVERT})",
    b"%pdf": f"PDF ({_CONVERT})",
}


@cache
def decodable() -> dict[str, str]:
    """The endings, in small letters, of what Pillow decodes here, each with its format."""
    for module, register, _, _ in _PACKAGES.values():
        with suppress(ImportError):
            plugin = import_module(module)
            if register is not None:
                getattr(plugin, register)()
    known = {ending: "JPEG" if name == "MPO" else name for ending, name in Image.registered_extensions().items()}
    return {
        ending: name
        for ending, name in known.items()
        if name in Image.OPEN and name not in _NO_PICTURES and REMEDIES.get(ending) != _CONVERT
    }


def formats_of(encoded: bytes | Path) -> tuple[str, ...]:
    """The formats to try: those known by how they begin, and what the file's ending says."""
    more = {name for _, _, name, _ in _PACKAGES.values() if decodable() and name in Image.OPEN}
    if isinstance(encoded, Path) and (own := decodable().get(encoded.suffix.lower())):
        more.add(own)
    return (*FORMATS, *sorted(more - {*FORMATS}))


# How files begin that are images for certain: no text or program begins so.
_FOR_CERTAIN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  \r\n")


def begins_like_image(path: str) -> bool:
    """Whether a file is an image by how it begins, whatever its ending."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            start = file.read(_BEGINNING_BYTES)
    except OSError:
        return False
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return webp or start.startswith(_FOR_CERTAIN) or (start[4:8] == b"ftyp" and _modern_ending(start) is not None)


def what_it_is(encoded: bytes | Path) -> str:
    """What no format knows as its own, by how it begins, and what would help: people rename and download anything."""
    if isinstance(encoded, Path):
        with open(encoded, "rb") as file:
            start = file.read(_BEGINNING_BYTES)
    else:
        start = encoded[:_BEGINNING_BYTES]
    if not start:
        return "an empty file"
    if start[12:16] == b"CgBI":
        return f"PNG as apps for iPhones hold it ({_CONVERT})"
    if ending := _modern_ending(start):
        name = ending[1:].upper()
        return f"a damaged {name} image" if ending in decodable() else f"{name} ({REMEDIES[ending]})"
    if kind := _format_of(start):
        tried = kind in formats_of(encoded)
        return f"damaged, or a kind of {kind} that Pillow does not read" if tried else f"{kind} ({_CONVERT})"
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    return next((what for beginning, what in _BEGINNINGS.items() if text.startswith(beginning)), "not an image")


def _format_of(start: bytes) -> str | None:
    """The format whose files begin so, whether Pillow can read this one or not."""
    decodable()  # makes Pillow know all of them
    accepts = {name: Image.OPEN[name][1] for name in (*FORMATS, *_BY_ENDING) if name in Image.OPEN}
    return next((name for name, accept in accepts.items() if accept is not None and accept(start) is True), None)


def _modern_ending(start: bytes) -> str | None:
    """The ending of what begins like HEIC, AVIF or JPEG XL, which not every Pillow reads."""
    if start[4:8] == b"JXL " or start.startswith(b"\xff\x0a"):
        return ".jxl"
    if start[4:8] != b"ftyp":
        return None
    box = start[8 : int.from_bytes(start[:4])]
    brands = {box[place : place + 4] for place in range(0, len(box), 4)}
    return ".avif" if brands & {b"avif", b"avis"} else ".heic" if brands & _HEIF_BRANDS else None
