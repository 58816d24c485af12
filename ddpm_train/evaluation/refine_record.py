"""`refine.json`: what a refinement has tried, and what came of it. It goes on from there after a stop."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.evaluation.scores import Measured
from ddpm_train.report.formatting import measured
from ddpm_train.sampling.refined import REFINED, KeptRecipe
from ddpm_train.system.files import write_atomic


@dataclass(frozen=True)
class Value:
    """A number and its 95 % interval."""

    value: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, found: Measured) -> "Value":
        assert found.interval is not None  # scores of sets of images have one
        return cls(found.value, found.interval)

    def __str__(self) -> str:
        return measured(self.value, list(self.interval))


@dataclass(frozen=True)
class Comparison:
    """Two ways to make images from the same noise, by images that have chosen neither.

    Attributes:
        difference: after less before; of both the same images are resampled.
    """

    before: Value
    after: Value
    difference: Value

    @property
    def is_better(self) -> bool:
        """Whether the interval says so, of a score of which less is better."""
        return self.difference.interval[1] < 0

    def __str__(self) -> str:
        return f"{self.before} before, {self.after} after; difference {self.difference}"


@dataclass(frozen=True)
class Stage:
    """What came of a stage.

    Attributes:
        tried: the scores by the half that chooses, "as before" among them.
        left_out: why something could not be tried, a line each.
        chosen: what is best by that half; None: nothing was better than before.
        comparison: of what was chosen, by the other half.
        why: a sentence.
    """

    name: str
    kept: bool
    why: str
    chosen: str | None = None
    tried: dict[str, Value] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Record:
    """The file.

    Attributes:
        identity: what everything in it depends on, as plain values.
        under_way: the scores so far of the stage that comes after these.
        overall: all that was kept together against what there was before; None: nothing was kept, or not yet known.
        recipe: there once everything else is written.
    """

    identity: dict[str, Any]
    stages: tuple[Stage, ...] = ()
    under_way: dict[str, Value] = field(default_factory=dict)
    overall: Comparison | None = None
    recipe: KeptRecipe | None = None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / REFINED, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_record(folder: Path, identity: dict[str, Any]) -> Record:
    """What is there, or an empty one.

    Raises:
        Mistakes: it is of another command or another model, or damaged.
    """
    try:
        record = read_json(folder / REFINED, Record)
    except FileNotFoundError:
        return Record(identity)
    except BadFile as error:
        raise Mistakes(f"output={folder}: {error}; remove that folder or give another output") from None
    if changed := [key for key in identity if record.identity.get(key) != identity[key]]:
        there = ", ".join(f"{key}={as_written(record.identity.get(key))}" for key in changed)
        raise Mistakes(f"output={folder}: was begun with {there}; give that, another output, or remove that folder")
    return record
