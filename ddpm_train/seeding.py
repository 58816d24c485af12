"""(seed, purpose, position) -> numbers: the only source of randomness in a run.

Philox4x32-10, the counter-based generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"),
in integer tensor operations, so that a device draws a whole batch at once and every device draws the same bits.
There is no state: the numbers of a sample depend on nothing that was drawn before.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """What numbers are for; each purpose has its own stream. The values are part of what a seed means."""

    NOISE = 1
    TIMESTEP = 2
    FLIP = 3
    CROP = 4
    INIT = 5
    DROPOUT = 6
    HELD_OUT_NOISE = 7
    HELD_OUT_TIMESTEP = 8
    BOUND_NOISE = 9
    BOUND_TIMESTEP = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one (broadcast) shape, values in [0, 2**32).
        key: two integers in [0, 2**32).

    Returns:
        Four int64 tensors of that shape, values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The int64 product wraps around, but its low 64 bits are right, and they are all that is used.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _MASK, (product1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _MASK, high0 ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def bits(seed: int, purpose: Purpose, positions: Tensor, count: int) -> Tensor:
    """`count` random 32-bit integers for each position.

    Args:
        seed: in [0, 2**63).
        positions: int64 [B].

    Returns:
        int64 [B, count], values in [0, 2**32).
    """
    blocks = torch.arange(math.ceil(count / 4), device=positions.device)[None, :]
    low, high = (positions & _MASK)[:, None], ((positions >> 32) & _MASK)[:, None]
    stream = torch.full_like(low, int(purpose))
    drawn = philox((blocks.expand(len(positions), -1), low, high, stream), (seed & _MASK, seed >> 32))
    return torch.stack(drawn, dim=-1).flatten(1)[:, :count]


def integers(seed: int, purpose: Purpose, positions: Tensor, high: int | Tensor) -> Tensor:
    """One uniform integer in [0, high) for each position, int64 [B]; high <= 2**31, one or int64 [B]."""
    return (bits(seed, purpose, positions, 1)[:, 0] * high) >> 32


def normal(seed: int, purpose: Purpose, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32 [B, *shape], by Box and Muller's transform (1958)."""
    count = math.prod(shape)
    pairs = bits(seed, purpose, positions, 2 * math.ceil(count / 2)).float().unflatten(1, (2, -1))
    # (bits + 0.5) / 2**32 keeps the logarithm finite.
    radius = torch.sqrt(-2 * torch.log((pairs[:, 0] + 0.5) * 2.0**-32))
    angle = pairs[:, 1] * (2 * math.pi * 2.0**-32)
    both = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
    return both[:, :count].unflatten(1, shape)


def derived_seed(seed: int, purpose: Purpose, position: int) -> int:
    """A seed in [0, 2**63) for a generator that is not ours (torch's own, for weights and dropout)."""
    low, high = bits(seed, purpose, torch.tensor([position]), 2)[0].tolist()
    return int(low | (high & 0x7FFFFFFF) << 32)
