"""Arrays of any shape and type to pixels of one type."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ddpm_train.config.mistakes import Mistakes, as_written, one_of
from ddpm_train.config.pixels import DTYPES
from ddpm_train.data.decode import BrokenImage

if TYPE_CHECKING:  # its pydantic is a third of what a worker would import
    from ddpm_train.config.dataset import Dataset


@dataclass(frozen=True)
class ToPixels:
    """Turns arrays of a dataset into [channels, height, width] of one type."""

    channels: int
    dtype: str
    no_data: float | None
    fill: float | None

    @classmethod
    def of(cls, config: "Dataset", dtype: str) -> Self:
        """What a config asks for; raises `Mistakes` if the type does not hold `dataset.fill`."""
        fill, is_whole = config.fill, np.dtype(dtype).kind in "iu"
        least, most = _limits(dtype)
        if fill is not None and (not least <= fill <= most or (is_whole and fill != int(fill))):
            raise Mistakes(f"dataset.fill={as_written(fill)}: no number of type {dtype}; give another number")
        return cls(config.channels, dtype, config.no_data, fill)

    def __call__(self, array: np.ndarray, no_data: float | None = None) -> np.ndarray:
        """[H, W], [H, W, C] or [C, H, W] -> [C, H, W].

        Args:
            no_data: what its file says of that, if the config says nothing.

        Raises:
            BrokenImage: it has pixels without data and nothing to fill them, or numbers that the type does not hold.
        """
        if array.ndim == 2:
            array = array[None]
        elif array.shape[-1] == self.channels:
            array = np.moveaxis(array, -1, 0)
        array = self._filled(array, no_data if self.no_data is None else self.no_data)
        least, most = _limits(self.dtype)
        if array.dtype != self.dtype and (array.min() < least or array.max() > most):
            raise BrokenImage(f"holds numbers beyond those of dataset.dtype={self.dtype}")
        return np.ascontiguousarray(array, dtype=self.dtype)

    def _filled(self, array: np.ndarray, no_data: float | None) -> np.ndarray:
        gaps = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(array.shape, dtype=bool)
        if no_data is not None:
            gaps |= array == no_data
        if not gaps.any():
            return array
        if self.fill is None:
            number = "dataset.no_data" if no_data in (None, self.no_data) else f"{no_data:g}, which its file calls so"
            raise BrokenImage(f"has pixels without data (NaN, infinity or {number}); give dataset.fill=NUMBER")
        return np.where(gaps, self.fill, array)


def _limits(dtype: str) -> tuple[float, float]:
    """The least and the greatest number of a type."""
    limits: Any = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    return float(limits.min), float(limits.max)


def dtype_of(config: "Dataset", found: Mapping[str, Counter[str] | int]) -> str:
    """The type that all arrays of a dataset are read as.

    Args:
        found: how many arrays are of each type.

    Raises:
        Mistakes: they are of several types, or of one that is not known, and the config does not say what to do.
    """
    held = " and ".join(found)
    if strange := [name for name in found if _kind(name) not in "biuf"]:
        raise Mistakes(
            f"dataset.dtype={config.dtype}: arrays of type {strange[0]} are no images; give arrays of numbers"
        )
    if config.dtype is None or config.dtype == "auto":
        if len(found) == 1 and held in DTYPES:
            return held
        why = f"are of type {held}" if len(found) == 1 else f"are of several types ({held})"
        raise Mistakes(f"dataset.dtype=auto: the arrays {why}; give {one_of(DTYPES)}, which all are then read as")
    if not config.dtype.startswith("float") and (floats := [name for name in found if _kind(name) == "f"]):
        raise Mistakes(f"dataset.dtype={config.dtype}: does not hold the numbers of type {floats[0]}; give float32")
    return config.dtype


def _kind(name: str) -> str:
    """A letter of NumPy's."""
    try:
        return np.dtype(name).kind
    except TypeError:  # of several fields, or of another library
        return "V"
