"""Files of arrays: for each ending how to look at one, and how to read an image of it. Imports no torch."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_train.config.mistakes import Mistakes, one_of


class Header(NamedTuple):
    """What a file says of its array without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


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
        array = _whole(self.read, path, key)
        return array if number is None else array[number]


@lru_cache(maxsize=1)  # the next image is mostly one of the same file
def _whole(read: Callable[[Path, str | None], np.ndarray], path: Path, key: str | None) -> np.ndarray:
    return read(path, key)


def _read_npy(path: Path, key: str | None) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _npy_header(path: Path, key: str | None) -> Header:
    array = _read_npy(path, key)
    return Header(array.shape, array.dtype)


def _npz_header(path: Path, key: str | None) -> Header:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        with archive.open(f"{_only(path, key, names)}.npy") as file:
            version = np.lib.format.read_magic(file)
            of_version: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = of_version[version](file)
    return Header(shape, dtype)


def _read_npz(path: Path, key: str | None) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        array: np.ndarray = arrays[_only(path, key, list(arrays))]
    return array


def _only(path: Path, key: str | None, names: list[str]) -> str:
    """The name of the array that is meant.

    Raises:
        Mistakes: there are several, or none of that name.
    """
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        held = f"{path.name} holds {', '.join(names) or 'nothing'}"
        raise Mistakes(f"dataset.image_column={key or 'null'}: {held}; give {one_of(names) or 'another file'}")
    return key


def _tiff_header(path: Path, key: str | None) -> Header:
    from tifffile import TiffFile

    with TiffFile(path) as file:
        return Header(file.series[0].shape, file.series[0].dtype)


def _read_tiff(path: Path, key: str | None) -> np.ndarray:
    from tifffile import imread

    array: np.ndarray = imread(path, series=0)
    return array


_TIFF = ArrayReader(_tiff_header, _read_tiff, "tifffile")
ARRAY_READERS: dict[str, ArrayReader] = {
    ".npy": ArrayReader(_npy_header, _read_npy),
    ".npz": ArrayReader(_npz_header, _read_npz),
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
