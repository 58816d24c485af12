"""What the `datasets` library loads: a repository on the Hub or on the disk, `save_to_disk` folders, parquet files."""

import os
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ddpm_train.config.mistakes import Mistakes, one_of
from ddpm_train.data.formats import REMEDIES, decodable
from ddpm_train.data.paths import is_parquet
from ddpm_train.hub.access import find_commit
from ddpm_train.system.console import counted
from ddpm_train.system.failures import first_line, one_line
from ddpm_train.system.files import expanded, file_lock, lfs_mistakes

if TYPE_CHECKING:
    from ddpm_train.config.dataset import Dataset

_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}  # of the `datasets` library


class Loaded(NamedTuple):
    """One split of a dataset: a `datasets.Dataset`; the commit of its repository, if it has one; the files of this
    machine that hold its rows, unless those come from the Hub; and a line for what of its files is not used."""

    dataset: Any
    commit: str | None
    files: list[str]
    left_out: list[str]


def load_dataset(config: "Dataset", split: str) -> Loaded:
    """One split of `dataset.path`.

    Raises:
        Mistakes: there is no such dataset, revision, configuration or split, or it cannot be had now.
    """
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it cannot do is told once, in a line
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        loaded = _load(config, split)
    except Mistakes:
        raise
    except Exception as error:  # readers of parquet, JSON, archives and others refuse by many kinds
        raise Mistakes(_mistake(config, split, error)) from None
    if len(loaded.dataset) == 0:
        raise Mistakes(_empty(config, split))
    return loaded


def _load(config: "Dataset", split: str) -> Loaded:
    import datasets

    path = expanded(config.path)
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        loaded = datasets.load_from_disk(str(path))
        if not isinstance(loaded, datasets.DatasetDict):
            return Loaded(loaded, None, _arrow_files(loaded), [])
        if split not in loaded:
            raise ValueError(f'Unknown split "{split}". Should be one of {sorted(loaded)}.')
        return Loaded(loaded[split], None, _arrow_files(loaded[split]), [])
    if is_parquet(path):
        return _built(datasets.load_dataset_builder("parquet", data_files=str(path)), path, "train")
    if path.is_dir():
        return _built(_own_builder(config, str(path), None), path, split)
    return _load_from_hub(config, split)


def _remedy(error: Exception) -> str:
    """What helps, as far as it is known."""
    import datasets

    if "scripts are no longer supported" in str(error):
        return "; nobody runs them: give its images with dataset=imagefolder, or a copy of it in parquet files"
    # Where the library cannot write into its own cache, which `dataset.cache_dir` is not.
    cache, place = Path(datasets.config.HF_DATASETS_CACHE), Path(str(getattr(error, "filename", "")))
    its_own = place.is_absolute() and (cache.is_relative_to(place) or place.is_relative_to(cache))
    return "; set HF_HOME to a folder in which the datasets library may write" if its_own else ""


def _arrow_files(dataset: Any) -> list[str]:
    return [file["filename"] for file in dataset.cache_files]


def _own_builder(config: "Dataset", path: str, revision: str | None) -> Any:
    """`datasets.load_dataset_builder`, of a dataset whose card names no other files than its own.

    Raises:
        Mistakes: it names a file of this machine, or an address.
    """
    import datasets

    builder = datasets.load_dataset_builder(path, config.config_name, revision=revision)
    if hasattr(builder.config, "drop_labels"):
        builder.config.drop_labels = True  # folders of classes within an archive get labels that the library refuses
    own = [f"hf://datasets/{path}@", *(f"{folder}{os.sep}" for folder in own_folders(config))]
    for file in (file for files in (builder.config.data_files or {}).values() for file in files):
        target = file if file.startswith("hf://") else str(Path(file).resolve())
        if target.startswith(tuple(own)):
            continue
        if os.path.normpath(file).startswith(f"{Path(path).resolve()}{os.sep}"):
            raise Mistakes(
                f"dataset.path={config.path}: {file} is a link to {target}, outside the dataset, which is not read; "
                "copy the files, or give a folder of images with dataset=imagefolder, which follows links"
            )
        raise Mistakes(f"dataset.path={config.path}: its card names {target}, which is none of its own files")
    return builder


def _files_by_split(builder: Any) -> dict[str, list[str]]:
    return {name: [str(file) for file in files] for name, files in (builder.config.data_files or {}).items()}


def _built(builder: Any, path: Path, split: str) -> Loaded:
    """One split of a dataset in files of this machine.

    `datasets` copies their rows, and takes them from the copy as long as the files' times of modification are the same,
    which programs set as they like (cp -p, rsync, tar). The time of the last change of the inode none can set.
    """
    by_split = _files_by_split(builder)
    files = [file for each in by_split.values() for file in each]
    with file_lock(f"{builder.cache_dir}.ddpm-train.lock"):
        copy = Path(builder.cache_dir, "dataset_info.json")
        is_old = copy.exists() and any(os.stat(file).st_ctime_ns >= copy.stat().st_mtime_ns for file in files)
        builder.download_and_prepare(download_mode="force_redownload" if is_old else None)
        dataset = builder.as_dataset(split=split)
    return Loaded(dataset, None, files, list(_unused(path, by_split, split, len(dataset))))


def _unused(path: Path, files: dict[str, list[str]], split: str, num_rows: int) -> Iterator[str]:
    """A line for image files of the split that have no row, and for those of the folder that are of no split.

    Args:
        files: by split.
    """
    from ddpm_train.data.image_files import find_images  # not above: workers import this module, and need no pydantic

    endings = decodable() | REMEDIES
    images = {name: sum(os.path.splitext(file)[1].lower() in endings for file in each) for name, each in files.items()}
    otherwise = "dataset=imagefolder takes all that can be read"
    if (unused := images.get(split, 0) - num_rows) > 0:
        metadata = {os.path.basename(file) for file in files[split]} & _METADATA
        why = f"which {' and '.join(sorted(metadata))} does not name" if metadata else "which have no row"
        yield f"left out: {unused:,} of {counted(images[split], 'image')}, {why}; {otherwise}"
    taken = sum(images.values())
    if taken and path.is_dir() and (others := find_images(path).total - taken) > 0:
        yield f"left out: {counted(others, 'image')}, which the `datasets` library takes for no split; {otherwise}"


def own_folders(config: "Dataset") -> list[Path]:
    """Where the image files of a dataset may lie: its own folder first, and that of what `datasets` has unpacked."""
    import datasets
    from huggingface_hub import constants

    path = Path(config.path).expanduser()
    if not path.exists():
        path = Path(constants.HF_HUB_CACHE, f"datasets--{config.path.replace('/', '--')}")
    unpacked = Path(datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_DIR)
    own = path if path.is_dir() or not path.exists() else path.parent
    return [folder.resolve() for folder in (own, unpacked, Path(datasets.config.DOWNLOADED_DATASETS_PATH))]


def _load_from_hub(config: "Dataset", split: str) -> Loaded:
    """One split of the repository `owner/name`.

    The Hub is asked first which commit `dataset.revision` means: that answers within a moment where `load_dataset`
    alone would retry a Hub that is down for 23 s, and a pinned commit keeps it from asking a second service (which a
    mirror does not have, and which would be sent the token). Without a Hub the cached copy serves.
    """
    import datasets

    datasets.config.USE_PARQUET_EXPORT = False
    commit, problem = find_commit(
        "dataset", config.path, config.revision, key="dataset.path", revision_key="dataset.revision"
    )
    if problem is not None:
        datasets.config.HF_HUB_OFFLINE = True
    try:
        builder = _own_builder(config, config.path, commit or config.revision)
        builder.download_and_prepare()
        loaded = builder.as_dataset(split=split)
        left_out = list(_unused(Path(config.path), _files_by_split(builder), split, len(loaded)))
        return Loaded(loaded, commit or _cached_commit(loaded), [], left_out)
    except ConnectionError:
        raise Mistakes(
            f"dataset.path={config.path}: {problem or 'the Hub went away'}, and there is no copy of it in the cache; "
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from None


def _cached_commit(dataset: Any) -> str | None:
    """The commit that a dataset in the cache was made of: its folder there is named after it."""
    folders = (Path(file["filename"]).parent.name for file in dataset.cache_files)
    return next((name for name in folders if re.fullmatch(r"[0-9a-f]{40}", name)), None)


def _mistake(config: "Dataset", split: str, error: Exception) -> str:
    """What the library says of a dataset, a split or a configuration, as a line."""
    import datasets

    if isinstance(error, datasets.exceptions.DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the other says only that there is one
    first = first_line(error)
    if isinstance(error, datasets.exceptions.SplitsVerificationError):
        first = f"{_other_splits(error)}; complete its files, or correct its README.md"
    elif isinstance(error, datasets.table.CastError):
        detail = error.details().rstrip(".")
        first = f"the columns of its files differ, or are not those of its README.md: in one {detail}; "
        first += "give all of them the same columns"
    # Of no rows, the library saves no file, and cannot load that.
    saved_without_rows = isinstance(error, IndexError) and (expanded(config.path) / "state.json").exists()
    if "corresponds to no data" in first or saved_without_rows:
        return _empty(config, split)
    if "Unknown split" in first:
        key = "split" if split == config.split else "validation_split"
        return f"dataset.{key}={split}: {first}"
    if "BuilderConfig" in first or "Config name" in first:
        return f"dataset.config_name={config.config_name or 'null'}: {one_line(error)}"
    place = f"dataset.path={config.path}"
    path = expanded(config.path)
    lines = chain(lfs_mistakes(place, path), _damaged_parquet(place, path), _damaged_card(place, path))
    return next(lines, f"{place}: {first}{_remedy(error)}")


def _other_splits(error: Exception) -> str:
    """How the splits in a dataset's files differ from those of its card; the library says it in Python objects."""
    import datasets

    if isinstance(error, datasets.exceptions.NonMatchingSplitsSizesError):
        counts = re.findall(r"name='(.*?)', num_bytes=\d+, num_examples=(\d+)", str(error))
        pairs = zip(counts[::2], counts[1::2], strict=True)
        differ = [f"{name} has {int(said):,} rows, and not {int(there):,}" for (name, said), (_, there) in pairs]
        return f"its README.md says that {' and that '.join(differ)}"
    names = one_of(sorted(re.findall(r"'(.*?)'", str(error))))
    if isinstance(error, datasets.exceptions.ExpectedMoreSplitsError):
        return f"its README.md names a split {names}, which its files do not hold"
    return f"its files hold a split {names}, which its README.md does not name"


def _damaged_parquet(place: str, folder: Path) -> Iterator[str]:
    """A line for the first parquet file below a folder that cannot be opened; the library does not say which."""
    import pyarrow
    import pyarrow.parquet

    for file in sorted(folder.rglob("*.parquet")):
        try:
            pyarrow.parquet.read_metadata(file)
        except (pyarrow.ArrowException, OSError) as error:
            yield f"{place}: {file.relative_to(folder)}: {first_line(error)}; get it anew"


def _damaged_card(place: str, folder: Path) -> Iterator[str]:
    """A line for a README.md whose beginning says something of the dataset that cannot be read."""
    from huggingface_hub import DatasetCard

    try:
        if (card := folder / "README.md").is_file():
            DatasetCard.load(card, ignore_metadata_errors=False)
    except Exception as error:  # YAML's and others'
        yield f"{place}: README.md: {first_line(error)}; correct it, or remove it"


def _empty(config: "Dataset", split: str) -> str:
    return f"dataset.path={config.path}: its {split} split has no rows; give one that has"
