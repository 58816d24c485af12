"""What the numbers of a dataset's arrays mean for a model: given, of the type, or measured once over all of them."""

import json
from contextlib import suppress

import numpy as np

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.pixels import Bounds, PixelValues
from ddpm_train.data.images import Images
from ddpm_train.data.sources import Source, pixel_dtype
from ddpm_train.system.files import write_atomic

# With `percentile`: the share of the pixels that is clipped at either end, and of how many it is measured.
_CLIPPED_SHARE = 0.001
_MOST_PIXELS = 2**20


def check_types(config: Dataset, train: Source, held_out: Source) -> None:
    """Raises `Mistakes` if the held-out images are of another type."""
    types = [str(pixel_dtype(source)) for source in (train, held_out)]
    if types[0] != types[1]:
        raise Mistakes(
            f"dataset.dtype={config.dtype}: the arrays of {config.split} are of type {types[0]}, those of "
            f"{config.validation_split} of {types[1]}; give one of them"
        )


def find_values(config: Dataset, images: Images) -> PixelValues:
    """The pixel values of a dataset of arrays.

    Args:
        images: all of its split, of which the held-out ones are a part: a range must not move with those.
    """
    dtype, value_range = str(images.prepared.dtype), config.value_range
    if value_range is None and dtype == "uint8":
        value_range = (0.0, 255.0)
    if value_range is None or isinstance(value_range, str):
        low, high = map(np.array, _kept(images, percentile=value_range == "percentile"))
    else:
        low, high = (np.broadcast_to(np.array(each, dtype=np.float64), config.channels) for each in value_range)
    # Of a channel of one value any range shows as much; that from 0 to it fits into every type.
    flat = low >= high
    low, high = np.where(flat, np.minimum(low, 0), low), np.where(flat, np.maximum(high, low == 0), high)
    return PixelValues(dtype, tuple(low.tolist()), tuple(high.tolist()), config.stretch)  # type: ignore[arg-type]


def _kept(images: Images, *, percentile: bool) -> tuple[Bounds, Bounds]:
    """What was measured when the images were prepared: to read all of them again takes long."""
    path = images.prepared.folder / ("percentiles.json" if percentile else "extremes.json")
    with suppress(OSError, BadFile):
        return read_json(path, tuple[Bounds, Bounds])
    low, high = (tuple(bounds.tolist()) for bounds in _measured(images, percentile=percentile))
    with suppress(OSError):  # of another user, who may only read it
        write_atomic(path, json.dumps((low, high)).encode())
    return low, high


def _measured(images: Images, *, percentile: bool) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest number of each channel, or percentiles of evenly spaced ones, float64 [C] both."""
    per_image = max(1, _MOST_PIXELS // len(images))
    found = []
    for number in range(len(images)):
        flat = images.stored(number).reshape(images.decoder.channels, -1)
        if percentile:
            found.append(flat[:, :: -(-flat.shape[1] // per_image)])
        else:
            found.append(np.stack((flat.min(axis=1), flat.max(axis=1)), axis=1))
    pixels = np.concatenate(found, axis=1).astype(np.float64)
    if percentile:
        low, high = np.quantile(pixels, (_CLIPPED_SHARE, 1 - _CLIPPED_SHARE), axis=1)
        return low, high
    return pixels.min(axis=1), pixels.max(axis=1)
