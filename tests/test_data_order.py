import tracemalloc

import numpy as np
import pytest

from ddpm_train.data.order import image_indices


def order(num_images: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return image_indices(np.arange(num_images) + epoch * num_images, num_images, seed)


@pytest.mark.parametrize("num_images", [1, 2, 3, 5, 16, 17, 64, 65, 1000, 65537])
def test_every_image_stands_once_in_each_epoch(num_images: int) -> None:
    for seed, epoch in ((0, 0), (0, 1), (2**63 - 1, 0), (5, 10**9)):
        assert np.array_equal(np.sort(order(num_images, seed, epoch)), np.arange(num_images))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [order(1000, seed, epoch) for seed in (0, 1, 2**62) for epoch in range(5)]
    for index, one in enumerate(orders):
        for other in [*orders[:index], np.arange(1000)]:
            # Two random orders of 1,000 agree at one place on average.
            assert (one == other).sum() < 10


def test_any_split_of_the_positions_sees_the_same_images() -> None:
    whole = image_indices(np.arange(3000), 700, 3)
    for sizes in ([1] * 3000, [7, 993, 1500, 500]):
        parts = np.split(np.arange(3000), np.cumsum(sizes)[:-1])
        assert np.array_equal(np.concatenate([image_indices(part, 700, 3) for part in parts]), whole)
    shuffled = np.random.default_rng(0).permutation(3000)
    assert np.array_equal(image_indices(shuffled, 700, 3), whole[shuffled])


def normalized_chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic in standard deviations from its mean, for equally likely cells."""
    degrees = counts.size - 1
    expected = counts.mean()
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("num_images", [2, 3, 5, 16, 17, 100])
def test_places_and_neighbours_are_uniform(num_images: int) -> None:
    epochs = 20_000
    images = image_indices(np.arange(num_images * epochs), num_images, 1).reshape(epochs, num_images)
    at_places = np.stack([np.bincount(images[:, place], minlength=num_images) for place in range(num_images)])
    # Rows and columns have fixed sums, so the statistic can only be smaller than chi-square's.
    assert normalized_chi_square(at_places) < 4
    pairs = np.bincount(images[:, 0] * num_images + images[:, 1], minlength=num_images**2)
    assert normalized_chi_square(pairs.reshape(num_images, num_images)[~np.eye(num_images, dtype=bool)]) < 4


def test_an_order_has_no_trend() -> None:
    images = order(65537, seed=4)
    for lag in (0, 1, 2, 256):
        # The correlation of independent sequences has a standard deviation of 1/sqrt(n) = 0.004.
        reference = np.arange(65537) if lag == 0 else np.roll(images, lag)
        assert abs(np.corrcoef(images, reference)[0, 1]) < 0.016


def test_a_billion_images_cost_no_memory_wherever_a_run_stands() -> None:
    positions = np.concatenate([np.arange(64), np.arange(64) + 10**9 * 123_456 + 999_999_000])
    tracemalloc.start()
    images = image_indices(positions, 10**9, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert images.min() >= 0 and images.max() < 10**9 and len(np.unique(images)) == 128
    assert np.array_equal(images[64:], image_indices(positions[64:], 10**9, 0))
