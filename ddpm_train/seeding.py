"""(seed, purpose, position) -> numbers: the only source of randomness in a run.

Philox4x32-10, the counter-based generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"),
in integer tensor operations, so that a device draws a whole batch at once and every device draws the same bits.
There is no state: the numbers of a sample depend on nothing that was drawn before.
"""

import math
from collections.abc import Mapping
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
    FLOOR_IMAGE = 11
    AUGMENTATION = 12
    PERTURBATION = 14
    OTHER_NOISE = 15


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors whose shapes broadcast, values in [0, 2**32).
        key: two integers in [0, 2**32).

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2**32).
    """
    # A round does to words 0 and 1, the paper's R and L, what it does to words 2 and 3. Stacked, one operation serves
    # both: to launch operations this small takes a GPU longer than to compute them.
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    right, left = torch.stack((c0, c2)), torch.stack((c1, c3))
    factors, round_keys = _constants(key, right)
    for round_key in round_keys:
        # The int64 product wraps around, but its low 64 bits are right, and they are all that is used. Only what is
        # multiplied must be clean above its 32 bits.
        product = (right * factors).flip(0)
        right = (product >> 32).bitwise_xor_(left).bitwise_xor_(round_key).bitwise_and_(_MASK)
        left = product
    left = left & _MASK
    return right[0], left[0], right[1], left[1]


def _constants(key: tuple[int, int], like: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The two multipliers and, for each round, its two keys (with garbage above 32 bits), each [2, 1, …].

    They are computed on the device: for a copy from the host, the host would wait.
    """
    lanes = (2, *[1] * (like.dim() - 1))
    first, second = _MULTIPLIERS
    factors = torch.arange(first, second - 1, second - first, device=like.device)
    weyl = [torch.arange(k, k + 10 * w, w, device=like.device) for k, w in zip(key, _WEYL, strict=True)]
    return factors.view(lanes), torch.stack(weyl, dim=1).view(10, *lanes).unbind()


def draw(seed: int, positions: Tensor, counts: Mapping[Purpose, int]) -> tuple[Tensor, ...]:
    """Random 32-bit integers for each position and purpose, in one pass; what else is drawn changes none of them.

    Args:
        seed: in [0, 2**63).
        positions: int64 [B] in [0, 2**63).
        counts: how many for each purpose.

    Returns:
        For each purpose int64 [B, count], values in [0, 2**32).
    """
    num_blocks = [math.ceil(count / 4) for count in counts.values()]
    # The counter of a block of four numbers: its number within the purpose, the position's halves, the purpose.
    starts = zip((purpose << 32 for purpose in counts), num_blocks, strict=True)
    blocks = torch.cat([torch.arange(start, start + number, device=positions.device) for start, number in starts])
    low, high = (positions & _MASK)[:, None], (positions >> 32)[:, None]
    drawn = torch.stack(philox((blocks & _MASK, low, high, blocks >> 32), (seed & _MASK, seed >> 32)), dim=-1)
    parts = zip(drawn.split(num_blocks, dim=1), counts.values(), strict=True)
    return tuple(part.flatten(1)[:, :count] for part, count in parts)


def bits(seed: int, purpose: Purpose, positions: Tensor, count: int) -> Tensor:
    """`draw` for one purpose: int64 [B, count], values in [0, 2**32)."""
    return draw(seed, positions, {purpose: count})[0]


def to_integers(drawn: Tensor, high: int | Tensor) -> Tensor:
    """Uniform integers in [0, high) from what was drawn, int64 of that shape; high <= 2**31, one or of that shape."""
    return (drawn * high) >> 32


def integers(seed: int, purpose: Purpose, positions: Tensor, high: int | Tensor) -> Tensor:
    """One uniform integer in [0, high) for each position, int64 [B]; high <= 2**31, one or int64 [B]."""
    return to_integers(bits(seed, purpose, positions, 1)[:, 0], high)


def bits_for_normal(shape: tuple[int, ...]) -> int:
    """How many integers `to_normal` takes for each position."""
    return 2 * math.ceil(math.prod(shape) / 2)


def to_normal(drawn: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32 [B, *shape], by Box and Muller's transform (1958).

    Args:
        drawn: int64 [B, bits_for_normal(shape)] in [0, 2**32).
    """
    pairs = drawn.float().unflatten(1, (2, -1))
    # (bits + 0.5) / 2**32 keeps the logarithm finite.
    radius = torch.sqrt(-2 * torch.log((pairs[:, 0] + 0.5) * 2.0**-32))
    angle = pairs[:, 1] * (2 * math.pi * 2.0**-32)
    both = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
    return both[:, : math.prod(shape)].unflatten(1, shape)


def normal(seed: int, purpose: Purpose, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers for each position, float32 [B, *shape]."""
    return to_normal(bits(seed, purpose, positions, bits_for_normal(shape)), shape)


def derived_seed(seed: int, purpose: Purpose, position: int) -> int:
    """A seed in [0, 2**63) for a generator that is not ours (torch's own, for weights and dropout)."""
    low, high = bits(seed, purpose, torch.tensor([position]), 2)[0].tolist()
    return int(low | (high & 0x7FFFFFFF) << 32)
