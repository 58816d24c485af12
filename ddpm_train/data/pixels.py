"""One pass over the pixels of a set of images, in pieces: some bytes are kept of each image, and sums over all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from ddpm_train.data.duplicates import difference_hashes
from ddpm_train.data.images import Images
from ddpm_train.diffusion.pixels import to_uint8

# At once: held-out images lie all over the cache, and around each of them the system maps 64 kB of it.
_CHUNK_BYTES = 2**21
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's mode L


@dataclass(frozen=True)
class Pixels:
    """What is known of N images as the model sees them, cropped at the centre and not flipped."""

    look: np.ndarray  # uint64 [N]: see `difference_hashes`
    brightness: np.ndarray  # float32 [N]: mean luma, or the mean of all channels of arrays, in [0, 1]
    chroma: np.ndarray  # float32 [N]: mean of the largest minus the smallest of R, G and B, in [0, 1]; 0 where grey
    mean: list[float]  # of each channel, in [-1, 1]
    std: list[float]


def read_pixels(images: Images, *, progress: bool) -> Pixels:
    """Read every image once.

    Raises:
        Mistakes: one can no longer be read (without a cache).
    """
    channels, (height, width) = images.decoder.channels, images.resolution
    size = max(1, _CHUNK_BYTES // (channels * height * width))
    look = np.empty(len(images), dtype=np.uint64)
    brightness, chroma = (np.empty(len(images), dtype=np.float32) for _ in range(2))
    are_bytes = images.values is None or images.values.is_bytes
    # Of bytes whole numbers, of which 2**47 pixels fit.
    sums, squares = (np.zeros(channels, dtype=np.int64 if are_bytes else np.float64) for _ in range(2))
    for start in tqdm(range(0, len(images), size), desc="reading pixels", disable=not progress, leave=False):
        # A new object maps the cache anew, so that pages that were read do not add up.
        x_0 = replace(images).load(np.arange(start, min(start + size, len(images))))
        batch = to_uint8(x_0).numpy()
        chunk = slice(start, start + len(batch))
        look[chunk] = difference_hashes(batch)
        colours = batch[:, :3]
        means = batch.mean(axis=(2, 3)) / 255
        brightness[chunk] = means[:, :3] @ _LUMA if images.values is None and channels > 1 else means.mean(axis=1)
        chroma[chunk] = (colours.max(axis=1) - colours.min(axis=1)).mean(axis=(1, 2)) / 255
        scaled = batch.astype(np.uint16) if are_bytes else ((x_0.double() + 1) * 127.5).numpy()
        sums += scaled.sum(axis=(0, 2, 3), dtype=sums.dtype)
        squares += np.square(scaled).sum(axis=(0, 2, 3), dtype=sums.dtype)
    mean, std = _moments(sums.tolist(), squares.tolist(), len(images) * height * width)
    return Pixels(look, brightness, chroma, mean, std)


def _moments(sums: Sequence[float], squares: Sequence[float], count: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel after x / 127.5 - 1, of exact sums over bytes, or of float64."""
    variances = [(count * square - total**2) / count**2 for total, square in zip(sums, squares, strict=True)]
    return [total / count / 127.5 - 1 for total in sums], [max(each, 0) ** 0.5 / 127.5 for each in variances]


def robust_scores(values: np.ndarray) -> np.ndarray:
    """How many standard deviations each value lies from the median, by a spread that outliers do not move.

    The modified z-score of Iglewicz and Hoaglin (1993): the median absolute deviation takes the place of the standard
    deviation, or the mean one where more than half of the values are equal. 0 everywhere if all are.

    Args:
        values: [N].

    Returns:
        float64 [N].
    """
    distances = values.astype(np.float64) - np.median(values)
    if spread := 1.4826 * np.median(np.abs(distances)):
        return distances / spread
    mean = 1.2533 * np.abs(distances).mean()
    return distances / mean if mean else distances
