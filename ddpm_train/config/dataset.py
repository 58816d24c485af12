"""Where images come from."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from pydantic import BeforeValidator

from ddpm_train.config.mistakes import as_written
from ddpm_train.config.parts import (
    AutoBool,
    Byte,
    FilePath,
    NonNegative,
    Positive,
    Real,
    Required,
    Resolution,
    Section,
    no_bool,
)
from ddpm_train.config.registry import Registry

# What opens a split of a configured dataset: a function of both that returns a `data.sources.Source`, or its name.
DATASET_SOURCES: "Registry[str | Callable[[Dataset, str], Any]]" = Registry(
    "source of images",
    {
        "embedded": "ddpm_train.data.sources:EmbeddedSource",
        "folder": "ddpm_train.data.sources:FolderSource.open",
        "hub": "ddpm_train.data.sources:HubSource",
    },
)


@dataclass(frozen=True)
class Dataset(Section):
    """Where the images come from and how they become uint8 arrays [channels, height, width]."""

    source: Annotated[str, DATASET_SOURCES, Required]
    path: Annotated[FilePath, Required]
    config_name: str | None  # the Hub dataset's configuration
    split: str
    revision: str | None
    image_column: str | None  # None: the one column of images
    validation_split: str | None  # None: hold out `validation_fraction` of the images
    validation_fraction: Annotated[Real, Ge(0), Lt(1)]
    resolution: Resolution
    channels: Annotated[Literal[1, 3, 4], BeforeValidator(no_bool)]
    background: tuple[Byte, Byte, Byte]  # what stands behind transparent pixels when channels < 4
    crop: Literal["center", "random"]
    random_flip: bool
    cache: Literal["disk", "none"]
    device_cache: AutoBool  # all prepared images in the GPU's memory; auto: where they fit
    cache_dir: FilePath | None  # None: $XDG_CACHE_HOME/ddpm-train
    num_workers: Annotated[NonNegative, Le(1024)] | None  # None: one for each core, up to a number
    max_broken_fraction: Annotated[Real, Ge(0), Le(1)]
    max_pixels: Positive  # a larger image is not decoded (decompression bombs)
    value_range: tuple[Real, Real] | None = None  # None: as the data has it; configs from before have no such key
    frames: Literal["first", "all"] = "first"  # of files with several frames or pages; likewise
    # The keys that the images have decided; auto: all that the command of a new run leaves open.
    chosen: Literal["auto"] | tuple[str, ...] = ()

    group_by: str | None = None  # what belongs together, and is held out together; likewise
    drop_duplicates: bool = False  # of images of the same pixels keep the first; likewise

    def mistakes(self) -> Iterator[str]:
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            yield (
                f"dataset.value_range={as_written(self.value_range)}: black is not below white; give "
                "[low,high] with low below high"
            )
        if self.source == "folder" and self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                yield (
                    f"dataset.group_by={self.group_by}: no regular expression ({error}); give one that finds the group "
                    "in an image's path, or folder"
                )
