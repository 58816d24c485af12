"""scores.json: what ddpm-evaluate has found, added to by every call."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.evaluation.scores import Reference, Score
from ddpm_train.runs.folder import SCORES
from ddpm_train.system.files import write_atomic

SECTIONS = ("bound", "copying", "cost")


def read_results(folder: Path) -> dict[str, Any]:
    """What is there, or an empty file's worth.

    Raises:
        Mistakes: the file cannot be read.
    """
    empty: dict[str, Any] = {"scores": [], **dict.fromkeys(SECTIONS)}
    path = folder / SCORES
    if not path.exists():
        return empty
    try:
        return empty | json.loads(path.read_text())
    except ValueError:
        raise Mistakes(f"output={folder}: its {SCORES} cannot be read; remove it or give another output") from None


def refuse_other_reference(folder: Path, metrics: Sequence[str], reference: Reference) -> None:
    """See that numbers which do not compare do not come to stand side by side.

    Raises:
        Mistakes: one of these metrics is there, against other images or the same in another size.
    """
    for score in read_results(folder)["scores"]:
        other = score["depends_on"]["reference"]
        if score["metric"] in metrics and other["hash"] != reference.hash:
            raise Mistakes(
                f"output={folder}: its {score['name']} is against {_words(other)}, and does not compare with scores "
                f"against {_words(reference.to_json())}; give another output, or that reference"
            )


def add_results(folder: Path, scores: Sequence[Score], sections: Mapping[str, Any]) -> None:
    """Write what was found to what is there. A score that depends on the same things takes the other's place."""
    results = read_results(folder)
    new = [json.loads(json.dumps(score.to_json())) for score in scores]
    replaced = [_identity(score) for score in new]
    kept = [score for score in results["scores"] if _identity(score) not in replaced]
    folder.mkdir(parents=True, exist_ok=True)
    everything = results | dict(sections) | {"scores": [*kept, *new]}
    write_atomic(folder / SCORES, json.dumps(everything, indent=1).encode())


def _identity(score: Mapping[str, Any]) -> list[Any]:
    return [score["name"], {key: value for key, value in score["depends_on"].items() if key != "versions"}]


def _words(reference: Mapping[str, Any]) -> str:
    height, width = reference["resolution"]
    return (
        f"{reference['num_images']:,} images of {reference['dataset']}, {reference['split']}, {height}x{width} "
        f"(hash {reference['hash'][:8]})"
    )
