"""The counter-based generator against its published test vectors and against statistics."""

import torch

from ddpm_train.seeding import Purpose, bits, derived_seed, integers, normal, philox


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
