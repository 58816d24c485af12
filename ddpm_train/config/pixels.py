"""What the numbers of an image mean: the type that its source stores, and the values that a model sees as -1 and 1."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

Dtype = Literal["uint8", "int16", "uint16", "float16", "float32"]
DTYPES: tuple[str, ...] = get_args(Dtype)
Stretch = Literal["linear", "log", "asinh"]
MOST_CHANNELS = 64

Bounds = tuple[float, ...]  # one for each channel


def _value_range(value: object) -> object:
    if value in (None, "auto", "percentile"):
        return value
    if isinstance(value, list | tuple) and len(value) == 2:
        numbers = [[*each] if isinstance(each, list | tuple) else [each] for each in value]
        flat = [number for each in numbers for number in each]
        if flat and all(isinstance(number, int | float) and not isinstance(number, bool) for number in flat):
            return value
    raise ValueError("must be [low,high], auto, percentile or null")


# Of images of more than 8 bits; either may be a list with one for each channel.
ValueRange = Annotated[
    tuple[float | Bounds, float | Bounds] | Literal["auto", "percentile"] | None, BeforeValidator(_value_range)
]


@dataclass(frozen=True)
class PixelValues:
    """How pixels become what a model sees, and back; see `diffusion.pixels`.

    Attributes:
        dtype: of the source.
        low, high: of each channel, in the source's units: what a model sees as -1 and as 1. Values beyond are clipped.
        stretch: the curve between them.
    """

    dtype: Dtype
    low: Bounds
    high: Bounds
    stretch: Stretch = "linear"

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or any(a >= b for a, b in zip(self.low, self.high, strict=False)):
            raise ValueError("low must be below high in each channel")

    @property
    def is_bytes(self) -> bool:
        """Whether a model sees them as it sees photographs."""
        of_bytes = {*self.low} == {0.0} and {*self.high} == {255.0}
        return self.dtype == "uint8" and self.stretch == "linear" and of_bytes

    def __str__(self) -> str:
        low, high = _short(self.low), _short(self.high)
        curve = "" if self.stretch == "linear" else f", {self.stretch}"
        return f"{self.dtype}: {low} is -1 for the model, {high} is 1{curve}"


def _short(bounds: Bounds) -> str:
    if len({*bounds}) == 1:
        return f"{bounds[0]:g}"
    shown = ", ".join(f"{bound:g}" for bound in bounds[:4])
    return f"({shown}{', …' if len(bounds) > 4 else ''})"


def pixel_values(dtype: Any, value_range: Any, stretch: Any) -> PixelValues | None:
    """Those that a run's config has recorded; None: the run is of pictures of 8 bits."""
    if dtype in (None, "auto"):
        return None
    low, high = value_range
    return PixelValues(dtype, tuple(low), tuple(high), stretch)
