"""What a run's folder holds, read for the report. Nothing is measured here."""

import math
import sys
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.train import too_short
from ddpm_train.report.certificate import Certificate, certificate
from ddpm_train.report.stored import Evaluation, Floor, Results, Score
from ddpm_train.runs import folder
from ddpm_train.runs.checkpoint import STATE, by_step, published
from ddpm_train.runs.clock import Forecast

Floats = NDArray[np.float64]
T = TypeVar("T")
E = TypeVar("E")


@dataclass(frozen=True)
class Series:
    """One number over the run: `steps`, rising, and finite `values`, float64 [N] both."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float:
        return float(self.values[-1])


@dataclass(frozen=True)
class _State:
    """What is shown of the newest checkpoint's state."""

    changes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Evidence:
    """What is known of a run, or of a folder that was evaluated. Parts that are missing are empty."""

    path: Path  # the folder, as it was given
    evaluation: Path  # the folder that evaluations write into: a run's own, or what was given
    config: dict[str, Any]  # the run's resolved config
    metrics: dict[str, Series]  # every number of `metrics.jsonl` by its key
    grids: list[tuple[int, Path]]  # the sample grids by step
    evaluations: list[Evaluation]  # by step
    scores: list[Score]  # what was measured afterwards, and what only the last evaluation during training has
    bound: dict[str, Any]  # this and the next three are parts of `scores.json`
    copying: dict[str, Any]
    cost: dict[str, Any]
    yardstick: dict[str, Any]  # what real held-out images score
    changes: list[dict[str, Any]]  # of its config, with their steps, as the newest checkpoint has them
    environments: list[dict[str, Any]]  # what computed it, each from a step on (`environment.json`)
    result: dict[str, Any]  # `result.json`
    pipeline: dict[str, Any]  # which weights `pipeline/` holds, with the version of diffusers that saved it
    num_parameters: int | None  # of the UNet in `pipeline/`
    unreadable: list[str]  # files that are damaged and therefore left out, each with the reason

    @property
    def is_run(self) -> bool:
        return bool(self.config or self.metrics)

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.resolve().name)

    def series(self, key: str) -> Series:
        return self.metrics.get(key, Series(np.empty(0), np.empty(0)))

    @property
    def held_out_loss(self) -> Series:
        return self.series("held_out_loss")

    @property
    def held_out_images(self) -> int | None:
        """How many images were held out, as the last evaluation says; None: it does not."""
        return self.evaluations[-1].held_out_images if self.evaluations else None

    @property
    def training_images(self) -> int | None:
        return self.evaluations[-1].training_images if self.evaluations else None

    @property
    def floor(self) -> Floor | None:
        """The bound of the held-out loss, and what lies above it, at the last evaluation."""
        return self.evaluations[-1].floor if self.evaluations else None

    @property
    def certificate(self) -> Certificate | None:
        """Whether it copies its training images; None: it was not measured."""
        return certificate(self.copying, self.scores)

    @property
    def forecast(self) -> Forecast | None:
        """When copying is to begin, by the last evaluation."""
        memorisation = self.evaluations[-1].memorisation if self.evaluations else None
        return memorisation.forecast if memorisation else None

    @property
    def images_seen(self) -> int | None:
        """How many images, with repetitions, the run was trained on up to its last step."""
        seen = self.series("images_seen")
        return int(seen.last) if len(seen) else None

    @property
    def is_noise(self) -> bool:
        """Whether the run is too short for anything else."""
        step, seen = self.step, self.images_seen
        return bool(self.is_run and step and seen) and too_short(step or 0, (seen or 0) // (step or 1))

    @property
    def step(self) -> int | None:
        """The last step that was recorded."""
        loss = self.series("loss")
        return int(loss.steps[-1]) if len(loss) else self.pipeline.get("step")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: its pipeline, which it leaves last, holds the last step."""
        return self.pipeline.get("step") == self.step

    def value(self, *keys: str) -> Any:
        """A value of the config, None if it is not there."""
        found: Any = self.config
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found


def read_folder(path: Path) -> Evidence:
    """Read what is there. Damaged files, or lines of `metrics.jsonl`, are left out and named."""
    unreadable: list[str] = []

    def read(file: Path, shape: type[T], empty: E) -> T | E:
        """What a file holds; `empty` if it is not there, or damaged."""
        try:
            return read_json(file, shape)
        except FileNotFoundError:
            return empty
        except (OSError, BadFile) as error:
            unreadable.append(f"{file.name}: {str(error).removeprefix(f'{file}: ')}")
            return empty

    evaluation = path / folder.EVALUATION if (path / folder.EVALUATION).is_dir() else path
    found = (read(file, Evaluation, None) for file in by_step(evaluation, ".json").values())
    evaluations = [each for each in found if each is not None]
    stored, pipeline = read(evaluation / folder.SCORES, Results, Results()), path / folder.PIPELINE
    checkpoints = published(path / folder.CHECKPOINTS)
    return Evidence(
        path=path,
        evaluation=evaluation,
        config=_read_config(path / folder.CONFIG, unreadable),
        metrics=_read_metrics(path / folder.RECORDS, unreadable),
        grids=list(by_step(path / folder.SAMPLES, ".png").items()),
        evaluations=evaluations,
        scores=_scores(stored, evaluations),
        bound=stored.bound or {},
        copying=stored.copying or {},
        cost=stored.cost or {},
        yardstick=stored.yardstick or {},
        changes=read(checkpoints[-1] / STATE, _State, _State()).changes if checkpoints else [],
        environments=read(path / folder.ENVIRONMENT, list[dict[str, Any]], []),
        result=read(path / folder.RESULT, dict[str, Any], {}),
        pipeline=read(pipeline / "model_index.json", dict[str, Any], {})
        | read(pipeline / folder.ORIGIN, dict[str, Any], {}),
        num_parameters=_num_parameters(pipeline / "unet", unreadable),
        unreadable=unreadable,
    )


def _read_config(path: Path, unreadable: list[str]) -> dict[str, Any]:
    """A run's config; empty if it is not there, or damaged."""
    try:
        return folder.read_config(path)
    except FileNotFoundError:
        return {}
    except (OSError, BadFile) as error:
        unreadable.append(f"{path.name}: {str(error).removeprefix(f'{path}: ')}")
        return {}


def _read_metrics(path: Path, unreadable: list[str]) -> dict[str, Series]:
    """Column by column: a million records of ten numbers take 160 MB so, and gigabytes as objects."""
    columns: dict[str, tuple[array[float], array[float]]] = {}
    last, torn = -1, 0
    for line in folder.record_lines(path):
        record = folder.parse_record(line)
        if record is None:
            torn += 1
            continue
        if record["step"] <= last:
            continue
        last = record["step"]
        for key, value in record.items():
            if type(value) in (int, float) and abs(value) <= sys.float_info.max:
                steps, values = columns.setdefault(key, (array("d"), array("d")))
                steps.append(last)
                values.append(value)
    if torn:
        unreadable.append(f"{path.name}: {torn} line{'s' if torn > 1 else ''}")
    return {key: Series(np.asarray(steps), np.asarray(values)) for key, (steps, values) in columns.items()}


def _scores(stored: Results, evaluations: list[Evaluation]) -> list[Score]:
    """What was measured afterwards, and what only the last evaluation during training has measured.

    The newest step comes first, then the most images, then the sampler and steps of the most scores. Scores that only
    compare samplers are left to the table of costs.
    """
    afterwards = stored.scores
    newest = {score.metric: score.step for score in sorted(afterwards, key=lambda score: score.step)}
    during = [score for evaluation in evaluations[-1:] for score in evaluation.scores]
    besides = [score for score in during if score.step > newest.get(score.metric, -1)]
    companions = Counter(score.sampled for score in afterwards)
    ranked = sorted(
        [*afterwards, *besides],
        key=lambda score: (score.step, score.num_images, companions[score.sampled], score.sampled[1]),
        reverse=True,
    )
    compared = (stored.cost or {}).get("metric")
    first = {score.name: score for score in reversed(ranked)}
    return [score for score in ranked if score.name != compared or score is first[score.name]]


def _num_parameters(unet: Path, unreadable: list[str]) -> int | None:
    """Counted in the headers of the weights' files; the weights themselves are not read."""
    total = 0
    for path in unet.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except Exception as error:  # the library's own error class has moved between versions
            unreadable.append(f"{path.name}: {error}")
    return total or None
