"""A score, with everything that the number depends on, and the file that holds them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The real images of a comparison.

    Attributes:
        dataset, split: what they were opened as.
        resolution: (height, width) that they were resized to.
        hash: of their pixels, in order.
    """

    dataset: str
    split: str
    resolution: tuple[int, int]
    num_images: int
    hash: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DependsOn:
    """What a score depends on besides the pixels of the images; None where it does not apply or is not known.

    Attributes:
        step: how long the model was trained.
        weights: "ema" or "unet".
        sampler: its name and arguments.
        versions: of the packages that compute it, the precision, and a hash of the extractor's weights.
    """

    step: int | None = None
    weights: str | None = None
    sampler: dict[str, Any] | None = None
    num_inference_steps: int | None = None
    seed: int | None = None
    num_images: int | None = None
    extractor: str | None = None
    reference: Reference | None = None
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number.

    Attributes:
        name: says what it is comparable with, such as "kid_efficientnet_lite0_n2048".
        standard_deviation: of KID over its subsets, of the Inception score over its splits.
        interval: see `bootstrap.py`.
        warning: why not to trust it; None: no reason is known.
    """

    name: str
    metric: str
    value: float
    standard_deviation: float | None = None
    interval: tuple[float, float] | None = None
    confidence: float = CONFIDENCE
    lower_is_better: bool
    warning: str | None = None
    depends_on: DependsOn

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def lines(scores: Sequence[Score]) -> list[str]:
    """A table for a person."""
    width = max(len(score.name) for score in scores)
    table = [f"  {'':<{width}} {'value':>10}  {CONFIDENCE:.0%} interval"]
    for score in scores:
        interval = f"  {score.interval[0]:.4g} … {score.interval[1]:.4g}" if score.interval else ""
        table.append(f"  {score.name:<{width}} {score.value:>10.4g}{interval}")
        table += [f"  {'':<{width}} {'':>10}  {score.warning}"] if score.warning else []
    return table
