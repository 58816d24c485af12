"""The order of the images: a keyed permutation for each epoch, computed and never stored.

A Feistel network over the smallest power of four (from 64 on) that holds the dataset, with cycle walking (Black &
Rogaway 2002, "Ciphers with arbitrary finite domains"): a billion images cost no memory, and any position is found at
once.
"""

import numpy as np

_ROUNDS = 6
# Narrower halves give the round functions too few bits: the orders of a handful of images would not be uniform.
_MIN_HALF_BITS = 3


def image_indices(positions: np.ndarray, num_images: int, seed: int) -> np.ndarray:
    """Which image is at each position of a run.

    Args:
        positions: int64 [B], counted from 0 over all epochs: position // num_images is the epoch.
        num_images: images in the dataset, at least 1.
        seed: in [0, 2**63).

    Returns:
        int64 [B] in [0, num_images). Within an epoch every image occurs exactly once.
    """
    positions = positions.astype(np.uint64)
    epochs, places = np.divmod(positions, np.uint64(num_images))
    half = np.uint64(max(_MIN_HALF_BITS, ((num_images - 1).bit_length() + 1) // 2))
    keys = _mix(np.uint64(seed) ^ _mix(epochs + np.uint64(1)))
    places = _feistel(places, keys, half)
    # Walk the cycle until the value falls into the dataset: at most four steps on average (from 17 images on).
    while (outside := places >= num_images).any():
        places[outside] = _feistel(places[outside], keys[outside], half)
    return places.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    """A bijection of [0, 2**(2 * half)) for each key."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for round_number in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(keys + np.uint64(round_number))) & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele et al. 2014); uint64 arithmetic wraps around."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
