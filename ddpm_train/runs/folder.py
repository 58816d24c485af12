"""A run's folder: how everything in it is named, and how to read what several programs read.

config.yaml        the resolved config: `ddpm-train --config-path RUN --config-name config` runs it again
metrics.jsonl      one record a step
environment.json   what has computed the run, see `environment.py`
result.json        what the run has come to; there once it has ended
checkpoints/       see `checkpoint.py`
snapshots/         of the averages, see `snapshots.py`
pipeline/          a DDPMPipeline; training.json in it says which weights these are, pixel_values.json what the
                   numbers of arrays mean
samples/           the grids, step_NNNNNNNN.png
refined/           what ddpm-refine leaves, see `sampling/refined.py`
evaluation/        step_NNNNNNNN.json of the evaluations in the run, scores.json of those after it
tensorboard/  report.html  job.json (of a sweep)  .lock  .heartbeat
"""

import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ddpm_train.config.ema import Weights
from ddpm_train.config.extensions import unnamed_mistakes
from ddpm_train.config.foreign import BadFile, parse_json, read_json, read_yaml
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.parts import WRITTEN, NonNegative
from ddpm_train.config.schema import Schema
from ddpm_train.system.files import expanded

CONFIG = "config.yaml"
RECORDS = "metrics.jsonl"
ENVIRONMENT = "environment.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
BEST = "best"  # RUN/checkpoints/best: no folder, but the one that is best by the run's records
PIPELINE = "pipeline"
ORIGIN = "training.json"
PIXEL_VALUES = "pixel_values.json"
SAMPLES = "samples"
EVALUATION = "evaluation"
SCORES = "scores.json"
TENSORBOARD = "tensorboard"
REPORT = "report.html"
JOB = "job.json"
LOCK, HEARTBEAT = ".lock", ".heartbeat"
# Of folders beside runs: in what ddpm-sample leaves, and a sweep.
SAMPLING = "sampling.json"
SWEEP_TABLE, SWEEP_PICTURE = "sweep.csv", "sweep.png"

P = TypeVar("P")

# No record is longer: what is, is damaged, and need not fit into the memory.
_LONGEST_RECORD = 1 << 20


class _Dumper(yaml.SafeDumper):
    """Quotes also those texts, such as 1e3, that are numbers to OmegaConf alone."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def config_yaml(values: Mapping[str, Any]) -> bytes:
    """A resolved config as the content of config.yaml."""
    return yaml.dump({**WRITTEN, **values}, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode()


def read_config(path: Path) -> dict[str, Any]:
    """The values in a config.yaml, without what is Hydra's.

    Raises:
        BadFile: it is damaged, or no config.
        OSError: it cannot be read.
    """
    return {key: value for key, value in read_yaml(path).items() if key not in WRITTEN}


def read_part(run: Path, part: type[P]) -> P:
    """What `part`, a dataclass of some of a config's sections, takes of a run's config; the others may be anything.

    Raises:
        Mistakes: it is not as `part` wants it, or cannot be read.
    """
    try:
        values = read_config(run / CONFIG)
    except OSError as error:
        remedy = "give the folder of a run, such as outputs/default"
        raise Mistakes(f"{run}: {CONFIG} cannot be read ({error.strerror}); {remedy}") from None
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
    wanted = f'"{with_key}"'.encode() if with_key else b""
    for line in record_lines(run / RECORDS):
        if wanted not in line:
            continue
        record = parse_record(line)
        if record is None or (until is not None and record["step"] > until):
            return
        yield record


def record_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file of records; none if it is no such file. What is too long for a record comes in pieces."""
    if path.is_file():
        with open(path, "rb") as file:
            yield from iter(partial(file.readline, _LONGEST_RECORD), b"")


def cut_records(records: Path, step: int) -> dict[str, Any] | None:
    """Drop what a file of records holds after a step, and a damaged line; returns the last that stays."""
    newest, end = _find(records, step)
    os.truncate(records, end)
    return newest


def newest_record(records: Path, step: int) -> dict[str, Any] | None:
    """The last record up to a step, if there is one."""
    return _find(records, step)[0] if records.is_file() else None


def _find(records: Path, step: int) -> tuple[dict[str, Any] | None, int]:
    """The last record up to a step, and where in the file it ends.

    It is found by halving, so that a million records cost no more than a few. A damaged line counts as one after the
    step: it is what a crash has left at the end.
    """
    newest, low, high = None, 0, records.stat().st_size  # between low and high lie the lines not yet known
    if high == 0:
        return None, 0
    with open(records, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        while low < high:
            start = text.rfind(b"\n", low, (low + high) // 2) + 1 or low
            end = text.find(b"\n", start, high) + 1 or high
            record = parse_record(text[start : min(end, start + _LONGEST_RECORD)])
            if record is not None and record["step"] <= step:
                newest, low = record, end
            else:
                high = start
    return newest, low


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None: it is damaged or unfinished."""
    try:
        record = parse_json(line, dict[str, Any], RECORDS)
    except BadFile:
        return None
    step = record.get("step")
    return record if line.endswith(b"\n") and type(step) is int and 0 <= step < 2**63 else None


@dataclass(frozen=True)
class _Result:
    objective: str | None
    value: float | None
    best_step: int | None
    step: int


def read_result(run: Path) -> dict[str, Any] | None:
    """What a finished run has come to: its objective's name, value and best step, and its own last step; None: it has
    not come to its end, or nobody can say any more."""
    try:
        read_json(run / RESULT, _Result)
        return read_json(run / RESULT, dict[str, Any])
    except (FileNotFoundError, BadFile):
        return None


@dataclass(frozen=True)
class _Origin:
    step: NonNegative
    weights: Weights


def read_origin(pipeline: Path) -> dict[str, Any]:
    """The "step" and "weights" ("ema", "ema@0.1", "unet") that a run's `pipeline/` holds; empty if nobody says."""
    try:
        return vars(read_json(pipeline / ORIGIN, _Origin))
    except (OSError, BadFile):
        return {}


def is_best(pipeline: str) -> bool:
    """Whether a path means the best of a run's checkpoints."""
    path = expanded(pipeline)
    return path.name == BEST and path.parent.name == CHECKPOINTS and path.parent.is_dir()


def run_of(pipeline: str) -> Path | None:
    """The folder of the run that `pipeline` is, or is a checkpoint or the pipeline of; None: no run's."""
    folder = expanded(pipeline)
    if folder.name == PIPELINE:
        folder = folder.parent
    elif folder.parent.name == CHECKPOINTS:
        folder = folder.parent.parent
    return folder if (folder / CONFIG).is_file() else None
