"""A score, with everything that the number depends on, and scores.json, which keeps them: each call adds to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.runs.folder import SCORES
from ddpm_train.system.columns import columns
from ddpm_train.system.files import write_atomic

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


@dataclass(frozen=True, kw_only=True)
class DependsOn:
    """What a score depends on besides the pixels of the images; None where it does not apply or is not known.

    Attributes:
        step: how long the model was trained.
        weights: "ema" or "unet".
        sampler: its name and arguments.
        guidance: the hash of the model that guides, the scale and the interval.
        versions: of the packages that compute it, the precision, and a hash of the extractor's weights.
    """

    step: int | None = None
    weights: str | None = None
    sampler: dict[str, Any] | None = None
    num_inference_steps: int | None = None
    guidance: dict[str, Any] | None = None
    seed: int | None = None
    num_images: int | None = None
    extractor: str | None = None
    reference: Reference | None = None
    versions: dict[str, str]


@dataclass(frozen=True)
class Measured:
    """A number, and how sure it is.

    Attributes:
        standard_deviation: of KID over its subsets, of the Inception score over its splits.
        interval: see `bootstrap.py`.
        warning: why not to trust it; None: no reason is known.
        seed: by which it was measured, if not by that of the samples.
    """

    value: float
    standard_deviation: float | None = None
    interval: tuple[float, float] | None = None
    warning: str | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """A measured number, with its name and what it depends on.

    Attributes:
        name: says what it is comparable with, such as "kid_efficientnet_lite0_n2048".
        metric: the name of its row in `METRICS`.
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


def lines(scores: Sequence[Score]) -> list[str]:
    """A table for a person, and the warnings below it; nothing of no scores."""
    if not scores:
        return []
    rows = [["score", "value", f"{CONFIDENCE:.0%} interval"]]
    for score in scores:
        interval = f"{score.interval[0]:.4g} … {score.interval[1]:.4g}" if score.interval else ""
        rows.append([score.name, f"{score.value:.4g}", interval])
    return [*columns(rows), *(f"  {score.name}: {score.warning}" for score in scores if score.warning)]


@dataclass(frozen=True)
class _Results:
    """What of `scores.json` is read again; the details are kept as they are."""

    scores: list[Score]


def _read_results(folder: Path) -> dict[str, Any]:
    """The scores and details that are there, or none.

    Raises:
        Mistakes: the file cannot be read.
    """
    empty: dict[str, Any] = {"scores": [], "bound": None, "copying": None, "cost": None}
    try:
        read_json(folder / SCORES, _Results)
        return empty | read_json(folder / SCORES, dict[str, Any])
    except FileNotFoundError:
        return empty
    except BadFile as error:
        raise Mistakes(f"output={folder}: {error}; remove that file or give another output") from None


def refuse_other_reference(folder: Path, metrics: Sequence[str], reference: Reference) -> None:
    """Keep numbers that do not compare apart.

    Raises:
        Mistakes: one of these metrics is there, against other images or the same in another size.
    """
    for score in _read_results(folder)["scores"]:
        other = score["depends_on"].get("reference")
        if score["metric"] in metrics and other is not None and other["hash"] != reference.hash:
            raise Mistakes(
                f"output={folder}: its {score['name']} is against {_text(other)}, and cannot be compared with "
                f"scores against {_text(asdict(reference))}; give another output, or that reference"
            )


def add_results(folder: Path, scores: Sequence[Score], details: Mapping[str, Any]) -> None:
    """Add what was found to what is there. A score replaces one that depends on the same things."""
    results = _read_results(folder)
    new = [json.loads(json.dumps(asdict(score))) for score in scores]
    replaced = [_identity(score) for score in new]
    kept = [score for score in results["scores"] if _identity(score) not in replaced]
    folder.mkdir(parents=True, exist_ok=True)
    everything = results | dict(details) | {"scores": [*kept, *new]}
    write_atomic(folder / SCORES, json.dumps(everything, indent=1).encode())


def _identity(score: Mapping[str, Any]) -> list[Any]:
    # None is as good as nothing: scores of older versions hold fewer keys.
    known = {key: value for key, value in score["depends_on"].items() if value is not None and key != "versions"}
    return [score["name"], known]


def _text(reference: Mapping[str, Any]) -> str:
    height, width = reference["resolution"]
    return (
        f"{reference['num_images']:,} images of {reference['dataset']}, {reference['split']}, {height}x{width} "
        f"(hash {reference['hash'][:8]})"
    )
