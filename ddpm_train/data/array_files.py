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
from ddpm_train.data.paths import ending_of

_GDAL_NODATA = 42113  # a tag of GeoTIFF: a text
_NPY = np.lib.format.MAGIC_PREFIX
# Of what tifffile logs about a file, giving zeros or fewer images: some of it is not there.
_LOST = ("missing", "invalid page offset", "corrupted", "failed to reshape")
_MOST_NAMED = 8  # arrays of a file, in a message


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
        read: the array of this name in a file; None: the only one. Where it can be, its pixels are read when asked for.
        header: of that array; None: as `read` has it, which then reads no pixels.
        package: that must be installed.
    """

    read: Callable[[Path, str | None], np.ndarray]
    header: Callable[[Path, str | None], Header] | None = None
    package: str | None = None

    def header_of(self, path: Path, key: str | None) -> Header:
        if self.header is not None:
            return self.header(path, key)
        array = self.read(path, key)
        return Header(array.shape, array.dtype)

    def item(self, path: Path, key: str | None, place: tuple[int, ...]) -> np.ndarray:
        """The image at that place in the leading axes of a file's array; (): all of it is one."""
        status = os.stat(path)  # a file may be replaced while the process lives
        image: np.ndarray = _whole(self.read, path, key, (status.st_ino, status.st_mtime_ns, status.st_size))[place]
        return image


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
    """The member of an archive that is meant."""
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    return f"{_only(path, key, names)}.npy"


def _only(path: Path, key: str | None, names: list[str]) -> str:
    """The name of the array that is meant.

    Raises:
        Mistakes: there are several, or none of that name.
    """
    if key is None and len(names) == 1:
        return names[0]
    if key is None or key not in names:
        held = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
        remedy = one_of(names[:_MOST_NAMED]) if names else "another file"
        raise Mistakes(f"dataset.image_column={key or 'null'}: {path.name} holds {held or 'no array'}; give {remedy}")
    return key


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


def _read_hdf5(path: Path, key: str | None) -> Any:
    import h5py

    arrays: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and _is_array(item):
            arrays[name] = item

    # It stays open for as long as an array of it is used; some file systems know no locks.
    h5py.File(path, "r", locking=False).visititems(note)
    return arrays[_only(path, key, list(arrays))]


def _read_zarr(path: Path, key: str | None) -> Any:
    import zarr

    found = zarr.open(path, mode="r")
    if isinstance(found, zarr.Array):
        return found
    members = sorted(found.members(max_depth=None))
    arrays = {name: item for name, item in members if isinstance(item, zarr.Array) and _is_array(item)}
    return arrays[_only(path, key, list(arrays))]


def _is_array(item: Any) -> bool:
    """Whether these may be images, and not labels or names."""
    return len(item.shape) >= 2 and item.dtype.kind in "biuf"


@contextmanager
def _fits_image(path: Path, key: str | None) -> Iterator[Any]:
    """The image of that name in a FITS file; one without a name is called by its number."""
    from astropy.io import fits

    with fits.open(path) as file:
        images: dict[str, Any] = {}
        for number, unit in enumerate(file):
            if unit.is_image and len(unit.shape) >= 2:
                images.setdefault(unit.name or str(number), unit)
        yield images[_only(path, key, list(images))]


def _fits_header(path: Path, key: str | None) -> Header:
    with _fits_image(path, key) as image:
        one = image.section[(slice(0, 1),) * len(image.shape)]  # several keywords make its type
        return Header(image.shape, one.dtype)


def _read_fits(path: Path, key: str | None) -> np.ndarray:
    with _fits_image(path, key) as image:
        array: np.ndarray = image.data
    return array


def _nifti_header(path: Path, key: str | None) -> Header:
    import nibabel

    held = nibabel.load(path).dataobj
    return Header(held.shape[::-1], _scaled_type(held.dtype, held.slope, held.inter))


def _read_nifti(path: Path, key: str | None) -> np.ndarray:
    """[time, z, y, x] of what the format has as x, y, z, time: an image is a slice."""
    import nibabel

    held = nibabel.load(path).dataobj
    return _scaled(held.get_unscaled(), held.slope, held.inter).T


def _dicom_header(path: Path, key: str | None) -> Header:
    from pydicom import dcmread

    dicom = dcmread(path, stop_before_pixels=True)
    frames, samples = int(dicom.get("NumberOfFrames") or 1), int(dicom.SamplesPerPixel)
    shape = [frames] * (frames > 1) + [dicom.Rows, dicom.Columns] + [samples] * (samples > 1)
    stored = np.dtype(f"{'i' if dicom.PixelRepresentation else 'u'}{max(1, dicom.BitsAllocated // 8)}")
    return Header(tuple(shape), _scaled_type(stored, *_rescale(dicom)))


def _read_dicom(path: Path, key: str | None) -> np.ndarray:
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    dicom = dcmread(path)
    return _scaled(pixel_array(dicom), *_rescale(dicom))


def _rescale(dicom: Any) -> tuple[float, float]:
    """Slope and intercept from what a scanner stores to its units: of CT, those of Hounsfield."""
    return float(dicom.get("RescaleSlope", 1)), float(dicom.get("RescaleIntercept", 0))


def _scaled_type(stored: np.dtype[Any], slope: float, intercept: float) -> np.dtype[Any]:
    """Of whole numbers int16, as Hounsfield units are. An image with larger ones is then broken, with that reason."""
    if (slope, intercept) == (1, 0):
        return stored
    are_whole = stored.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer()
    return np.dtype(np.int16 if are_whole else np.float32)


def _scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    return stored if (slope, intercept) == (1, 0) else stored * float(slope) + float(intercept)


_TIFF = ArrayReader(_read_tiff, _tiff_header, "tifffile")
_HDF5 = ArrayReader(_read_hdf5, package="h5py")
_FITS = ArrayReader(_read_fits, _fits_header, "astropy")
_NIFTI = ArrayReader(_read_nifti, _nifti_header, "nibabel")
_DICOM = ArrayReader(_read_dicom, _dicom_header, "pydicom")
ARRAY_READERS: dict[str, ArrayReader] = {
    ".npy": ArrayReader(_read_npy),
    ".npz": ArrayReader(_read_npz, _npz_header),
    **dict.fromkeys((".tif", ".tiff"), _TIFF),
    **dict.fromkeys((".h5", ".hdf5"), _HDF5),
    ".zarr": ArrayReader(_read_zarr, package="zarr"),
    **dict.fromkeys((".fits", ".fits.gz", ".fit"), _FITS),
    **dict.fromkeys((".nii", ".nii.gz"), _NIFTI),
    ".dcm": _DICOM,
}


def reader_of(path: Path | str) -> ArrayReader:
    """Of a file with one of these endings."""
    return ARRAY_READERS[ending_of(path)]
