"""Where a crop lies in its image."""

from typing import Any

CENTRE = 2**31  # the random number that crops at the centre


def crop_origin(bits: Any, size: Any, crop: int) -> Any:
    """Where a random crop starts: one of the size - crop + 1 places, for random integers in [0, 2**32).

    Numbers, arrays and tensors alike.
    """
    return (bits * (size - crop + 1)) >> 32
