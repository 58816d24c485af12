"""Images of any channels and depth: arrays in files, or in a column of a dataset. Their numbers stay as they are."""

import math
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_train.config.mistakes import Mistakes, did_you_mean, not_installed, one_of
from ddpm_train.config.pixels import DTYPES, MOST_CHANNELS
from ddpm_train.data.array_files import ARRAY_READERS, Header, reader_of
from ddpm_train.data.array_pixels import ToPixels, dtype_of
from ddpm_train.data.content import content_hash
from ddpm_train.data.decode import DAMAGE, BrokenImage, Decoder
from ddpm_train.data.paths import ARRAY_ENDINGS, ZARR, ending_of
from ddpm_train.data.sources import HubSource, describe, path_groups
from ddpm_train.system.console import counted
from ddpm_train.system.failures import first_line
from ddpm_train.system.files import cache_folder, expanded

if TYPE_CHECKING:  # its pydantic is a third of what a worker would import
    from ddpm_train.config.dataset import Dataset


def num_leading(shape: Sequence[int], channels: int) -> int:
    """How many axes of an array of this shape count its images; 0: it is one image.

    Raises:
        ValueError: it is none, or of other channels.
    """
    if 0 in shape or len(shape) < 2:
        raise ValueError("no image")
    *_, height, width = shape
    if len(shape) > 2 and channels in (shape[-3], width):
        return len(shape) - 3
    # A narrow strip is rather an image of other channels.
    is_strip = len(shape) > 2 and width <= MOST_CHANNELS and 2 * width <= height
    if channels == 1 and not is_strip:
        return len(shape) - 2
    raise ValueError("of other channels")


def _is_one(shape: Sequence[int], channels: int) -> bool:
    """Whether an array of this shape is an image."""
    try:
        return num_leading(shape, channels) == 0
    except ValueError:
        return False


class ArrayFolder:
    """Files of arrays below a folder, in the order of their paths, or one file; each may hold several images.

    Attributes:
        dtype: of the pixels.
        left_out: what of the folder is not used, in lines.
    """

    commit = None

    def __init__(self, config: "Dataset", split: str) -> None:
        from ddpm_train.data.image_files import find_images  # not above: its pydantic, too

        root = expanded(config.path)
        if ending_of(root) in ARRAY_ENDINGS and (root.is_file() or ending_of(root) == ZARR):
            self._root, self._paths, self.left_out = root.parent, [root.name], []
        else:
            found = find_images(root, ARRAY_ENDINGS)
            self._root, self._paths, self.left_out = root, found.paths, list(found.lines())
        if not self._paths:
            reason = "; ".join(self.left_out) or f"no file below it ends in {one_of(ARRAY_ENDINGS)}"
            raise Mistakes(f"dataset.path={root}: no arrays in it ({reason}); give the folder that holds them")
        self._key, self._cache_dir = config.image_column, cache_folder(config.cache_dir)
        _check_packages(root, self._paths)
        headers = [self._header(path) for path in self._paths]
        self._leading = _leading_axes(config, dict(zip(self._paths, headers, strict=True)))
        types = Counter(header.dtype.name for header in headers if isinstance(header, Header))
        self.dtype = dtype_of(config, types) if types else DTYPES[0]
        self._damage = {number: each for number, each in enumerate(headers) if isinstance(each, str)}
        self._starts = np.concatenate(([0], np.cumsum([math.prod(axes) for axes in self._leading])))
        self._no_data = [header.no_data if isinstance(header, Header) else None for header in headers]
        self._to_pixels = ToPixels.of(config, self.dtype)
        self.left_out += _notes([header for header in headers if isinstance(header, Header)], config)

    def _header(self, path: str) -> Header | str:
        """Or why the file cannot be read."""
        if not os.path.isfile(self._root / path) and ending_of(path) != ZARR:
            return "not a regular file"  # opening a pipe would wait for ever
        try:
            return reader_of(path).header_of(self._root / path, self._key)
        except Mistakes:
            raise
        except Exception as error:  # readers refuse by many kinds
            return first_line(error)

    @property
    def fingerprint(self) -> str:
        return f"{content_hash(self._root, [*self._files()], self._cache_dir)} {self._key} {self._to_pixels}"

    def _files(self) -> Iterator[str]:
        """All that holds pixels, relative to the folder: a Zarr store has many files."""
        for path in self._paths:
            if ending_of(path) != ZARR:
                yield path
                continue
            for folder, subfolders, files in os.walk(self._root / path):
                subfolders.sort()
                yield from (os.path.relpath(os.path.join(folder, file), self._root) for file in sorted(files))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[int, tuple[int, ...]]:
        """The number of its file, and where it is in the leading axes of that; (): it is the only one."""
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, tuple(map(int, np.unravel_index(index - int(self._starts[file]), self._leading[file])))

    def name(self, index: int) -> str:
        file, place = self._place(index)
        return f"{self._paths[file]}, image {','.join(map(str, place))}" if place else self._paths[file]

    def groups(self, by: str) -> Sequence[Hashable]:
        """Those of the files, see `path_groups`."""
        return np.repeat(np.array(path_groups(self._paths, by), dtype=object), np.diff(self._starts)).tolist()

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        file, place = self._place(index)
        if file in self._damage:
            raise BrokenImage(self._damage[file])
        path = self._root / self._paths[file]
        try:
            array = reader_of(path).item(path, self._key, place)
        except Exception as error:  # as above
            raise BrokenImage(first_line(error)) from None
        return decoder.from_array(self._to_pixels(array, self._no_data[file]))


def _notes(headers: Sequence[Header], config: "Dataset") -> Iterator[str]:
    """What is not used of files that say more than their array, in lines."""
    if unused := sum(header.unused for header in headers):
        yield (
            f"left out: {unused:,} further series of pages in .tif files (the first of each file is used); write each "
            "into a file of its own"
        )
    named = Counter(header.no_data for header in headers if header.no_data is not None)
    for number, files in named.items() if config.no_data is None else ():
        yield f"no data: {number:g}, which {counted(files, 'file')} call so; dataset.no_data names another number"


def _check_packages(root: Path, paths: Sequence[str]) -> None:
    """Raises `Mistakes` if a package is missing that reads some of the files."""
    endings = Counter(map(ending_of, paths))
    needed = {ending: ARRAY_READERS[ending].package for ending in endings}
    lines: dict[str, None] = {}
    for ending, package in needed.items():
        if package is not None:
            files = counted(endings[ending], f"{ending} file")
            lines |= dict.fromkeys(not_installed(f"dataset.path={root}: {files}", package, "scientific"))
    if lines:
        raise Mistakes(*lines)


def _leading_axes(config: "Dataset", headers: Mapping[str, Header | str]) -> list[tuple[int, ...]]:
    """The axes of each file that count its images; raises `Mistakes` if files are of other channels."""
    axes: list[tuple[int, ...]] = []
    other: list[str] = []
    for path, header in headers.items():
        if isinstance(header, str):  # a file that cannot be read counts as one broken image
            axes.append(())
            continue
        try:
            axes.append(header.shape[: num_leading(header.shape, config.channels)])
        except ValueError:
            other.append(f"{path} {_shape_text(header.shape)}")
    if other:
        of_all = f"{len(other):,} of {counted(len(headers), 'file')}"
        raise Mistakes(
            f"dataset.channels={config.channels}: {of_all} hold arrays of another shape ({describe(other, 3)}); an "
            "image is height x width x channels, or channels x height x width; several in one file come first"
        )
    return axes


def _shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


class ArrayColumn(HubSource):
    """A `datasets.Dataset` with a column of arrays: Array2D, Array3D, or lists of rows."""

    def __init__(self, config: "Dataset", split: str) -> None:
        super().__init__(config, split)
        feature = self._dataset.features[self._column]
        self._held = str(_number_type(feature))
        shape: Any = getattr(feature, "shape", None) or (None,)  # None: of any length, which each array tells
        if None not in shape and not _is_one(shape, config.channels):
            held = "x".join(map(str, shape))
            raise Mistakes(
                f"dataset.channels={config.channels}: column {self._column} holds arrays of {held}; give "
                "dataset.channels=… as they have it"
            )
        self.dtype = dtype_of(config, {self._held: 1})
        self._to_pixels = ToPixels.of(config, self.dtype)

    def _choose_column(self, dataset: Any, config: "Dataset") -> tuple[str, Any]:
        found = [name for name, feature in dataset.features.items() if _number_type(feature) is not None]
        column = config.image_column
        if column is None and len(found) == 1:
            column = found[0]
        if column is None or column not in found:
            known = one_of(found) if found else "another dataset: none of its columns holds arrays"
            typo = did_you_mean(column, found) if column else ""
            raise Mistakes(f"dataset.image_column={column or 'null'}: no column of arrays;{typo or f' give {known}'}")
        return column, dataset.select_columns([column])

    def _named_files(self) -> list[str]:
        return []

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint} {self._to_pixels}"

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        cell = self._dataset[index][self._column]
        if cell is None:
            raise BrokenImage("empty")
        try:
            array = np.array(cell, dtype=self._held)
        except DAMAGE as error:  # ragged, or with cells that are empty
            raise BrokenImage(first_line(error)) from None
        if not _is_one(array.shape, self._to_pixels.channels):
            raise BrokenImage(f"an array of {'x'.join(map(str, array.shape))}, which is no image of that many channels")
        return decoder.from_array(self._to_pixels(array))


def open_hub(config: "Dataset", split: str) -> HubSource:
    """What the `datasets` library loads: pictures, or with `dataset.dtype` arrays."""
    return HubSource(config, split) if config.dtype is None else ArrayColumn(config, split)


def _number_type(feature: Any) -> str | None:
    """The type of the numbers in a column of arrays of two or three axes; None: it is none."""
    from datasets import Array2D, Array3D

    if isinstance(feature, Array2D | Array3D):
        return str(feature.dtype)
    depth = 0
    while (inner := getattr(feature, "feature", None)) is not None:
        feature, depth = inner, depth + 1
    held = str(getattr(feature, "dtype", ""))
    return held if depth in (2, 3) and held.startswith(("uint", "int", "float")) else None
