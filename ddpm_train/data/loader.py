"""Positions of a run -> batches of images. The only state is the position."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.pixels import PixelValues
from ddpm_train.data.cache import Prepared, prepare
from ddpm_train.data.decode import Broken, Decoder
from ddpm_train.data.frames import MOST_FRAMES
from ddpm_train.data.greys import Greys, find_greys
from ddpm_train.data.images import DeviceImages, Images
from ddpm_train.data.order import image_indices
from ddpm_train.data.sources import Source, describe, open_source, reasons
from ddpm_train.data.split import Selection, group_numbers, select
from ddpm_train.data.values import check_types, find_values
from ddpm_train.data.workers import Workers
from ddpm_train.seeding import Purpose, bits
from ddpm_train.system.console import counted
from ddpm_train.system.files import cache_folder
from ddpm_train.system.launch import num_cores

if TYPE_CHECKING:  # workers import this module, and diffusers takes them seconds
    from ddpm_train.diffusion.objective import Objective

DataIdentity: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Data:
    """The training images, the held-out ones (possibly none), and what identifies them."""

    train: Images
    validation: Images | None
    content: str  # see `Prepared`, also for `broken`
    broken: list[Broken]
    left_out: list[str]  # what of the dataset is not used, in lines
    commit: str | None  # of the repository that they come from, if it is one on the Hub
    greys: Greys | None  # unless `dataset.value_range` says what is black and white
    selection: Selection
    values: PixelValues | None = None  # what the numbers of arrays mean

    def warnings(self) -> Iterator[str]:
        """What of the dataset is not used, in lines for a person."""
        if self.broken:
            verb = "is" if len(self.broken) == 1 else "are"
            yield f"warning: {counted(len(self.broken), 'image')} cannot be read and {verb} skipped:"
            yield from (f"  {line}" for line in reasons(self.broken)[:20])
        yield from (f"warning: {line}" for line in (*self.left_out, *self.selection.warnings))

    @property
    def notes(self) -> dict[str, str]:
        """What the config's keys have come to with these images, in lines for a person, by a word for each."""
        more = {"frames": self.frames_text, "values": str(self.values or self.greys or "")}
        return self.selection.notes | {name: text for name, text in more.items() if text}

    @property
    def frames_text(self) -> str | None:
        """Which images are frames, in a line; None: none is."""
        files = [each.prepared.usable[each.rows] for each in (self.train, self.validation) if each is not None]
        if self.validation is not None and self.validation.source is not self.train.source:
            files[1] = -1 - files[1]  # other files
        _, counts = np.unique(np.concatenate(files), return_counts=True)
        several, total = counts[counts > 1], counted(int(counts.sum()), "image")
        return f"{several.sum():,} of {total} are frames of {counted(len(several), 'file')}" if len(several) else None

    def identity(self) -> "DataIdentity":
        """What makes these images these: content and number of the training images, and of those held out."""
        changed = self.selection.changed or ""
        return tuple(
            (each.prepared.content + changed, len(each)) for each in (self.train, self.validation) if each is not None
        )


def open_data(config: Dataset, *, progress: bool) -> Data:
    """Open, prepare and split the configured dataset.

    Raises:
        Mistakes: see `open_source` and `prepare`; also when a split leaves no image.
    """
    source = open_source(config, config.split)
    decoder, greys = _decoder(config, source)

    def prepared(source: Source) -> Prepared:
        found = prepare(
            source,
            decoder,
            cache_folder(config.cache_dir),
            keep_pixels=config.cache == "disk",
            # Of all processes of a launch one prepares and the others wait: it has all cores, one of them for itself.
            num_workers=num_cores() - 1 if config.num_workers is None else config.num_workers,
            progress=progress,
        )
        _check_broken(config, found)
        return found

    def images(source: Source, all_of: Prepared, rows: np.ndarray, values: PixelValues | None) -> Images:
        return Images(source, decoder, all_of, rows, config.cache == "disk", values)

    groups = group_numbers(source, config)  # before what takes long: it may be mistaken
    train, held_out, held_out_source = prepared(source), None, source
    broken, left_out = train.broken, _left_out(source, train)
    if config.validation_split is not None:
        held_out_source = open_source(config, config.validation_split)
        held_out = prepared(held_out_source)
        broken = broken + held_out.broken
        left_out = left_out + _left_out(held_out_source, held_out)
    chosen = select(config, groups, train, held_out)
    values = None
    if config.dtype is not None:
        check_types(config, source, held_out_source)
        values = find_values(config, images(source, train, np.arange(len(train)), None))
    return Data(
        images(source, train, chosen.train, values),
        images(held_out_source, held_out or train, chosen.held_out, values) if len(chosen.held_out) else None,
        train.content,
        broken,
        left_out,
        source.commit,
        greys,
        chosen,
        values,
    )


def _decoder(config: Dataset, source: Source) -> tuple[Decoder, Greys | None]:
    """What makes pixels of an image, and what the greys of the source were found to mean where nobody says."""
    of_config = (config.resolution, config.channels, config.background, config.crop, config.max_pixels)
    decoder = Decoder(*of_config, config.grey_range, frames=config.frames)
    greys = find_greys(source, decoder) if config.value_range is None and config.dtype is None else None
    return replace(decoder, grey_white=greys.white if greys else None), greys


def _left_out(source: Source, prepared: Prepared) -> list[str]:
    lines = list(getattr(source, "left_out", ()))  # a source of one's own need not know
    images, frames = prepared.unused_frames
    at_least = "at least " if prepared.overlong else ""
    if frames:
        first = f"the first of each is used, of {at_least}{counted(len(prepared) + frames, 'frame')} in all"
        several = f"{at_least}{counted(frames, 'frame')} of {counted(images, 'image')} with several ({first})"
        lines.append(f"left out: {several}; dataset.frames=all uses every frame")
    elif prepared.overlong:
        lines.append(f"left out: the frames after the first {MOST_FRAMES:,} of {counted(prepared.overlong, 'file')}")
    return lines


def _check_broken(config: Dataset, prepared: Prepared) -> None:
    listed, total = describe(reasons(prepared.broken), separator="; "), len(prepared) + len(prepared.broken)
    if total == 0:
        raise Mistakes(f"dataset.path={config.path}: holds no images")
    if len(prepared) == 0:
        raise Mistakes(f"dataset.path={config.path}: none of its {total} images can be read ({listed})")
    if len(prepared.broken) > config.max_broken_fraction * total:
        raise Mistakes(
            f"dataset.max_broken_fraction={config.max_broken_fraction}: {len(prepared.broken)} of {total} images "
            f"cannot be read ({listed}); repair or remove them, or allow more"
        )


@dataclass
class Batches:
    """What a run sees at each position: the image in the epoch's order, cropped and flipped by the position alone."""

    images: Images
    seed: int
    random_crop: bool
    random_flip: bool
    augmentation_draws: int = 0  # random integers that come along with each image, see `Augmentation`

    def load(self, positions: Tensor) -> Tensor:
        """int64 [B] positions -> their images, not yet flipped, uint8 [B, C, H, W]."""
        crops = bits(self.seed, Purpose.CROP, positions, self.crops[Purpose.CROP]).numpy() if self.crops else None
        return self.images.load(self.numbers(positions), crops)

    def numbers(self, positions: Tensor) -> np.ndarray:
        """Which images are at the positions, int64 [B]."""
        return image_indices(positions.numpy(), len(self.images), self.seed)

    @property
    def crops(self) -> dict[Purpose, int]:
        """How many random integers the crop of an image takes: none where it is the centre."""
        return {Purpose.CROP: 2} if self.random_crop else {}

    @property
    def flips(self) -> dict[Purpose, int]:
        """How many random integers decide whether an image is mirrored."""
        return {Purpose.FLIP: 1} if self.random_flip else {}

    def drawn(self, *, resident: bool) -> dict[Purpose, int]:
        """What is drawn for an image besides its noise, where that is drawn: workers crop by themselves."""
        crops = self.crops if resident else {}
        return {**self.flips, **crops, Purpose.AUGMENTATION: self.augmentation_draws}


class MicroBatch(NamedTuple):
    """What a forward pass takes: images as their visit has them, and what is drawn for them."""

    images: Tensor  # uint8 [B, C, H, W]
    noise: Tensor  # float32 [B, C, H, W]
    timesteps: Tensor  # int64 [B]
    input_noise: Tensor  # what x_t has: `noise`, unless it is perturbed; float32 [B, C, H, W]
    drawn: Tensor  # for the augmentation, int64 [B, its draws] in [0, 2**32)


def micro_batches(
    batches: Batches,
    objective: "Objective",
    positions: Iterator[Tensor],
    *,
    device: torch.device,
    resident: bool,
    num_workers: int,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Generator[MicroBatch, None, None]:
    """The micro-batch at each element of `positions`, int64 [B], in order, on the device.

    The result is the same, wherever the images come from. All that is random of a micro-batch is drawn at once.

    Args:
        objective: draws, with the seed of `batches`.
        resident: copy all images to the device first and gather from there.
        num_workers: other processes that load the images ahead, unless resident.
        waiting: see `Workers`.

    Raises:
        Mistakes: without a cache, an image that could be read at the start cannot be read any more.
        LoadingFailed: see `Workers`.
    """
    stored = DeviceImages(batches.images, device) if resident else None
    shape = (batches.images.decoder.channels, *batches.images.resolution)
    also = {**batches.drawn(resident=resident), **objective.also(shape)}

    def drawn(places: Tensor, found: Tensor) -> MicroBatch:
        noise, timesteps, *others = objective.draw(shape, places, also=also)
        integers = dict(zip(also, others, strict=True))
        images = found if stored is None else stored.load(found, integers.get(Purpose.CROP))
        images = _flipped(images, integers.get(Purpose.FLIP))
        noise, input_noise = objective.noises(images, noise, integers)
        return MicroBatch(images, noise, timesteps, input_noise, integers[Purpose.AUGMENTATION])

    if resident:
        loading = _numbers(batches, positions, device)
    elif num_workers:
        loading = _loaded_ahead(batches, positions, device, num_workers, waiting)
    else:
        loading = _loaded(batches, positions, device)
    with closing(loading):
        for places, found in loading:
            yield drawn(places, found)


def _flipped(images: Tensor, drawn: Tensor | None) -> Tensor:
    """Every second image mirrored, as the integers say, int64 [B, 1]; on any device, without asking it anything."""
    if drawn is None:
        return images
    return torch.where((drawn < 2**31)[:, :, None, None], images.flip(-1), images)


def _numbers(
    batches: Batches, positions: Iterator[Tensor], device: torch.device
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Positions and the numbers of their images, int64 [B] both, on the device."""
    for each in positions:
        yield to_device(each, device), to_device(torch.from_numpy(batches.numbers(each)), device)


def _loaded(
    batches: Batches, positions: Iterator[Tensor], device: torch.device
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Positions, int64 [B], and their images, not yet flipped, uint8 [B, C, H, W], on the device."""
    for each in positions:
        yield to_device(each, device), to_device(batches.load(each), device)


def _loaded_ahead(
    batches: Batches,
    positions: Iterator[Tensor],
    device: torch.device,
    num_workers: int,
    waiting: Callable[[float], None],
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The same, by workers."""
    workers = Workers(batches.load, positions, num_workers=num_workers, device=device, waiting=waiting)
    with closing(workers):
        for places, images in workers:
            yield to_device(places, device), to_device(images, device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for, where memory can be pinned; elsewhere it could change underway."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")
