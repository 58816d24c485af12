"""What a dataset holds, gathered for `ddpm-data`: of its files, of its pixels, and a few images to look at.

Of each image some bytes are kept, whatever its size.
"""

import math
import shlex
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image
from tqdm import tqdm

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.mistakes import Mistakes, resolution_text
from ddpm_train.config.text import printable
from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.duplicates import duplicates, near_duplicates
from ddpm_train.data.images import Images
from ddpm_train.data.loader import Data, open_data
from ddpm_train.data.numbers import read_numbers
from ddpm_train.data.pixels import Pixels, read_pixels, robust_scores
from ddpm_train.data.spectrum import log_snr_shifts
from ddpm_train.data.split import group_numbers
from ddpm_train.diffusion.pixels import shown, to_uint8
from ddpm_train.report.dataset import (
    FAR,
    Advice,
    Channel,
    Distribution,
    Duplicates,
    Facts,
    Outlier,
    Overview,
    ScheduleShift,
    Shown,
)
from ddpm_train.system.console import counted

_SHOWN = 12  # images, of each kind
_BASE = 32  # pixels a side: where the noise schedules come from, and where no shift is needed
_LISTED_GROUPS = 100
_BINS = 20
_THUMBNAIL_SIDE = 224  # pixels
_SWAPPED = (5, 6, 7, 8)  # the EXIF orientations that lie on their side
_ORIENTATION = 0x0112
# What may unite images that belong together: their folder, or their name up to its last part ("p03_slice_" of
# "p03_slice_12.png").
_GROUPED_BY = ("folder", ".*[_-]")


def look_at(config: Dataset, *, progress: bool) -> Overview:
    """Look at every image of the configured dataset.

    Raises:
        Mistakes: as `open_data`, but for broken images.
    """
    data = open_data(replace(config, max_broken_fraction=1.0), progress=progress)
    sets = [images for images in (data.train, data.validation) if images is not None]
    headers = _read_headers(sets, progress)
    pixels = [read_pixels(images, progress=progress) for images in sets]
    numbers = [] if data.values is None else read_numbers(sets, data.values, progress=progress)
    return _Gathered(config, data, sets, headers, pixels, numbers).overview()


@dataclass(frozen=True)
class _Header(Decoder):
    """Notes what a file says of its image before its pixels."""

    kinds: Counter[str] = field(default_factory=Counter)
    sides: array = field(default_factory=lambda: array("i"))  # height, width, height, …

    def from_image(self, image: Image.Image) -> np.ndarray:
        self.seek(image)
        self.kinds[f"{image.format or 'embedded'} {image.mode}"] += 1
        height, width = image.height, image.width
        # To ask some formats for EXIF that they do not have would decode the image.
        exif = image.getexif() if "exif" in image.info or image.format == "TIFF" else {}
        self.sides.extend((width, height) if exif.get(_ORIENTATION) in _SWAPPED else (height, width))
        return np.zeros((self.channels, *self.resolution), dtype=np.uint8)

    def from_array(self, array: np.ndarray) -> np.ndarray:
        self.kinds[f"arrays of {array.dtype}"] += 1
        self.sides.extend(array.shape[1:])
        return array


@dataclass(frozen=True)
class _Thumbnail(Decoder):
    """The whole image, scaled down."""

    def _resize(self, image: Image.Image) -> Image.Image:
        scale = min(1, _THUMBNAIL_SIDE / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS)


def _read_headers(sets: list[Images], progress: bool) -> _Header:
    """Of each file that holds images, its first."""
    header = _Header(**vars(sets[0].decoder))
    for images in sets:
        files = np.unique(images.prepared.usable[images.rows])
        for index in tqdm(files, desc="reading headers", unit="img", disable=not progress, leave=False):
            with suppress(BrokenImage):
                images.source.load(int(index), header)
    return header


@dataclass(frozen=True)
class _Gathered:
    """All images have one number: the training images come first, then the held-out ones."""

    config: Dataset
    data: Data
    sets: list[Images]
    headers: _Header
    pixels: list[Pixels]  # of each of `sets`
    numbers: list[Channel]  # of each channel of arrays

    def overview(self) -> Overview:
        brightness, chroma = self._joined("brightness"), self._joined("chroma")
        alike = near_duplicates(self._joined("look"))
        facts = self._facts(brightness, chroma, alike)
        outliers = []
        for what, values in (("brightness", brightness), *([] if self.numbers else [("chroma", chroma)])):
            for number in _most_extreme(values):
                caption = f"{self._name(number)}: {what} {values[number]:.3f}"
                outliers.append(Shown(caption, [self._seen(number)]))
        pairs = [
            Shown(f"{self._name(group[0])} and {self._name(group[1])}", [self._seen(number) for number in group[:2]])
            for group in alike[:_SHOWN]
        ]
        return Overview(facts, [self._before_and_after(row) for row in self._spread()], pairs, outliers)

    def _facts(self, brightness: np.ndarray, chroma: np.ndarray, alike: list[np.ndarray]) -> Facts:
        hashes = np.concatenate([images.hashes() for images in self.sets])
        sides = np.array(self.headers.sides, dtype=np.int32).reshape(-1, 2)
        sizes, how_often = np.unique(sides, axis=0, return_counts=True)
        most_often = np.argsort(-how_often, kind="stable")[:_SHOWN]
        num_held_out = len(self.data.validation or ())
        broken = [(printable(name), printable(reason)) for name, reason in self.data.broken]
        total = len(hashes) + len(broken)
        equal = self._duplicates(duplicates(hashes))
        not_equal = [group for group in alike if (hashes[group] != hashes[group[0]]).any()]
        height, width = self.config.resolution
        return Facts(
            dataset=printable(self.config.path),
            resolution=self.config.resolution,
            channels=self.config.channels,
            num_images=len(hashes),
            num_train=len(hashes) - num_held_out,
            num_held_out=num_held_out,
            kinds=dict(self.headers.kinds.most_common()),
            sizes={resolution_text(tuple(sizes[place].tolist())): int(how_often[place]) for place in most_often},
            num_sizes=len(sizes),
            num_files=len(sides),
            num_upscaled=int(((sides[:, 0] < height) | (sides[:, 1] < width)).sum()),
            shorter_side=self._distribution(sides.min(axis=1), named=False) if len(sides) else None,
            broken=broken,
            too_many_broken=len(broken) > self.config.max_broken_fraction * total,
            left_out=[printable(line) for line in self.data.left_out],
            notes={name: printable(note) for name, note in self.data.notes.items()},
            doubts=[printable(line) for line in self.data.selection.doubts],
            equal=equal,
            alike=self._duplicates(not_equal),
            brightness=self._distribution(brightness),
            chroma=None if self.numbers else self._distribution(chroma),
            numbers=self.numbers,
            mean=self.pixels[0].mean,
            std=self.pixels[0].std,
            schedule_shift=self._schedule_shift(),
            advice=[*_on_equal(equal), *self._on_alike(not_equal)],
        )

    def _schedule_shift(self) -> ScheduleShift | None:
        """None: the images are no larger than those that the schedules were made for, or too few, or all the same."""
        images, side = self.sets[0], min(self.config.resolution)
        if side <= _BASE or len(images) < 2 or not any(self.pixels[0].std):
            return None
        quarter, half, three_quarters = log_snr_shifts(images, _BASE)
        return ScheduleShift(half, quarter, three_quarters, 2 * math.log(_BASE / side))

    def _on_alike(self, groups: list[np.ndarray]) -> Iterator[Advice]:
        """How to hold out together what looks alike, where that is divided and the source knows groups."""
        across = [group for group in groups if group[0] < len(self.sets[0]) <= group[-1]]
        config, source = self.config, self.sets[0].source
        if not across or config.group_by or config.validation_split or not hasattr(source, "groups"):
            return
        number = sum(int((group >= len(self.sets[0])).sum()) for group in across)
        look = "images look" if number > 1 else "image looks"
        text = (
            f"{number:,} held-out {look} like one that is trained on. If these belong together (frames of a film, "
            "slices of a patient, crops of a photograph), hold them out together"
        )
        how = "a column" if config.source == "hub" else "folder, or a regular expression on an image's path"
        keys = self._group_by(across) if config.source == "folder" else None
        yield Advice(f"{text}:", keys) if keys else Advice(f"{text}, with dataset.group_by: {how}.", "")

    def _group_by(self, across: list[np.ndarray]) -> str | None:
        """The key that unites most of these groups, and leaves some that fit into the held-out part."""
        items = [np.array([self._item(number) for number in group]) for group in across]
        for by in _GROUPED_BY:
            config = replace(self.config, group_by=by)
            with suppress(Mistakes):
                groups = group_numbers(self.sets[0].source, config)
                united = sum(len(np.unique(groups[of_group])) == 1 for of_group in items)
                wanted = round(config.validation_fraction * len(groups))
                if 2 * united > len(items) and np.unique(groups, return_counts=True)[1].min() <= wanted:
                    return shlex.quote(f"dataset.group_by={by}")
        return None

    def _item(self, number: int) -> int:
        """The place in its source of an image, or of the file that it is a frame of."""
        images, place = self._place(number)
        return int(images.prepared.usable[images.rows[place]])

    def _joined(self, what: str) -> np.ndarray:
        return np.concatenate([getattr(pixels, what) for pixels in self.pixels])

    def _place(self, number: int) -> tuple[Images, int]:
        """The set that an image belongs to, and its number there."""
        in_train = len(self.sets[0])
        return (self.sets[0], number) if number < in_train else (self.sets[1], number - in_train)

    def _name(self, number: int) -> str:
        images, place = self._place(number)
        return printable(images.name(int(images.rows[place])))

    def _seen(self, number: int) -> Image.Image:
        """The image as the model sees it."""
        images, place = self._place(number)
        return _picture(shown(to_uint8(images.load([place])), images.values)[0].numpy())

    def _spread(self) -> list[int]:
        return np.unique(np.linspace(0, len(self.sets[0]) - 1, _SHOWN).astype(int)).tolist()

    def _before_and_after(self, number: int) -> Shown:
        images, place = self._place(number)
        if images.values is not None:
            return Shown(self._name(number), [self._seen(number)])
        original = _Thumbnail(**{**vars(images.decoder), "channels": max(3, images.decoder.channels)})
        before = images.decode(int(images.rows[place]), original)
        return Shown(self._name(number), [_picture(before), self._seen(number)])

    def _distribution(self, values: np.ndarray, *, named: bool = True) -> Distribution:
        counts, edges = np.histogram(values, _BINS)
        scores = robust_scores(values)
        far = _most_extreme(values) if named else []
        outliers = [Outlier(self._name(number), float(values[number]), float(scores[number])) for number in far]
        num_outliers = int((np.abs(scores) >= FAR).sum())
        least, median, most = (float(found(values)) for found in (np.min, np.median, np.max))
        return Distribution(least, median, most, counts.tolist(), edges.tolist(), num_outliers, outliers)

    def _duplicates(self, groups: list[np.ndarray]) -> Duplicates:
        in_train = len(self.sets[0])
        across = [int((group >= in_train).sum()) for group in groups if group[0] < in_train]
        listed = [[self._name(number) for number in group[:_SHOWN]] for group in groups[:_LISTED_GROUPS]]
        return Duplicates(sum(map(len, groups)), len(groups), sum(across), listed)


def _on_equal(equal: Duplicates) -> Iterator[Advice]:
    if equal.num_images:
        across = f", {equal.num_held_out:,} of them held out with others trained on" if equal.num_held_out else ""
        spare = counted(equal.num_images - equal.num_groups, "image")
        text = f"{counted(equal.num_images, 'image')} have the same pixels as another{across}. To use one of each, and "
        yield Advice(f"{text}leave out {spare}:", "dataset.drop_duplicates=true")


def _most_extreme(values: np.ndarray) -> list[int]:
    """The outliers among these values, the farthest first."""
    scores = np.abs(robust_scores(values))
    order = np.argsort(-scores, kind="stable")[:_SHOWN]
    return order[scores[order] >= FAR].tolist()


def _picture(pixels: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] as a picture."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2))
