"""Where images come from. A source knows how many there are, their names, and the encoded bytes of each."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ddpm_train.config import Dataset
from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.mistakes import Mistakes, did_you_mean

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EMBEDDED = {"fashion_tiny": 28}  # name -> side of a tile, in pixels


class Source(Protocol):
    """A sequence of images that a worker process can be sent (it pickles small)."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the images may have; cheap to compute."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """How a person finds the image again."""

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        """The decoded image, uint8 [channels, height, width].

        Raises:
            BrokenImage: it cannot be decoded.
        """


class EmbeddedSource:
    """The images that come with the package: one PNG of square tiles, read row by row."""

    def __init__(self, name: str, split: str) -> None:
        self._path = Path(__file__).parent / name / f"{split}.png"
        self._side = EMBEDDED[name]
        if not self._path.is_file():
            raise Mistakes(f"dataset.split={split}: {name} has the splits train and validation")
        with Image.open(self._path) as mosaic:
            pixels = np.asarray(mosaic)
        rows, columns = pixels.shape[0] // self._side, pixels.shape[1] // self._side
        tiles = pixels.reshape(rows, self._side, columns, self._side).transpose(0, 2, 1, 3)
        self._tiles = tiles.reshape(-1, self._side, self._side)

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

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths = sorted(
            os.path.relpath(os.path.join(folder, file), root)
            for folder, _, files in os.walk(root, followlinks=True)
            for file in files
            if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")
        )
        if not self._paths:
            raise Mistakes(f"dataset.path={root}: no images in it (looked for {', '.join(IMAGE_SUFFIXES)})")

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self._paths:
            status = os.stat(self._root / path)
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        return decoder(self._root / self._paths[index])


class HubSource:
    """A `datasets.Dataset` with a column of encoded images; decoding stays with us (orientation, broken files)."""

    def __init__(self, dataset: Any, column: str) -> None:
        from datasets import Image as ImageFeature

        self._dataset = dataset.select_columns([column]).cast_column(column, ImageFeature(decode=False))
        self._column = column

    @property
    def fingerprint(self) -> str:
        return str(self._dataset._fingerprint)

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"row {index} of column {self._column}"

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        cell = self._dataset[index][self._column]
        if cell is None:
            raise BrokenImage("empty")
        return decoder(cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]))


def open_source(config: Dataset, split: str) -> Source:
    """Open one split of the configured dataset.

    Raises:
        Mistakes: it does not exist, cannot be reached, or holds no images.
    """
    if config.source == "embedded":
        if config.path not in EMBEDDED:
            raise Mistakes(f"dataset.path={config.path}: not embedded;{did_you_mean(config.path, EMBEDDED)}")
        return EmbeddedSource(config.path, split)
    if config.source == "folder":
        return FolderSource(Path(config.path).expanduser())
    dataset = _load_dataset(config, split)
    return HubSource(dataset, _image_column(dataset, config.image_column))


def path_mistakes(config: Dataset) -> list[str]:
    """Mistakes in `dataset.path` that a look at the disk shows, without loading anything."""
    path = Path(config.path).expanduser()
    if config.source == "folder":
        if not path.exists():
            return [f"dataset.path={config.path}: no such folder"]
        if not path.is_dir():
            return [f"dataset.path={config.path}: not a folder; give the folder that holds the images"]
    looks_local = config.path.startswith((".", "/", "~")) or config.path.count("/") > 1
    if config.source == "hub" and looks_local and not path.exists():
        return [f"dataset.path={config.path}: no such file or folder"]
    return []


def _load_dataset(config: Dataset, split: str) -> Any:
    import datasets

    if not datasets.config.HF_ENDPOINT.endswith("huggingface.co"):
        # A mirror has no such second service; asking for it would only wait for a time-out.
        datasets.config.USE_PARQUET_EXPORT = False
    datasets.logging.set_verbosity_error()
    path = Path(config.path).expanduser()
    try:
        if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            loaded = datasets.load_from_disk(str(path))
            return _choose_split(loaded, split) if isinstance(loaded, datasets.DatasetDict) else loaded
        if path.suffix == ".parquet" and path.exists():
            return datasets.load_dataset("parquet", data_files=str(path), split="train")
        source = str(path) if path.is_dir() else config.path
        return datasets.load_dataset(source, config.config_name, split=split, revision=config.revision)
    except Exception as error:
        raise Mistakes(_loading_mistake(config, split, error)) from error


def _choose_split(loaded: Any, split: str) -> Any:
    if split not in loaded:
        raise ValueError(f'Unknown split "{split}". Should be one of {sorted(loaded)}.')
    return loaded[split]


def _loading_mistake(config: Dataset, split: str, error: Exception) -> str:
    """What `datasets` raised, in one line with the remedy."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)  # type: ignore[arg-type]
    text = " ".join(str(link) for link in chain)
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    place = f"dataset.path={config.path}"
    if "Unknown split" in text:
        key = "split" if split == config.split else "validation_split"
        return f"dataset.{key}={split}: {first}"
    if "revision" in text.lower() and config.revision:
        return f"dataset.revision={config.revision}: not found in {config.path}; give a branch, tag or commit of it"
    return f"{place}: {first}"


def _image_column(dataset: Any, override: str | None) -> str:
    from datasets import Image as ImageFeature

    columns = list(dataset.column_names)
    if override is not None:
        if override not in columns:
            raise Mistakes(
                f"dataset.image_column={override}: no such column;{did_you_mean(override, columns)} "
                f"(one of {', '.join(columns)})"
            )
        return override
    found = [name for name, feature in dataset.features.items() if isinstance(feature, ImageFeature)]
    if len(found) != 1:
        what = "no column of images" if not found else f"several columns of images ({', '.join(found)})"
        raise Mistakes(f"dataset.image_column=null: {what}; choose one of {', '.join(columns)}")
    return found[0]


def describe(names: Sequence[str], limit: int = 5) -> str:
    """The first few of many names, for a message."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
