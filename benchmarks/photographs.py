"""JPEGs with a photograph's sizes and coarse-to-fine content; the same ones every time."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

SHORTER_SIDE = 500
FINEST = 256  # cells of noise along a side


def write_photographs(folder: Path, count: int) -> None:
    """Fill a new folder, with all cores."""
    folder.mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_write, folder), range(count), chunksize=16))


def _write(folder: Path, number: int) -> None:
    random = np.random.default_rng(number)
    longer_side = int(SHORTER_SIDE * random.uniform(1.0, 1.5))
    size = (longer_side, SHORTER_SIDE) if number % 3 else (SHORTER_SIDE, longer_side)
    pixels = np.full((FINEST, FINEST, 3), 128, np.float32)
    for cells, strength in ((4, 60), (16, 30), (64, 15), (FINEST, 8)):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        noise = noise.resize((FINEST, FINEST), Image.Resampling.BICUBIC)
        pixels += (np.asarray(noise, np.float32) / 127.5 - 1) * strength
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image.save(folder / f"{number:05d}.jpg", quality=90)
