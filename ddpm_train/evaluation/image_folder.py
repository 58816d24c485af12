"""`pipeline=FOLDER`: images to be scored that were made by whatever. Imports no torch."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from PIL import Image
from pydantic import Field

from ddpm_train.config.foreign import parse_yaml, read_json
from ddpm_train.config.mistakes import Mistakes, resolution_text
from ddpm_train.data.formats import formats_of
from ddpm_train.data.frames import sizes
from ddpm_train.data.image_files import ImageFiles, find_images
from ddpm_train.data.paths import ARRAY_ENDINGS
from ddpm_train.data.sources import describe, reasons
from ddpm_train.runs.checkpoint import MANIFEST
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, SAMPLING
from ddpm_train.sampling.refined import is_refined
from ddpm_train.system.files import expanded

if TYPE_CHECKING:
    from ddpm_train.config.dataset import Dataset
    from ddpm_train.data.loader import Data

_OF_A_MODEL = ("model_index.json", "config.json", CONFIG, MANIFEST, CHECKPOINTS, "unet")


def image_folder(pipeline: str) -> Path | None:
    """The folder of images that `pipeline` means, or None: a model."""
    folder = expanded(pipeline)
    if not folder.is_dir() or is_refined(pipeline) or any((folder / name).exists() for name in _OF_A_MODEL):
        return None
    if (folder / SAMPLING).exists():  # whose grid is a picture of the images, and none of them
        folder = folder / "images"
    return folder if find_images(folder).total or find_images(folder, ARRAY_ENDINGS).paths else None


def open_images(folder: Path, dataset: "Dataset", *, progress: bool) -> "Data":
    """The images as the dataset's are decoded; arrays have no range yet, which is the dataset's.

    Raises:
        Mistakes: they are not all of the dataset's size, or some cannot be read.
    """
    from ddpm_train.data.loader import open_data

    all_of_it: dict[str, Any] = {"validation_split": None, "validation_fraction": 0.0, "max_broken_fraction": 1.0}
    all_of_it |= {"group_by": None, "drop_duplicates": False, "crop": "center", "cache": "disk"}
    as_dataset = replace(dataset, source="folder", path=str(folder), **all_of_it)
    if dataset.dtype is None:
        lines = list(_mistakes(folder, find_images(folder), dataset))
    else:
        as_dataset = replace(as_dataset, source="arrays", image_column=None, value_range=(0.0, 1.0))
        lines = list(_array_mistakes(folder, as_dataset))
    if lines:
        raise Mistakes(*lines)
    data = open_data(as_dataset, progress=progress)
    if data.broken:
        listed = describe(reasons(data.broken), separator="; ")
        raise Mistakes(
            f"pipeline={folder}: {len(data.broken)} images cannot be read ({listed}); make them anew or remove them"
        )
    return data


@dataclass(frozen=True)
class _Recipe:
    """What of `sampling.json` scores depend on."""

    seed: int
    sampler: Annotated[str, Field(pattern=r"\S")]  # its name, and its arguments as KEY=VALUE
    num_inference_steps: int
    guidance: dict[str, Any] | None = None


def made_by(pipeline: str) -> dict[str, Any]:
    """Seed, sampler and steps of images that ddpm-sample made, as `DependsOn` has them; else nothing.

    Raises:
        BadFile: the record beside them is damaged.
    """
    try:
        values = read_json(expanded(pipeline) / SAMPLING, _Recipe)
    except FileNotFoundError:
        return {}
    name, *arguments = values.sampler.split()
    parsed = (argument.partition("=") for argument in arguments)
    return {
        "seed": values.seed,
        "sampler": {"name": name, **{key: parse_yaml(value, SAMPLING) for key, _, value in parsed}},
        "num_inference_steps": values.num_inference_steps,
        "guidance": values.guidance,
    }


def _array_mistakes(folder: Path, dataset: "Dataset") -> Iterator[str]:
    from ddpm_train.data.sizes import image_sizes
    from ddpm_train.data.sources import open_source

    yield from _size_mistakes(folder, Counter(image_sizes(open_source(dataset, ""), dataset.max_pixels)), dataset)


def _mistakes(folder: Path, found: ImageFiles, dataset: "Dataset") -> Iterator[str]:
    """By the headers alone. What has none is named later, with what else cannot be read."""
    if not found.total:
        yield f"pipeline={folder}: arrays, and {dataset.path} holds pictures; give the arrays to compare with"
    if found.unreadable:
        yield f"pipeline={folder}: {found.unreadable_text}; make them anew or remove them"
    counts: Counter[tuple[int, int]] = Counter()
    for name in found.paths:
        if not (folder / name).is_file():  # to open a pipe would wait for its other end
            continue
        try:
            with Image.open(folder / name, formats=formats_of(folder / name)) as image:
                counts.update(sizes(image, dataset.frames))
        except OSError:
            continue
    yield from _size_mistakes(folder, counts, dataset)


def _size_mistakes(folder: Path, counts: Counter[tuple[int, int]], dataset: "Dataset") -> Iterator[str]:
    if len(counts) > 1:
        shown = ", ".join(f"{count} of {height}x{width}" for (height, width), count in counts.most_common(3))
        yield f"pipeline={folder}: images of {len(counts)} sizes ({shown}); scores need one size"
    elif counts and dataset.resolution not in counts:
        ((height, width),) = counts
        use = f"use dataset.resolution={resolution_text((height, width))}"
        yield f"pipeline={folder}: images of {height}x{width}; {use}"
