"""What the disk shows of a dataset. Imports neither torch nor numpy: a mistake must not wait for them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_train.system.files import expanded

if TYPE_CHECKING:  # its pydantic is a third of what a worker would import
    from ddpm_train.config.dataset import Dataset

# Of files of arrays: those that `data.array_files` reads.
ZARR = ".zarr"  # a folder that stands for a file
ARRAY_ENDINGS = (
    *(".npy", ".npz", ".tif", ".tiff", ".h5", ".hdf5", ZARR),
    *(".fits", ".fits.gz", ".fit", ".nii", ".nii.gz", ".dcm"),
)


def ending_of(path: Path | str) -> str:
    """How a file's name ends, in small letters; with the ending before it where that tells more than `.gz`."""
    stem, ending = os.path.splitext(str(path).lower())
    if ending != ".gz":
        return ending
    both = os.path.splitext(stem)[1] + ending
    return both if both in ARRAY_ENDINGS else ending


def _irregular(root: Path) -> str | None:
    """What is neither a file nor a folder, at that path or below it: who opens a pipe waits for its other end."""
    found = (os.path.join(folder, file) for folder, _, files in os.walk(root) for file in files)
    return next((path for path in [str(root), *found] if os.path.exists(path) and not _is_regular(path)), None)


def _is_regular(path: str) -> bool:
    return os.path.isfile(path) or os.path.isdir(path)


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet" and path.is_file()


# What else a file may be that is given for a dataset, by its ending, and what to do with it.
_PACKED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".xlsx")
_OTHER_ARRAYS = (".mat", ".pkl", ".pickle", ".pt", ".pth", ".tfrecord", ".tfrecords", ".mdb")
_USES = {
    **dict.fromkeys(_PACKED, "an archive; unpack it, and give the folder with dataset=imagefolder"),
    **dict.fromkeys(
        _TABLES,
        "a table without images; give the folder of the images: with dataset=imagefolder for all of them, with "
        "dataset=hub for those that a metadata.csv or metadata.jsonl there names in a column file_name",
    ),
    **dict.fromkeys(ARRAY_ENDINGS, "arrays; read them with dataset=arrays"),
    **dict.fromkeys(
        _OTHER_ARRAYS,
        "arrays, which are not read; write each image to a .npy file, and give their folder with dataset=arrays",
    ),
    ".parquet": "a parquet file; read it with dataset=hub",
    ".arrow": "a part of a dataset; give its folder with dataset=hub",
}


def _file_use(path: Path) -> str:
    """What a file is that is no dataset, and what to do."""
    from ddpm_train.data.formats import REMEDIES, decodable  # not above: most datasets are no single files

    ending = ending_of(path)
    if ending in decodable() or (ending in REMEDIES and ending not in ARRAY_ENDINGS):
        return "one image; give the folder that holds all of them, with dataset=imagefolder"
    return _USES.get(ending, "a file of no kind that is read; give a folder, or a parquet file with dataset=hub")


def _pattern(path: Path) -> str | None:
    """The first sign of a pattern in the path of files that the `datasets` library looks for by a pattern."""
    if not path.exists() or any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        return None
    return next((sign for sign in str(path.resolve()) if sign in "*?["), None)


def path_mistakes(config: "Dataset") -> list[str]:
    """Mistakes in `dataset.path` that the disk shows, without loading anything."""
    path = expanded(config.path)
    one_split = config.source in ("folder", "arrays") or is_parquet(path) or (path / "state.json").exists()
    if (split := config.validation_split) is not None and one_split:
        # The same images would be trained on and held out.
        return [f"dataset.validation_split={split}: {config.path} has no splits; use dataset.validation_fraction"]
    if config.source in ("folder", "arrays"):
        if not path.exists():
            return [f"dataset.path={config.path}: no such folder"]
        is_array = config.source == "arrays" and path.is_file() and ending_of(path) in ARRAY_ENDINGS
        if not path.is_dir() and not is_array:
            return [f"dataset.path={config.path}: {_file_use(path)}"]
    if config.source == "hub" and (irregular := _irregular(path)) is not None:
        return [f"dataset.path={config.path}: {irregular} is not a regular file; remove it"]
    if config.source == "hub" and path.is_file() and not is_parquet(path):
        return [f"dataset.path={config.path}: {_file_use(path)}"]
    if config.source == "hub" and (pattern := _pattern(path)) is not None:
        return [
            f"dataset.path={config.path}: the `datasets` library takes the {pattern} in it for a pattern of names; "
            "give it another name"
        ]
    looks_local = config.path.startswith((".", "/", "~")) or config.path.count("/") > 1
    if config.source == "hub" and looks_local and not path.exists():
        return [f"dataset.path={config.path}: no such file or folder"]
    return []


# As every choice of a dataset has them, where they mean nothing: what is otherwise was asked for.
_DEFAULTS = {
    "split": "train",
    "config_name": None,
    "revision": None,
    "image_column": None,
    "frames": "first",
    "group_by": None,
}


def unused_mistakes(config: "Dataset") -> Iterator[str]:
    """A line for each key that was given a value, and that this source has no use for."""
    what, unused = _unused(config)
    for key in unused:
        if (value := getattr(config, key)) != _DEFAULTS[key]:
            remedy = "give the path of that part instead" if key == "split" else "leave it out"
            yield f"dataset.{key}={value}: means nothing for {what}; {remedy}"
    if config.validation_split is not None and config.validation_fraction != 0.02:
        yield (
            f"dataset.validation_fraction={config.validation_fraction}: means nothing where "
            f"dataset.validation_split={config.validation_split} is held out; leave it out, "
            "or add dataset.validation_split=null"
        )
    if config.group_by is None or "group_by" in unused:
        return
    nothing = f"dataset.group_by={config.group_by}: does nothing with dataset.validation"
    if config.validation_split is not None:
        yield f"{nothing}_split={config.validation_split}; leave it out, or add dataset.validation_split=null"
    elif config.validation_fraction == 0:
        yield f"{nothing}_fraction=0; leave it out, or raise the fraction"


def _unused(config: "Dataset") -> tuple[str, tuple[str, ...]]:
    """What the source is, and its keys that mean nothing."""
    path = expanded(config.path)
    of_repositories = ("config_name", "revision")
    if config.source == "embedded":
        return "the images of this package", (*of_repositories, "image_column", "frames", "group_by")
    if config.source == "arrays":
        return "a folder of arrays", ("split", *of_repositories, "frames")
    if config.source == "folder":
        return "a folder of images", ("split", *of_repositories, "image_column")
    if config.source != "hub":
        return "", ()
    if is_parquet(path):
        return "a parquet file", ("split", *of_repositories)
    if (path / "state.json").exists():
        return "a dataset that was saved without splits", ("split", *of_repositories)
    if (path / "dataset_dict.json").exists():
        return "a dataset that was saved to the disk", of_repositories
    return "a local folder", ("revision",) if path.is_dir() else ()
