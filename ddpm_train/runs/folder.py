"""A run's folder: how everything in it is named, and how to read what several programs read.

config.yaml        the resolved config: `ddpm-train --config-path RUN --config-name config` runs it again
metrics.jsonl      one record a step
environment.json   what has computed the run, see `environment.py`
result.json        what the run has come to; there once it has ended
checkpoints/       see `checkpoint.py`
pipeline/          a DDPMPipeline; training.json in it says which weights these are
samples/           the grids, step_NNNNNNNN.png
evaluation/        step_NNNNNNNN.json of the evaluations in the run, scores.json of those after it
tensorboard/  report.html  job.json (of a sweep)  .lock  .heartbeat
"""

import io
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ddpm_train.config.extensions import unnamed_mistakes
from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.parts import WRITTEN, NonNegative
from ddpm_train.config.schema import Schema

CONFIG = "config.yaml"
RECORDS = "metrics.jsonl"
ENVIRONMENT = "environment.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
BEST = "best"  # RUN/checkpoints/best: no folder, but the one that is best by the run's records
PIPELINE = "pipeline"
ORIGIN = "training.json"
SAMPLES = "samples"
EVALUATION = "evaluation"
SCORES = "scores.json"
TENSORBOARD = "tensorboard"
REPORT = "report.html"
JOB = "job.json"
LOCK, HEARTBEAT = ".lock", ".heartbeat"

P = TypeVar("P")


def config_yaml(values: Mapping[str, Any]) -> bytes:
    """A resolved config as the content of config.yaml."""
    return yaml.safe_dump({**WRITTEN, **values}, sort_keys=False, allow_unicode=True).encode()


def read_config(path: Path) -> dict[str, Any]:
    """The values in a config.yaml, without what is Hydra's.

    Raises:
        OSError, yaml.YAMLError: it cannot be read.
    """
    values = yaml.safe_load(path.read_text())
    return {key: value for key, value in values.items() if key not in WRITTEN}


def read_part(run: Path, part: type[P]) -> P:
    """What `part`, a dataclass of some of a config's sections, takes of a run's config; the others may be anything.

    Raises:
        Mistakes: it is not as `part` wants it.
        OSError, yaml.YAMLError: it cannot be read.
    """
    values = read_config(run / CONFIG)
    try:
        return Schema(part).parse(values)
    except Mistakes:
        if lines := list(unnamed_mistakes(values)):
            raise Mistakes(*lines) from None  # the reason why it is not understood
        raise


def read_records(run: Path, until: int | None = None, *, with_key: str = "") -> Iterator[dict[str, Any]]:
    """The run's records up to a step (None: all), in order; a damaged or unfinished line ends them.

    Args:
        with_key: only those that have this key. The others are not parsed, which is slow.
    """
    path, wanted = run / RECORDS, f'"{with_key}"'.encode() if with_key else b""
    with open(path, "rb") if path.exists() else io.BytesIO() as lines:
        for line in lines:
            if wanted not in line:
                continue
            record = _parse_record(line)
            if record is None or (until is not None and record["step"] > until):
                return
            yield record


def cut_records(records: Path, step: int) -> dict[str, Any] | None:
    """Drop what a file of records holds after a step, and a damaged line; returns the last that stays.

    It is found by halving, so that a million records cost no more than a few. A damaged line counts as one after the
    step: it is what a crash has left at the end.
    """
    newest, low, high = None, 0, records.stat().st_size  # between low and high lie the lines not yet known
    if high == 0:
        return None
    with open(records, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        while low < high:
            start = text.rfind(b"\n", low, (low + high) // 2) + 1 or low
            end = text.find(b"\n", start, high) + 1 or high
            record = _parse_record(text[start:end])
            if record is not None and record["step"] <= step:
                newest, low = record, end
            else:
                high = start
    os.truncate(records, low)
    return newest


def _parse_record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None: it is damaged or unfinished."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if line.endswith(b"\n") and isinstance(record, dict) and "step" in record else None


def read_result(run: Path) -> dict[str, Any] | None:
    """What a finished run has come to: its objective's name, value and best step, and its own last step."""
    path = run / RESULT
    return json.loads(path.read_text()) if path.exists() else None


@dataclass(frozen=True)
class _Origin:
    step: NonNegative
    weights: Literal["ema", "unet"]


def read_origin(pipeline: Path) -> dict[str, Any]:
    """The "step" and "weights" ("ema" or "unet") that a run's `pipeline/` holds; empty if nobody says."""
    try:
        return vars(read_json(pipeline / ORIGIN, _Origin))
    except (OSError, BadFile):
        return {}


def is_best(pipeline: str) -> bool:
    """Whether a path means the best of a run's checkpoints."""
    path = Path(pipeline).expanduser()
    return path.name == BEST and path.parent.name == CHECKPOINTS and path.parent.is_dir()


def run_of(pipeline: str) -> Path | None:
    """The folder of the run that `pipeline` is, or is a checkpoint or the pipeline of; None: no run's."""
    folder = Path(pipeline).expanduser()
    if folder.name == PIPELINE:
        folder = folder.parent
    elif folder.parent.name == CHECKPOINTS:
        folder = folder.parent.parent
    return folder if (folder / CONFIG).is_file() else None
