"""The jobs of a sweep: what each one is, how its folder is called, and what became of it, in its folder."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.grammar import parse
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.runs.folder import CONFIG, JOB, read_config, read_result
from ddpm_train.runs.identity import accept, identity
from ddpm_train.system.files import write_atomic

Status = Literal["waiting", "running", "finished", "diverged", "failed", "stopped", "pruned"]


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        choices: what sets it apart from the others.
        overrides: its command line, name and folder among them.
        values: its config; empty until it has been composed.
    """

    choices: dict[str, str]
    overrides: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.values["output_dir"])


@dataclass(frozen=True)
class Record:
    """What became of a job so far.

    Attributes:
        seconds: that its processes have run, all together.
    """

    choices: dict[str, str]
    status: Status
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / JOB, json.dumps(asdict(self)).encode())


@dataclass(frozen=True)
class Row:
    """A job among those it is compared with.

    Attributes:
        objective: NaN if it has none to compare.
        length: of its run, as its config has it: steps, or epochs; empty if it is not known any more.
    """

    folder: Path
    record: Record
    objective: float
    best_step: int | None
    length: str


def varied_keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.record.choices))


def read_record(folder: Path) -> Record | None:
    """What became of the job in a folder; None: nobody knows."""
    try:
        return read_json(folder / JOB, Record)
    except (FileNotFoundError, BadFile):
        return None


def end_of(job: Job) -> Status | None:
    """What a job has come to that ran to its end, finished or diverged, with this very config."""
    record = read_record(job.folder)
    if record is None or _saved_config(job.folder) != job.values:
        return None
    if record.status == "finished" and read_result(job.folder) is None:
        return None  # it was extended since, and did not come to the new end
    return record.status if record.status in ("finished", "diverged") else None


def conflicts(job: Job) -> Sequence[str]:
    """What refuses the job if its folder holds another run than it would make."""
    saved = _saved_config(job.folder) or job.values
    there, now = (identity(values, dataset_content="", mixed_precision="") for values in (saved, job.values))
    try:
        accept(there, now, allowed=tuple(job.values["allow_change"]), where=str(job.folder))
    except Mistakes as mistakes:
        return mistakes.lines
    return ()


def length_of(folder: Path) -> str:
    """The length of the run in a folder; empty if its config is not there, or damaged."""
    try:
        train = (_saved_config(folder) or {}).get("train") or {}
    except BadFile:
        return ""
    steps, epochs = (train.get(key) for key in ("max_steps", "epochs"))
    return str(steps) if steps else f"{epochs} epochs" if epochs else ""


def _saved_config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    return read_config(path) if path.exists() else None


def objective_of(folder: Path) -> float:
    """A finished run's objective; NaN if it has none."""
    value = (read_result(folder) or {}).get("value")
    return math.nan if value is None else float(value)


def chosen(overrides: Sequence[str], varied: Sequence[str]) -> dict[str, str]:
    """The values of the varied keys among a job's overrides, as one writes them."""
    values = {override.key_or_group: as_written(override.value()) for override in map(parse, overrides)}
    return {key: values[key] for key in varied if key in values}
