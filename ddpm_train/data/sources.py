"""Where images come from. A source knows how many there are, how each is called, and how to load it."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from PIL import Image

from ddpm_train.config.mistakes import Mistakes, did_you_mean
from ddpm_train.config.registry import resolve
from ddpm_train.config.text import printable
from ddpm_train.data.archives import file_named, member_named, read_member
from ddpm_train.data.columns import as_images, image_column
from ddpm_train.data.content import content_hash
from ddpm_train.data.decode import Broken, BrokenImage, Decoder
from ddpm_train.data.hf_datasets import load_dataset, own_folders
from ddpm_train.hub.access import find_licence
from ddpm_train.system.console import counted
from ddpm_train.system.failures import first_line
from ddpm_train.system.files import cache_folder, expanded

if TYPE_CHECKING:  # its pydantic is a third of what a worker would import
    from ddpm_train.config.dataset import Dataset

# How a text begins that holds a picture instead of naming one: JPEG, PNG, GIF and WebP in base64, or any in an address.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "data:")
EMBEDDED = {"fashion_tiny": 28}  # name -> side of a tile, in pixels


class Source(Protocol):
    """A sequence of images that a worker process can be sent (it pickles small).

    It may have a method `groups(by) -> Sequence[Hashable]`: for each image what `dataset.group_by` names, where images
    that belong together have the same. It may have an attribute `dtype`, one of `config.pixels.DTYPES`: its pixels are
    of that type, and not uint8.
    """

    @property
    def commit(self) -> str | None:
        """Of the repository on the Hub that it comes from, if it does."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the images may have; cheap to compute where they have not."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """How a person finds the image again."""

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        """The decoded image, or the frame of it that the decoder is for, [channels, height, width], uint8 or `dtype`.

        Raises:
            BrokenImage: it cannot be decoded.
        """


class EmbeddedSource:
    """The images that come with the package: one PNG of square tiles, read row by row."""

    commit = None

    def __init__(self, config: "Dataset", split: str) -> None:
        if config.path not in EMBEDDED:
            raise Mistakes(f"dataset.path={config.path}: not embedded;{did_you_mean(config.path, EMBEDDED)}")
        self._path = Path(__file__).parent / config.path / f"{split}.png"
        if not os.path.isfile(self._path):  # also of a name that no file can have
            key = "split" if split == config.split else "validation_split"
            raise Mistakes(f"dataset.{key}={split}: {config.path} has the splits train and validation")
        side = EMBEDDED[config.path]
        with Image.open(self._path) as mosaic:
            pixels = np.asarray(mosaic)
        tiles = pixels.reshape(pixels.shape[0] // side, side, pixels.shape[1] // side, side)
        self._tiles = tiles.transpose(0, 2, 1, 3).reshape(-1, side, side)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._tiles.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._tiles)

    def name(self, index: int) -> str:
        return f"{self._path.name} tile {index}"

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        return decoder.from_image(Image.fromarray(self._tiles[index]))


class FolderSource:
    """Image files below a folder, at any depth, in the order of their paths."""

    commit = None

    @classmethod
    def open(cls, config: "Dataset", split: str) -> Self:
        return cls(expanded(config.path), cache_folder(config.cache_dir), config.max_broken_fraction)

    def __init__(self, root: Path, cache_dir: Path | None = None, max_broken_fraction: float = 0.0) -> None:
        from ddpm_train.data.image_files import find_images  # not above: its pydantic, too
        from ddpm_train.data.metadata import unnamed_images

        found = find_images(root)
        if found.paths and found.unreadable.total() > max_broken_fraction * found.total:
            given = f"dataset.max_broken_fraction={max_broken_fraction}"
            raise Mistakes(f"{given}: {found.unreadable_text}; convert or remove them, or allow more")
        self._root, self._paths, self.left_out = root, found.paths, list(found.lines())
        self._cache_dir = cache_dir
        if not self._paths:
            reason = "; ".join(self.left_out) or "no file below it has the ending of an image"
            raise Mistakes(f"dataset.path={root}: no images in it ({reason}); give the folder that holds them")
        if line := unnamed_images(root, found.metadata, found.paths):
            self.left_out.append(line)

    @property
    def fingerprint(self) -> str:
        return content_hash(self._root, self._paths, self._cache_dir)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def groups(self, by: str) -> Sequence[Hashable]:
        """See `path_groups`."""
        return path_groups(self._paths, by)

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        return decoder(self._root / self._paths[index])


def path_groups(paths: Sequence[str], by: str) -> Sequence[Hashable]:
    """The folder of each file, or what a regular expression finds in its path below the dataset's folder.

    Raises:
        Mistakes: the expression does not match all of them.
    """
    names: dict[str, str] = {}  # of equal ones the first: a million would take a hundred MB
    if by == "folder":
        return [names.setdefault(folder, folder) for folder in map(os.path.dirname, paths)]
    found, others = [], []
    for path in paths:
        if (match := re.search(by, path)) is None:
            others.append(path)
        else:
            name = match[1] if match.re.groups and match[1] is not None else match[0]
            found.append(names.setdefault(name, name))
    if others:
        matched = f"matches {len(found):,} of {counted(len(paths), 'image')}"
        raise Mistakes(
            f"dataset.group_by={by}: {matched}, and not {describe(others, 3)}; give folder, or a regular "
            "expression that matches the path of every image"
        )
    return found


class HubSource:
    """A `datasets.Dataset` with a column of encoded images; decoding stays with us (orientation, broken files)."""

    def __init__(self, config: "Dataset", split: str) -> None:
        dataset, self.commit, self._files, self.left_out = load_dataset(config, split)
        self._folders = own_folders(config)
        self._cache_dir = cache_folder(config.cache_dir)
        self._column, self._dataset = self._choose_column(dataset, config)
        self._version = dataset._fingerprint
        self._all_columns = dataset

    def _choose_column(self, dataset: Any, config: "Dataset") -> tuple[str, Any]:
        """The name of the column of images, and a dataset of it alone."""
        column = image_column(dataset, config, self._files)
        return column, as_images(dataset, column)

    @property
    def fingerprint(self) -> str:
        root = self._folders[0]
        files = [os.path.relpath(file, root) for file in self._files]
        content = content_hash(root, [*files, *self._named_files()], self._cache_dir)
        return f"{self._version} {self._column} {content}"

    def _named_files(self) -> list[str]:
        """The files that cells name instead of holding an image. Of a memory-mapped column no image is read."""
        import pyarrow.compute as pc

        cells = self._dataset.with_format("arrow")[:][self._column]
        paths, images = pc.struct_field(cells, "path"), pc.struct_field(cells, "bytes")
        named = paths.filter(pc.is_null(images)).drop_null().unique().to_pylist()
        return list(dict.fromkeys(map(file_named, named)))

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"row {index} of column {self._column}"

    def groups(self, by: str) -> Sequence[Hashable]:
        """What each row holds in the column of this name."""
        from datasets import ClassLabel, Value

        columns = self._all_columns.column_names
        if by not in columns:
            known = f"{did_you_mean(by, columns)} (one of {', '.join(columns)})"
            raise Mistakes(f"dataset.group_by={by}: no such column;{known}")
        if not isinstance(feature := self._all_columns.features[by], ClassLabel | Value):
            raise Mistakes(f"dataset.group_by={by}: holds {feature}; choose a column of texts or numbers")
        values: list[Hashable] = self._all_columns.select_columns([by]).with_format("arrow")[:][by].to_pylist()
        if missing := sum(value is None for value in values):
            raise Mistakes(f"dataset.group_by={by}: empty in {missing:,} of {counted(len(values), 'row')}; fill them")
        return values

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        cell = self._dataset[index][self._column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise BrokenImage("empty")
        return decoder(cell["bytes"] if cell["bytes"] is not None else self._named(cell["path"]))

    def _named(self, path: str) -> Path | bytes:
        if path.startswith(_BASE64):
            raise BrokenImage("base64 text, which is not read; store its bytes instead (base64.b64decode)")
        member = member_named(path)
        file = self._own_file(file_named(path))
        return file if member is None else read_member(file, member)

    def _own_file(self, path: str) -> Path:
        """The file that a row names, which may be anything on this machine if the dataset comes from elsewhere."""
        try:
            file = (self._folders[0] / path).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise BrokenImage(f"{printable(path)}: {first_line(error)}") from None
        if not any(file.is_relative_to(folder) for folder in self._folders):
            raise BrokenImage(f"{printable(path)} does not lie in the dataset's own folder")
        if not os.path.isfile(file):
            raise BrokenImage(f"{printable(path)}: no such file, or not a regular one")
        return file


def pixel_dtype(source: Source) -> np.dtype[Any]:
    """The type of the pixels that a source loads."""
    return np.dtype(getattr(source, "dtype", "uint8"))


def open_source(config: "Dataset", split: str) -> Source:
    """Open one split of the configured dataset.

    Raises:
        Mistakes: it does not exist, cannot be reached, or holds no images.
    """
    from ddpm_train.config.dataset import DATASET_SOURCES  # not above: see there

    source: Source = resolve(DATASET_SOURCES[config.source])(config, split)
    if type(source).__module__ == "__main__":
        raise Mistakes(
            f"dataset.source={config.source}: {type(source).__name__} is defined in the program's main file, which "
            "worker processes do not run; put it into a module of its own"
        )
    return source


def dataset_licence(config: "Dataset") -> str | None:
    """The licence that the configured dataset's card names, if it has one and the Hub can be asked."""
    if config.source == "embedded":
        return "MIT"
    return find_licence(config.path, config.revision) if config.source == "hub" else None


def describe(names: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """The first few of many names, for a message."""
    more = len(names) - limit
    return separator.join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def reasons(broken: Sequence[Broken]) -> list[str]:
    """Why images do not decode, with the names of the first few; what most have in common comes first."""
    names = defaultdict(list)
    for name, reason in broken:
        names[reason].append(name)
    most_first = sorted(names.items(), key=lambda item: -len(item[1]))
    return [f"{describe(each, 3)}: {reason}" for reason, each in most_first]
