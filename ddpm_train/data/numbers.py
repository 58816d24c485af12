"""The numbers of arrays, channel by channel, in the units of their files."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from ddpm_train.config.pixels import PixelValues
from ddpm_train.data.images import Images
from ddpm_train.report.dataset import Channel

_BINS = 40


def read_numbers(sets: Sequence[Images], values: PixelValues, *, progress: bool) -> list[Channel]:
    """Read every image once, with what a random crop may choose from.

    Raises:
        Mistakes: one can no longer be read (without a cache).
    """
    low, high = (np.array(each)[:, None] for each in (values.low, values.high))
    edges = np.linspace(values.low, values.high, _BINS + 1, axis=1)
    counts = np.zeros((len(low), _BINS), dtype=np.int64)
    least, most = np.full(len(low), np.inf), np.full(len(low), -np.inf)
    sums, squares, clipped, total = (np.zeros(len(low)) for _ in range(4))
    for images in sets:
        for place in tqdm(range(len(images)), desc="reading numbers", disable=not progress, leave=False):
            numbers = images.stored(place).reshape(len(low), -1).astype(np.float64)
            least, most = np.minimum(least, numbers.min(axis=1)), np.maximum(most, numbers.max(axis=1))
            clipped += ((numbers < low) | (numbers > high)).sum(axis=1)
            total += numbers.shape[1]
            for channel, own in enumerate(numbers):
                counts[channel] += np.histogram(own, edges[channel])[0]
            from_low = numbers - low  # whose squares are not all rounding where the numbers are large and close
            sums += from_low.sum(axis=1)
            squares += np.square(from_low).sum(axis=1)
    mean = sums / total
    std = np.sqrt((squares / total - mean**2).clip(0))
    columns = (least, most, low[:, 0] + mean, std, clipped / total, counts, edges)
    return [Channel(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
