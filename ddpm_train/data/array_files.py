"""Files of arrays: for each ending how to look at one, and how to read an image of it. Imports no torch."""

import logging
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_train.config.mistakes import Mistakes, one_of
from ddpm_train.data.formats import what_it_is

_GDAL_NODATA = 42113  # a tag of GeoTIFF: a text
_NPY = np.lib.format.MAGIC_PREFIX
# Of what tifffile logs about a file, giving zeros or fewer images: some of it is not there.
_LOST = ("missing", "invalid page offset", "corrupted", "failed to reshape")


class Header(NamedTuple):
    """What a file says of its array without reading it.

    Attributes:
        no_data: the number that stands where nothing was measured; None: it names none.
        unused: how many images it holds besides.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    no_data: float | None = None
    unused: int = 0


@dataclass(frozen=True)
class ArrayReader:
    """Reads one kind of file.

    Attributes:
        header: of the array of this name in a file; None: of the only one.
        read: the array, mapped into memory where that can be.
        package: that must be installed.
    """

    header: Callable[[Path, str | None], Header]
    read: Callable[[Path, str | None], np.ndarray]
    package: str | None = None

    def item(self, path: Path, key: str | None, number: int | None) -> np.ndarray:
        """The image of that number in a file; None: all of the file is one."""
        status = os.stat(path)  # a file may be replaced while the process lives
        array = _whole(self.read, path, key, (status.st_ino, status.st_size, status.st_mtime_ns))
        return array if number is None else array[number]


@lru_cache(maxsize=1)  # the next image is mostly one of the same file
def _whole(
    read: Callable[[Path, str | None], np.ndarray], path: Path, key: str | None, version: tuple[int, ...]
) -> np.ndarray:
    return read(path, key)


def _read_npy(path: Path, key: str | None) -> np.ndarray:
    with open(path, "rb") as file:
        if file.read(len(_NPY)) != _NPY:
            raise ValueError(what_it_is(path))
    array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    return array


def _npy_header(path: Path, key: str | None) -> Header:
    array = _read_npy(path, key)
    return Header(array.shape, array.dtype)


def _npz_header(path: Path, key: str | None) -> Header:
    with zipfile.ZipFile(path) as archive, archive.open(_member(path, key, archive)) as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        # The third version differs from the second by the names of fields alone.
        read: Any = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return Header(shape, dtype)


def _read_npz(path: Path, key: str | None) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(_member(path, key, archive)) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _member(path: Path, key: str | None, archive: zipfile.ZipFile) -> str:
    """The member of an archive that is meant.

    Raises:
        Mistakes: it holds several arrays, or none of that name.
    """
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if key is None and len(names) == 1:
        return f"{names[0]}.npy"
    if key not in names:
        held = f"{path.name} holds {', '.join(names) or 'no array'}"
        remedy = one_of(names) if names else "another file"
        raise Mistakes(f"dataset.image_column={key or 'null'}: {held}; give {remedy}")
    return f"{key}.npy"


@contextmanager
def _tiff_images(path: Path) -> Iterator[list[Any]]:
    """The images of a TIFF file, without thumbnails and overviews: tifffile's series, each of one or several of a size.

    Raises:
        ValueError: some of it is lost, or lies in other files.
    """
    from tifffile import TiffFile

    lost: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if any(word in text.lower() for word in _LOST):
            lost.append(re.sub("^<.*?> ", "", text))
        return False

    log = logging.getLogger("tifffile")
    log.addFilter(note)
    try:
        with TiffFile(path) as file:
            images = [each for each in file.series if not each.keyframe.is_reduced] or list(file.series)
            if lost:
                raise ValueError(f"damaged: {lost[0]}")
            if any(each.is_multifile for each in images):
                raise ValueError("its images lie in several files; write each into a file of its own")
            yield images
    finally:
        log.removeFilter(note)


def _tiff_header(path: Path, key: str | None) -> Header:
    with _tiff_images(path) as (first, *others):
        tag = first.keyframe.tags.get(_GDAL_NODATA)
        return Header(first.shape, first.dtype, None if tag is None else _number(tag.value), len(others))


def _number(text: Any) -> float | None:
    """None: none, or one that is not finite, which means no data in any file."""
    with suppress(TypeError, ValueError):
        return number if math.isfinite(number := float(text)) else None
    return None


def _read_tiff(path: Path, key: str | None) -> np.ndarray:
    with _tiff_images(path) as (first, *_):
        array: np.ndarray = first.asarray()
    return array


_TIFF = ArrayReader(_tiff_header, _read_tiff, "tifffile")
ARRAY_READERS: dict[str, ArrayReader] = {
    ".npy": ArrayReader(_npy_header, _read_npy),
    ".npz": ArrayReader(_npz_header, _read_npz),
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
