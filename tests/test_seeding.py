"""The counter-based generator against its published test vectors and against statistics."""

import math

import pytest
import torch

from ddpm_train.seeding import Purpose, bits, derived_seed, draw, integers, normal, philox


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


def test_philox_known_answers() -> None:
    """The three Philox4x32-10 vectors of Random123 1.09's kat_vectors."""
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, expected in cases:
        assert tuple(int(word) for word in philox(words(*counter), key)) == expected


# The first six numbers of each purpose at this seed and position, as the first release drew them.
SEED, POSITION = 2**40 + 3, 2**33 + 5
MEANS = {
    Purpose.NOISE: [0xE3B5C662, 0xFA827560, 0xE67BE450, 0x1421C755, 0x97F703F4, 0xB7519676],
    Purpose.TIMESTEP: [0x7C5B7A6B, 0xAA4F80F5, 0x3B299192, 0x24566BE2, 0x4CF6BE59, 0xC69B9B21],
    Purpose.FLIP: [0xB0585565, 0x7C8DD29A, 0xC173E3FF, 0x3D3F976E, 0x5542F861, 0x5BE7D25D],
    Purpose.CROP: [0x75B480C2, 0xA90834A4, 0xCAB8BC9C, 0x2B587600, 0x51FE1A49, 0x7DB96DFD],
    Purpose.INIT: [0xFCBAFE5A, 0xE70C375C, 0x8DD9A7BD, 0xDE23D091, 0x154146CE, 0x188567E4],
    Purpose.DROPOUT: [0xB20D7EB6, 0x0EA3141A, 0x83841C30, 0xDB33B7DA, 0x3F840F80, 0xB1278E01],
    Purpose.HELD_OUT_NOISE: [0x0AD9DDAC, 0x96443CA7, 0xEF5A699A, 0x51A126D1, 0xE193DCF5, 0x85BED779],
    Purpose.HELD_OUT_TIMESTEP: [0x42C51D2B, 0x5FD2BD66, 0x915F3A3D, 0xC2D55FA2, 0x071E2CEA, 0xD046F877],
    Purpose.BOUND_NOISE: [0xB71C96B1, 0xD111156E, 0xABC7E884, 0x14EF8CB9, 0x972607ED, 0x2CABF874],
    Purpose.BOUND_TIMESTEP: [0xB7B12EC9, 0x47F2A4EF, 0x54B8560A, 0x44364C52, 0xD574AC6A, 0x15CE77E0],
    Purpose.FLOOR_IMAGE: [0x0E3B452F, 0xA2FE6284, 0x91036975, 0x95294614, 0xC295CCDC, 0xA663C035],
    Purpose.AUGMENTATION: [0x0BC64F72, 0x968A3953, 0x0391AF21, 0x7BF75192, 0xA3D9B34D, 0x081BE911],
    Purpose.PERTURBATION: [0xDF3B8D42, 0x85D988FB, 0xC9597056, 0x89C33C41, 0xDAB5B2C6, 0xE4D3DFDD],
    Purpose.OTHER_NOISE: [0x523C674A, 0x8C7359A7, 0xBC2C304C, 0x49C5EC89, 0xCFD3A419, 0x3D235088],
}


def test_what_a_seed_means() -> None:
    """It must never change: no run could go on, and no result be repeated. Alone or in one pass, it is the same."""
    here = torch.tensor([7, POSITION])
    assert MEANS.keys() == set(Purpose)
    for purpose, numbers in MEANS.items():
        assert bits(SEED, purpose, here, 6)[1].tolist() == numbers
    counts = dict(zip(MEANS, (6, 1, 1, 2, 5, 6, 3, 4, 6, 1, 2, 5, 6, 3), strict=True))
    drawn = dict(zip(counts, draw(SEED, here, counts), strict=True))
    for purpose, count in counts.items():
        assert drawn[purpose][1].tolist() == MEANS[purpose][:count]
        assert torch.equal(drawn[purpose], bits(SEED, purpose, here, count))


def test_what_is_made_of_the_numbers() -> None:
    here = torch.tensor([POSITION])
    n = [(number + 0.5) / 2**32 for number in MEANS[Purpose.NOISE]]
    radii, angles = [math.sqrt(-2 * math.log(u)) for u in n[:3]], [2 * math.pi * u for u in n[3:]]
    expected = [radius * f(angle) for f in (math.cos, math.sin) for radius, angle in zip(radii, angles, strict=True)]
    for shape in ((1, 2, 3), (5,)):  # an odd number takes one more
        made = normal(SEED, Purpose.NOISE, here, shape)
        assert made.shape == (1, *shape)
        assert made.flatten().tolist() == pytest.approx(expected[: made.numel()], rel=1e-5)
    timestep = MEANS[Purpose.TIMESTEP][0] * 1000 // 2**32
    assert integers(SEED, Purpose.TIMESTEP, here, 1000).tolist() == [timestep]
    low, high = MEANS[Purpose.INIT][:2]
    assert derived_seed(SEED, Purpose.INIT, POSITION) == low | (high & 0x7FFFFFFF) << 32


def test_a_sample_does_not_depend_on_its_batch() -> None:
    positions = torch.tensor([0, 7, 2**31, 2**40 + 3])
    together = normal(5, Purpose.NOISE, positions, (3, 5, 7))
    for row, position in enumerate(positions):
        alone = normal(5, Purpose.NOISE, position[None], (3, 5, 7))[0]
        assert torch.equal(together[row], alone)


def test_seed_purpose_and_position_all_count() -> None:
    here = torch.arange(4)
    reference = bits(1, Purpose.NOISE, here, 8)
    assert not torch.equal(reference, bits(2, Purpose.NOISE, here, 8))
    assert not torch.equal(reference, bits(1 + 2**32, Purpose.NOISE, here, 8))
    assert not torch.equal(reference, bits(1, Purpose.CROP, here, 8))
    assert not torch.equal(reference, bits(1, Purpose.NOISE, here + 2**32, 8))
    assert len(reference.flatten().unique()) == 32


def test_distributions() -> None:
    positions = torch.arange(20_000)
    noise = normal(0, Purpose.NOISE, positions, (5,)).double()
    count = noise.numel()
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs(noise.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / count) ** 0.5
    correlation = (noise[:, 0] * noise[:, 1]).mean()
    assert abs(correlation) < 4 / len(noise) ** 0.5
    numbers = bits(0, Purpose.CROP, positions, 1).double() / 2**32
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 4 * (1 / 12 / len(numbers)) ** 0.5


def test_timesteps_are_uniform() -> None:
    drawn = integers(0, Purpose.TIMESTEP, torch.arange(100_000), 1000)
    counts = torch.bincount(drawn, minlength=1000).double()
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert len(counts) == 1000 and abs(chi_square - 999) < 5 * (2 * 999) ** 0.5


def test_derived_seeds_suit_torch() -> None:
    seeds = {derived_seed(3, Purpose.DROPOUT, position) for position in range(100)}
    assert len(seeds) == 100 and all(0 <= seed < 2**63 for seed in seeds)
