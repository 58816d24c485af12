"""Images that are equal, and images that look alike. Memory grows with the number of images, not with its square."""

import hashlib
from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np

_HASHED_AT_ONCE = 1024  # images
_PAIRS_AT_ONCE = 2**21
_MATCHING_BLOCKS = 3  # of the bits of two hashes: a few would be equal by chance, and more take more searches


def pixel_hash(pixels: np.ndarray) -> bytes:
    """16 bytes that only images of the same pixels have in common: uint8, contiguous, of any shape."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return digest.digest()


def first_equal(hashes: np.ndarray) -> np.ndarray:
    """The number of the first image that is equal to each: its own if none before it is.

    Args:
        hashes: [N] or [N, words], of equal images equal.

    Returns:
        int64 [N].
    """
    columns = hashes[:, None] if hashes.ndim == 1 else hashes
    order = np.lexsort(columns.T)  # stable: of equal ones the first comes first
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (columns[order[1:]] != columns[order[:-1]]).any(axis=1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def duplicates(hashes: np.ndarray) -> list[np.ndarray]:
    """Groups of equal images: the numbers of two or more each, int64, ascending.

    Args:
        hashes: as in `first_equal`.
    """
    first = first_equal(hashes)
    repeated = np.flatnonzero(np.bincount(first)[first] > 1) if len(first) else first
    order = repeated[np.argsort(first[repeated], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(first[order])) + 1)
    return [group for group in groups if len(group) > 1]


def difference_hashes(images: np.ndarray) -> np.ndarray:
    """A hash of 64 bits that differs in few bits where two images look alike: resized, encoded anew, brightened.

    Each image is averaged to 8 rows of 9 grey cells; a bit says whether a cell is brighter than the one to its left
    (dHash, Krawetz 2013). The sums are whole numbers below 2**53: the same on every machine. An image of one colour
    has hash 0, whatever its colour.

    Args:
        images: uint8 [N, C, H, W].

    Returns:
        uint64 [N].
    """
    height, width = images.shape[2:]
    rows, columns = _cells(8, height), _cells(9, width)
    hashes = [np.empty(0, dtype=np.uint64)]
    for start in range(0, len(images), _HASHED_AT_ONCE):
        grey = images[start : start + _HASHED_AT_ONCE].sum(axis=1, dtype=np.float64)
        cells = rows @ grey @ columns.T
        bits = np.packbits((cells[:, :, 1:] > cells[:, :, :-1]).reshape(-1, 64), axis=1)
        hashes.append(bits.view(">u8").ravel().astype(np.uint64))
    return np.concatenate(hashes)


def _cells(count: int, size: int) -> np.ndarray:
    """How much of each pixel each of so many equal cells of a side covers, in 1/count pixels, float64 [count, size]."""
    cells, pixels = np.arange(count)[:, None] * size, np.arange(size) * count
    overlaps = np.minimum(cells + size, pixels + count) - np.maximum(cells, pixels)
    return overlaps.clip(0).astype(np.float64)


def near_duplicates(hashes: np.ndarray, distance: int = 3) -> list[np.ndarray]:
    """Groups of images whose hashes differ in few bits: the numbers of two or more each, int64, ascending.

    Two images are in one group if steps of at most `distance` bits lead from one to the other. Of hashes cut into
    distance + 3 blocks, those of such a pair agree in at least three blocks: only images that do are compared.
    The hash knows 72 cells of an image: where images resemble each other at that size (drawings on an empty ground,
    aligned faces), groups hold different images, too.

    Args:
        hashes: uint64 [N] of `difference_hashes`.
        distance: in [0, 8].
    """
    first = first_equal(hashes)
    members = np.flatnonzero(first == np.arange(len(first)))
    groups = np.arange(len(members))
    for pairs in _near_pairs(hashes[members], distance):
        groups = _joined(groups, pairs)
    group_of = np.empty(len(hashes), dtype=np.int64)
    group_of[members] = groups
    return duplicates(group_of[first])


def _near_pairs(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Pairs of different hashes within the distance, int64 [P, 2]; each at least once."""
    num_blocks = distance + _MATCHING_BLOCKS
    ends = [round(64 * block / num_blocks) for block in range(num_blocks + 1)]
    masks = [(1 << end) - (1 << start) for start, end in pairwise(ends)]
    for chosen in combinations(masks, _MATCHING_BLOCKS):
        keys = hashes & np.uint64(sum(chosen))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        places, shift = np.arange(len(order)), 1
        found, waiting = [], 0
        while len(places := places[: np.searchsorted(places, len(order) - shift)]):
            places = places[keys[places] == keys[places + shift]]
            near = np.bitwise_count(hashes[order[places]] ^ hashes[order[places + shift]]) <= distance
            found.append(np.stack([order[places[near]], order[places[near] + shift]], axis=1))
            waiting, shift = waiting + len(found[-1]), shift + 1
            if waiting > _PAIRS_AT_ONCE:
                yield np.concatenate(found)
                found, waiting = [], 0
        if waiting:
            yield np.concatenate(found)


def _joined(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The groups after those of each pair became one; a group is called by its first member.

    Args:
        groups: int64 [N].
        pairs: int64 [P, 2] of members.
    """
    one, other = groups[pairs].T
    while (apart := one != other).any():
        one, other = one[apart], other[apart]
        np.minimum.at(groups, np.maximum(one, other), np.minimum(one, other))
        while (further := groups[groups] != groups).any():
            groups = np.where(further, groups[groups], groups)
        one, other = groups[one], groups[other]
    return groups
