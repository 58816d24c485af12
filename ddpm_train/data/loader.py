"""Positions of a run -> batches of images. The only state is the position."""

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_train.config import Dataset
from ddpm_train.data.cache import Prepared, default_cache_dir, prepare, signals_left_to_parent
from ddpm_train.data.decode import BrokenImage, Decoder, crop_origin
from ddpm_train.data.order import image_indices
from ddpm_train.data.sources import Source, describe, open_source
from ddpm_train.mistakes import Mistakes
from ddpm_train.seeding import Purpose, uniform

# The held-out part of a dataset must not move when the run's seed does.
_SPLIT_SEED = 0


@dataclass
class Images:
    """A set of images, by number: decoded from the cache, or from the source when there is no cache.

    Attributes:
        rows: int64 [N], each image's place in `prepared`.
        resolution: (height, width) of what `load` returns.
    """

    source: Source
    decoder: Decoder
    prepared: Prepared
    rows: np.ndarray
    cached: bool
    _offsets: np.ndarray = field(init=False, repr=False)
    _pixels: np.ndarray | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        lengths = self.prepared.sizes.astype(np.int64).prod(axis=1) * self.decoder.channels
        self._offsets = np.concatenate(([0], np.cumsum(lengths)))

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, numbers: Sequence[int] | np.ndarray, crops: np.ndarray | None = None) -> Tensor:
        """Images by number.

        Args:
            numbers: [B] in [0, len(self)).
            crops: float64 [B, 2] in [0, 1), where each random crop lies; None takes the centre.

        Returns:
            uint8 [B, C, H, W].
        """
        height, width = self.decoder.resolution
        if self.cached and self.decoder.crop == "center":
            grid = self._open_pixels().reshape(-1, self.decoder.channels, height, width)
            return torch.from_numpy(grid[self.rows[numbers]])
        batch = np.empty((len(numbers), self.decoder.channels, height, width), dtype=np.uint8)
        for place, number in enumerate(numbers):
            image = self._image(int(self.rows[number]))
            vertical, horizontal = (0.5, 0.5) if crops is None else crops[place]
            top = crop_origin(vertical, image.shape[1], height)
            left = crop_origin(horizontal, image.shape[2], width)
            batch[place] = image[:, top : top + height, left : left + width]
        return torch.from_numpy(batch)

    def _image(self, row: int) -> np.ndarray:
        if self.cached:
            height, width = self.prepared.sizes[row]
            flat = self._open_pixels()[self._offsets[row] : self._offsets[row + 1]]
            return flat.reshape(self.decoder.channels, height, width)
        index = int(self.prepared.usable[row])
        try:
            return self.source.load(index, self.decoder)
        except BrokenImage as error:
            raise Mistakes(f"{self.source.name(index)}: could be read at the start, but not now: {error}") from None

    def _open_pixels(self) -> np.ndarray:
        if self._pixels is None:  # opened late, so that the object pickles small for workers
            self._pixels = self.prepared.pixels()
        return self._pixels


@dataclass(frozen=True)
class Data:
    """The training images, the held-out ones (possibly none), and what identifies them."""

    train: Images
    validation: Images | None
    content: str
    broken: list[str]


def open_data(config: Dataset, *, progress: bool) -> Data:
    """Open, prepare and split the configured dataset.

    Raises:
        Mistakes: see `open_source` and `prepare`; also when a split leaves no image.
    """
    decoder = Decoder(config.resolution, config.channels, config.background, config.crop, config.max_pixels)

    def prepared(split: str) -> tuple[Source, Prepared]:
        source = open_source(config, split)
        found = prepare(
            source,
            decoder,
            Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir(),
            keep_pixels=config.cache == "disk",
            # Of all processes of a launch one prepares and the others wait: it has all cores.
            num_workers=_num_cores() if config.num_workers is None else config.num_workers,
            progress=progress,
        )
        _check_broken(config, found, len(source))
        return source, found

    def images(source: Source, all_of: Prepared, rows: np.ndarray) -> Images:
        return Images(source, decoder, all_of, rows, cached=config.cache == "disk")

    source, train = prepared(config.split)
    if config.validation_split is not None:
        held_out_source, held_out = prepared(config.validation_split)
        return Data(
            images(source, train, np.arange(len(train))),
            images(held_out_source, held_out, np.arange(len(held_out))),
            content=train.content,
            broken=train.broken + held_out.broken,
        )
    num_held_out = round(config.validation_fraction * len(train))
    shuffled = image_indices(np.arange(len(train)), len(train), _SPLIT_SEED)
    held_out_rows, train_rows = np.sort(shuffled[:num_held_out]), np.sort(shuffled[num_held_out:])
    if len(train_rows) == 0:
        raise Mistakes(f"dataset.validation_fraction={config.validation_fraction}: leaves no image to train on")
    return Data(
        images(source, train, train_rows),
        images(source, train, held_out_rows) if num_held_out else None,
        content=train.content,
        broken=train.broken,
    )


def _check_broken(config: Dataset, prepared: Prepared, total: int) -> None:
    listed = describe(prepared.broken)
    if total == 0:
        raise Mistakes(f"dataset.path={config.path}: holds no images")
    if len(prepared) == 0:
        raise Mistakes(f"dataset.path={config.path}: none of its {total} images can be read ({listed})")
    if len(prepared.broken) > config.max_broken_fraction * total:
        raise Mistakes(
            f"dataset.max_broken_fraction={config.max_broken_fraction}: {len(prepared.broken)} of {total} images "
            f"cannot be read ({listed}); repair or remove them, or allow more"
        )


def num_workers(config: Dataset) -> int:
    """Workers for each training process: by default they share the machine's cores."""
    if config.num_workers is not None:
        return config.num_workers
    return max(1, _num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Batches(torch.utils.data.Dataset):
    """What a run sees at each position: the image in the epoch's order, cropped and flipped by the position alone."""

    def __init__(self, images: Images, *, seed: int, random_crop: bool, random_flip: bool) -> None:
        self._images = images
        self._seed = seed
        self._random_crop = random_crop
        self._random_flip = random_flip

    def __getitem__(self, positions: Tensor | np.ndarray) -> tuple[Tensor, Tensor] | Mistakes:
        """int64 [B] positions -> the same positions and their images, uint8 [B, C, H, W].

        A mistake is returned: raised in a worker, it would arrive buried in that worker's traceback.
        """
        positions = torch.as_tensor(positions)
        try:
            return positions, self._load(positions)
        except Mistakes as mistakes:
            return mistakes

    def _load(self, positions: Tensor) -> Tensor:
        numbers = image_indices(positions.numpy(), len(self._images), self._seed)
        crops = uniform(self._seed, Purpose.CROP, positions, 2).numpy() if self._random_crop else None
        batch = self._images.load(numbers, crops)
        if self._random_flip:
            flipped = uniform(self._seed, Purpose.FLIP, positions, 1)[:, 0] < 0.5
            batch[flipped] = batch[flipped].flip(-1)
        return batch


def micro_batches(
    batches: Batches, positions: Iterator[Tensor], *, num_workers: int, pin_memory: bool
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """(positions int64 [B], images uint8 [B, C, H, W]) for each element of `positions`, in order.

    With workers the images are loaded ahead by other processes; the result is the same.

    Raises:
        Mistakes: without a cache, an image that could be read at the start cannot be read any more.
    """
    loader = torch.utils.data.DataLoader(
        batches,
        sampler=(each.numpy() for each in positions),  # a tensor would go to a worker by a shared file, not by value
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
        prefetch_factor=4 if num_workers else None,
        pin_memory=pin_memory,
    )
    with signals_left_to_parent():
        loading = iter(loader)
    try:
        for loaded in loading:
            if isinstance(loaded, Mistakes):
                raise loaded
            yield loaded
    finally:
        del loading  # ends the workers now, though a traceback may keep this frame
