"""One record for each step: kept on the device, read back in batches, written once and in order."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_train.runs.folder import cut_records
from ddpm_train.runs.lock import TakenOver
from ddpm_train.system.exit_codes import NON_FINITE, CannotGoOn
from ddpm_train.system.pace import Pace
from ddpm_train.system.ranks import on_main

Log = Callable[[list[dict[str, Any]]], None]


class NonFinite(CannotGoOn):
    """A loss or gradient that is not a number; the text names the steps."""

    exit_code = NON_FINITE


class Records:
    """The records of a run, in `metrics.jsonl`: one JSON object a line, each step once, however often it restarts.

    Args:
        log: called on the main process with the records that have been written.
        warn: shows a line to a person.
        check: called before anything is written; raises `TakenOver` if that must not be.
        pace: its clock stands still while the run does not train.

    Attributes:
        last: the newest record that was read back (of the step started from, after a restart).
        unwritten: why the newest records are not on the disk, if they are not.
    """

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        start_step: int,
        log: Log,
        warn: Callable[[str], None],
        check: Callable[[], None] = lambda: None,
        pace: Pace | None = None,
    ) -> None:
        self._path = path
        self._accelerator = accelerator
        self._log = log
        self._warn = warn
        self._check = check
        self._records: list[dict[str, Any]] = []  # read back, not yet written
        self._on_device: list[tuple[dict[str, Any], Tensor]] = []
        self._carried: dict[str, float] = {}
        self._late: dict[str, Any] = {}  # what an evaluation adds to the record of its "step", the last on the disk
        self._pace = pace or Pace()
        self._read_back_at = self._pace.seconds()
        self.unwritten: OSError | None = None
        self._written = start_step
        # The run is about to repeat what comes after `start_step`.
        newest = on_main(lambda: cut_records(path, start_step) if path.exists() else None)
        self.last = newest if newest and newest["step"] == start_step else {"step": start_step}

    def record(self, step: int, images_seen: int, learning_rate: float, loss: Tensor, grad_norm: Tensor) -> None:
        """Note a step. `loss` (this process's mean) and `grad_norm` are scalars on the device and stay there."""
        record = {"step": step, "images_seen": images_seen, "lr": learning_rate, **self._carried}
        self._carried = {}
        self._on_device.append((record, torch.stack((loss.float(), grad_norm.float()))))

    def read_back(self) -> None:
        """Fetch what was recorded, averaged over the processes.

        Raises:
            NonFinite: on all processes.
        """
        if not self._on_device:
            return
        records, values = zip(*self._on_device, strict=True)
        self._on_device.clear()
        fetched = self._accelerator.reduce(torch.stack(values), "mean").tolist()
        images = records[-1]["images_seen"] - self.last.get("images_seen", 0)
        now = self._pace.seconds()
        rate = round(images / (now - self._read_back_at), 1)
        self._read_back_at = now
        # In fp16 the gradient scaler skips updates whose gradient overflows; that is how it finds its scale.
        scaled = self._accelerator.mixed_precision == "fp16"
        bad = []
        for record, (loss, grad_norm) in zip(records, fetched, strict=True):
            if not (math.isfinite(loss) and (scaled or math.isfinite(grad_norm))):
                bad.append(record["step"])
            finite_norm = grad_norm if math.isfinite(grad_norm) else None
            self._records.append(record | {"loss": loss, "grad_norm": finite_norm, "images_per_second": rate})
        self.last = self._records[-1]
        if bad:
            window = f"step {bad[0]}" if len(bad) == 1 else f"steps {bad[0]} to {bad[-1]}"
            raise NonFinite(f"the loss or gradient is not finite at {window}")

    def annotate(self, step: int, values: dict[str, float]) -> None:
        """Add values to the record of the newest step, also if it was written before a restart."""
        on_disk = not self._records and "loss" in self.last
        self.last = self.last | values
        if on_disk:
            self._late = {"step": step, **values}
        else:  # not yet, or the file was lost
            self._records[-1:] = [self.last]

    def carry(self, values: dict[str, float]) -> None:
        """Put values into the next step's record: this step's is on the disk."""
        self._carried |= values

    def write(self) -> None:
        """Write what was read back, durably. What a full disk does not take is kept for the next time."""
        if not self._accelerator.is_main_process:
            self._records.clear()
            return
        written: list[dict[str, Any]] = []
        try:
            self._check()
            if self.unwritten is not None and self._path.exists():
                cut_records(self._path, self._written)  # a part of what was refused the last time
            if self._late:
                _extend_last(self._path, {key: value for key, value in self._late.items() if key != "step"})
                written.append(self._late)
                self._late = {}
            _append(self._path, "".join(json.dumps(record) + "\n" for record in self._records))
        except TakenOver:
            return  # the other processes do not wait for this one here; the next save tells them
        except OSError as error:
            if self.unwritten is None:
                self._warn(f"ERROR: {self._path} cannot be written: {error}. Its records are kept for the next try.")
            self.unwritten = error
        else:
            self.unwritten = None
            written += self._records
            self._written = self.last["step"]
            self._records.clear()
        self._log(written)


def _append(path: Path, text: str) -> None:
    """Durably; what a full disk has taken of it counts for nothing, see `Records.write`."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _extend_last(path: Path, values: dict[str, float]) -> None:
    """Add new keys to the last record. The end of its line follows as one that counts as damaged, until two bytes join
    them: a crash leaves the old record or the new one."""
    size = path.stat().st_size
    _append(path, json.dumps(values)[1:] + "\n")
    with open(path, "r+b") as file:
        file.seek(size - len(b"}\n"))
        file.write(b", ")
        file.flush()
        os.fsync(file.fileno())
