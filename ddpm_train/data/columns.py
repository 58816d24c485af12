"""Which column of a dataset holds its images, and what to do where none does."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_train.config.mistakes import Mistakes, did_you_mean, one_of
from ddpm_train.system.files import expanded, lfs_mistakes

if TYPE_CHECKING:  # its pydantic is a third of what a worker would import
    from ddpm_train.config.dataset import Dataset

_ONE_EACH = "write a dataset with one image in each row"
_VIEWS = {"string_view": "string", "binary_view": "binary"}  # as polars writes them; what they can be cast to
_BYTES_AND_PATHS = ("string", "large_string", "binary", "large_binary", *_VIEWS)


def image_column(dataset: Any, config: "Dataset", files: Sequence[str]) -> str:
    """The column that holds the images of a `datasets.Dataset`.

    Args:
        files: those of this machine that hold its rows.

    Raises:
        Mistakes: none does, or several do, or not the one that the config names.
    """
    from datasets import Image

    columns, features = list(dataset.column_names), dataset.features
    if (chosen := config.image_column) is not None:
        if chosen not in columns:
            known = f"{did_you_mean(chosen, columns)} (one of {', '.join(columns)})"
            raise Mistakes(f"dataset.image_column={chosen}: no such column;{known}")
        if _has_images_within(features[chosen]):
            raise Mistakes(f"dataset.image_column={chosen}: holds {features[chosen]}; {_ONE_EACH}")
        return chosen
    found = [name for name in columns if isinstance(features[name], Image)]
    if len(found) > 1:
        several = ", ".join(found)
        raise Mistakes(f"dataset.image_column=null: several columns of images ({several}); choose one of {several}")
    if not found:
        raise Mistakes(next(_no_images(features, config, files)))
    return found[0]


def as_images(dataset: Any, column: str) -> Any:
    """A `datasets.Dataset` of that column alone, as encoded images.

    Raises:
        Mistakes: it holds none.
    """
    from datasets import Array2D, Array3D, Image, Value

    selected, feature = dataset.select_columns([column]), dataset.features[column]
    no_images = f"dataset.image_column={column}: holds no images ({feature})"
    if isinstance(getattr(feature, "feature", None), Value):  # which would become an image of one row
        raise Mistakes(f"{no_images}; store encoded images as binary, and pixels as lists of rows")
    try:
        if (held := getattr(feature, "dtype", "")) in _VIEWS:
            selected = selected.cast_column(column, Value(_VIEWS[held]))
        return selected.cast_column(column, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError):
        shapes = "images are arrays of (height, width), or of (height, width, 3 or 4)"
        remedy = shapes if isinstance(feature, Array2D | Array3D) else "choose another"
        raise Mistakes(f"{no_images}; {remedy}") from None


def _no_images(features: dict[str, Any], config: "Dataset", files: Sequence[str]) -> Iterator[str]:
    """Why no column is one of images, and what to do; the first line fits best."""
    from ddpm_train.data.image_files import find_images  # not above: its pydantic, too

    place, path = f"dataset.path={config.path}", expanded(config.path)
    yield from lfs_mistakes(place, path)
    for name, feature in features.items():
        if _has_images_within(feature):
            yield f"dataset.image_column=null: column {name} holds {feature}; {_ONE_EACH}"
    possible = [name for name, feature in features.items() if _may_hold_images(feature)]
    choose = f"dataset.image_column={one_of(possible)}, if that column names or holds its images" if possible else ""
    if path.is_dir() and (count := find_images(path).total):
        ((ending, _),) = Counter(Path(file).suffix for file in files).most_common(1)
        otherwise = f", or {choose}" if choose and ending != ".txt" else ""
        yield (
            f"{place}: the `datasets` library reads the {ending} files of this folder, and none of its {count:,} "
            f"images; use dataset=imagefolder{otherwise}"
        )
    if choose:
        yield f"dataset.image_column=null: no column of images; use {choose}"
    held = ", ".join(f"{name}: {getattr(feature, 'dtype', feature)}" for name, feature in features.items())
    yield f"{place}: none of its columns holds images ({held}); give a dataset of images"


def _has_images_within(feature: Any) -> bool:
    """Whether it is a list or a struct that holds images."""
    from datasets import Image

    inner = feature.values() if isinstance(feature, dict) else [getattr(feature, "feature", None)]
    return any(isinstance(each, Image) or (each is not None and _has_images_within(each)) for each in inner)


def _may_hold_images(feature: Any) -> bool:
    """Whether the `datasets` library can take its values for images: bytes, paths, both, or arrays of numbers."""
    from datasets import Array2D, Array3D

    if isinstance(feature, dict):
        return not feature.keys().isdisjoint(("bytes", "path"))
    inner = getattr(feature, "feature", None)
    rows_of_pixels = getattr(getattr(inner, "feature", None), "dtype", "string") != "string"
    held = getattr(feature, "dtype", "")
    return isinstance(feature, Array2D | Array3D) or held in _BYTES_AND_PATHS or rows_of_pixels
