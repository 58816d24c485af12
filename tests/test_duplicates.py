"""Images that are equal, and images that look alike."""

import io

import numpy as np
from helpers.images import encoded
from PIL import Image, ImageEnhance

from ddpm_train.data.duplicates import difference_hashes, duplicates, first_equal, near_duplicates


def photograph(seed: int, side: int = 64) -> Image.Image:
    """Smooth shapes in colour, as a photograph has them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=60)))


def stacked(images: list[Image.Image]) -> np.ndarray:
    """uint8 [N, C, H, W]"""
    return np.stack([np.asarray(image.convert("RGB")) for image in images]).transpose(0, 3, 1, 2)


def listed(groups: list[np.ndarray]) -> list[list[int]]:
    return [group.tolist() for group in groups]


def test_what_looks_alike_is_found_among_others() -> None:
    images = [photograph(seed) for seed in range(200)]
    images[50] = as_jpeg(images[3])
    images[120] = ImageEnhance.Brightness(images[3]).enhance(0.8)
    images[199] = photograph(7, side=40).resize((64, 64))
    images[80] = images[9]
    hashes = difference_hashes(stacked(images))
    assert hashes.dtype == np.uint64 and hashes.shape == (200,)
    assert listed(near_duplicates(hashes)) == [[3, 50, 120], [7, 199], [9, 80]]
    assert listed(duplicates(hashes))[-1] == [9, 80]
    assert near_duplicates(hashes[:0]) == duplicates(hashes[:0]) == []


def test_a_hash_compares_the_cells_of_each_row() -> None:
    rising = np.broadcast_to(np.arange(9, dtype=np.uint8), (8, 9))
    half = np.concatenate([rising[:4], rising[4:, ::-1]])
    images = np.stack([rising, half, rising * 0 + 7])[:, None]
    expected = [2**64 - 1, (2**32 - 1) << 32, 0]
    assert difference_hashes(images).tolist() == expected
    # Whatever the size: smaller than the cells, no multiple of them, and with channels.
    for zoom in (np.kron(images, np.ones((1, 1, 3, 5), np.uint8)), np.repeat(images, 3, axis=1)):
        assert difference_hashes(zoom).tolist() == expected
    assert difference_hashes(images[:, :, :4, :5]).tolist() == [2**64 - 1, 2**64 - 1, 0]


def test_near_duplicates_are_all_pairs_within_the_distance() -> None:
    """Against all pairs, where many hashes agree in many bits; in chains, too."""
    rng = np.random.default_rng(0)
    bits = (rng.random((700, 64)) < rng.choice([0.02, 0.1, 0.5], 64)).astype(np.uint8)
    hashes = np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)
    for distance in (0, 1, 3, 5):
        near = np.bitwise_count(hashes[:, None] ^ hashes) <= distance
        first = np.arange(700)
        for _ in range(700):
            reached = np.where(near, first, 700).min(axis=1)
            if np.array_equal(reached, first):
                break
            first = reached
        expected = [np.flatnonzero(first == each) for each in np.unique(first)]
        assert listed(near_duplicates(hashes, distance)) == listed([each for each in expected if len(each) > 1])


def test_equal_images_are_called_by_the_first() -> None:
    hashes = np.array([[5, 1], [5, 2], [4, 1], [5, 1], [4, 1], [5, 1]], dtype=np.uint64)
    assert first_equal(hashes).tolist() == [0, 1, 2, 0, 2, 0]
    assert listed(duplicates(hashes)) == [[0, 3, 5], [2, 4]]
