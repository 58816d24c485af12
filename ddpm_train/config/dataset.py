"""Where images come from."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt

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
    Whole,
)
from ddpm_train.config.pixels import MOST_CHANNELS, Dtype, Stretch, ValueRange
from ddpm_train.config.registry import Registry

# What opens a split of a configured dataset: a function of both that returns a `data.sources.Source`, or its name.
DATASET_SOURCES: "Registry[str | Callable[[Dataset, str], Any]]" = Registry(
    "source of images",
    {
        "embedded": "ddpm_train.data.sources:EmbeddedSource",
        "folder": "ddpm_train.data.sources:FolderSource.open",
        "hub": "ddpm_train.data.arrays:open_hub",
        "arrays": "ddpm_train.data.arrays:ArrayFolder",
    },
)


@dataclass(frozen=True)
class Dataset(Section):
    """Where the images come from and how they become arrays [channels, height, width]."""

    source: Annotated[str, DATASET_SOURCES, Required]
    path: Annotated[FilePath, Required]
    config_name: str | None  # the Hub dataset's configuration
    split: str
    revision: str | None
    image_column: str | None  # None: the one column of images
    validation_split: str | None  # None: hold out `validation_fraction` of the images
    validation_fraction: Annotated[Real, Ge(0), Lt(1)]
    resolution: Resolution
    channels: Annotated[Whole, Ge(1), Le(MOST_CHANNELS)]
    background: tuple[Byte, Byte, Byte]  # what stands behind transparent pixels when channels < 4
    crop: Literal["center", "random"]
    random_flip: bool
    cache: Literal["disk", "none"]
    device_cache: AutoBool  # all prepared images in the GPU's memory; auto: where they fit
    cache_dir: FilePath | None  # None: $XDG_CACHE_HOME/ddpm-train
    num_workers: Annotated[NonNegative, Le(1024)] | None  # None: one for each core, up to a number
    max_broken_fraction: Annotated[Real, Ge(0), Le(1)]
    max_pixels: Positive  # a larger image is not decoded (decompression bombs)
    value_range: ValueRange = None  # None: as the data has it; configs from before have no such key
    frames: Literal["first", "all"] = "first"  # of files with several frames or pages; likewise
    # The keys that the images have decided; auto: all that the command of a new run leaves open.
    chosen: Literal["auto"] | tuple[str, ...] = ()

    group_by: str | None = None  # what belongs together, and is held out together; likewise
    drop_duplicates: bool = False  # of images of the same pixels keep the first; likewise
    # None: pictures of 8 bits; otherwise arrays, whose numbers stay as they are; likewise
    dtype: Dtype | Literal["auto"] | None = None
    stretch: Stretch = "linear"  # the curve from `value_range` to what the model sees; likewise
    no_data: Real | None = None  # a number, besides NaN and infinity, where nothing was measured; likewise
    fill: Real | None = None  # what stands there instead; None: such an image is broken; likewise

    @property
    def grey_range(self) -> tuple[float, float] | None:
        """What is black and white in grey pictures of more than 8 bits, if the config says so."""
        value_range: Any = self.value_range
        return value_range if self.dtype is None else None

    def mistakes(self) -> Iterator[str]:
        yield from self._array_mistakes() if self.dtype is not None else self._picture_mistakes()
        if self.source in ("folder", "arrays") and self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                yield (
                    f"dataset.group_by={self.group_by}: no regular expression ({error}); give one that finds the group "
                    "in an image's path, or folder"
                )

    def _picture_mistakes(self) -> Iterator[str]:
        """What only arrays have, see `dtype`."""
        if self.source == "arrays":
            yield "dataset.dtype=null: the numbers of arrays stay as they are; give dataset.dtype=auto"
            return
        arrays = "arrays have that: dataset=arrays reads files of them, dataset=hub dataset.dtype=auto a column"
        if self.channels not in (1, 3, 4):
            yield f"dataset.channels={self.channels}: pictures have 1, 3 or 4; {arrays}"
        low, high = self.value_range if isinstance(self.value_range, tuple) else (0.0, 1.0)
        if isinstance(self.value_range, str) or isinstance(low, tuple) or isinstance(high, tuple):
            yield f"dataset.value_range={as_written(self.value_range)}: pictures have [low,high]; {arrays}"
        elif low >= high:
            yield (
                f"dataset.value_range={as_written(self.value_range)}: black is not below white; give "
                "[low,high] with low below high"
            )
        for key, default in {"stretch": "linear", "no_data": None, "fill": None}.items():
            if (value := getattr(self, key)) != default:
                yield f"dataset.{key}={as_written(value)}: means nothing for pictures of 8 bits; {arrays}"

    def _array_mistakes(self) -> Iterator[str]:
        if self.source in ("embedded", "folder"):
            yield f"dataset.dtype={self.dtype}: these are pictures of 8 bits; use dataset=arrays, or leave it out"
        if self.value_range is None or isinstance(self.value_range, str):
            return
        low, high = (each if isinstance(each, tuple) else (each,) for each in self.value_range)
        given = f"dataset.value_range={as_written(self.value_range)}"
        if any(len(each) not in (1, self.channels) for each in (low, high)):
            yield f"{given}: not one number, or one for each of dataset.channels={self.channels}; give [lows,highs]"
        elif any(low[i % len(low)] >= high[i % len(high)] for i in range(self.channels)):
            yield f"{given}: low is not below high; give [low,high] with low below high"
