"""What a run reports: metrics.jsonl always, and Accelerate's trackers."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import Tensor

from ddpm_train.config import Trackers
from ddpm_train.files import write_atomic


class NonFinite(Exception):
    """A loss or gradient that is not a number; the text names the steps."""


class Metrics:
    """One record a step: kept on the device, read back in batches, written once and in order.

    `metrics.jsonl` holds one JSON object a line, by step, each step once, also after any number of restarts.

    Attributes:
        last: the newest record that was read back (of the step started from, after a restart).
    """

    def __init__(self, path: Path, trackers: list[GeneralTracker], accelerator: Accelerator, start_step: int) -> None:
        self._path = path
        self._trackers = trackers
        self._accelerator = accelerator
        self._records: list[dict[str, Any]] = []  # read back, not yet written
        self._on_device: list[tuple[dict[str, Any], Tensor]] = []
        self._carried: dict[str, float] = {}
        self._clock = time.monotonic()
        self.last: dict[str, Any] = {"step": start_step}
        if accelerator.is_main_process:
            kept = _records_until(path, start_step)
            if kept and kept[-1]["step"] == start_step:
                self.last = kept[-1]
        (self.last,) = broadcast_object_list([self.last])

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
        rate = round(images / (time.monotonic() - self._clock), 1)
        self._clock = time.monotonic()
        for record, (loss, grad_norm) in zip(records, fetched, strict=True):
            self._records.append(record | {"loss": loss, "grad_norm": grad_norm, "images_per_second": rate})
        self.last = self._records[-1]
        bad = [record["step"] for record in self._records if not self._is_finite(record)]
        if bad:
            window = f"step {bad[0]}" if len(bad) == 1 else f"steps {bad[0]} to {bad[-1]}"
            raise NonFinite(f"the loss or gradient is not finite at {window}")

    def _is_finite(self, record: dict[str, Any]) -> bool:
        # In fp16 the gradient scaler skips updates whose gradient overflows; that is how it finds its scale.
        scaled = self._accelerator.mixed_precision == "fp16"
        return math.isfinite(record["loss"]) and (scaled or math.isfinite(record["grad_norm"]))

    def annotate(self, step: int, values: dict[str, float]) -> None:
        """Add values to the record of the newest step, also if it was written before a restart."""
        if self._records:
            self._records[-1] |= values
        elif self._accelerator.is_main_process:
            records = [record for record in _records_until(self._path, step) if record["step"] < step]
            _replace_records(self._path, [*records, self.last | values])
            self._log({"step": step, **values})
        self.last = self.last | values

    def carry(self, values: dict[str, float]) -> None:
        """Put values into the next step's record: this step's is on the disk."""
        self._carried |= values

    def write(self) -> None:
        """Write what was read back, durably, in place of anything an earlier process wrote beyond it."""
        if self._accelerator.is_main_process and self._records:
            with open(self._path, "a") as file:
                file.writelines(json.dumps(record) + "\n" for record in self._records)
                file.flush()
                os.fsync(file.fileno())
            for record in self._records:
                self._log(record)
        self._records.clear()

    def _log(self, record: dict[str, Any]) -> None:
        values = {_tag(key): value for key, value in record.items() if key not in ("step", "images_seen")}
        for tracker in self._trackers:
            tracker.log(values, step=record["step"])

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        pixels = np.asarray(image.convert("RGB"))[None]
        for tracker in self._trackers:
            if isinstance(tracker, TensorBoardTracker):
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({name: [image.convert("RGB")]}, step=step)

    def rest_clock(self) -> None:
        """Leave the time since the last `read_back` (an evaluation, a save) out of images_per_second."""
        self._clock = time.monotonic()

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def open_trackers(
    config: Trackers, run_name: str, output_dir: Path, values: dict[str, Any], start_step: int
) -> list[GeneralTracker]:
    """Start the configured trackers; on the main process only.

    A resumed run goes on in the same TensorBoard folder: `purge_step` hides what an earlier process wrote beyond
    the checkpoint. The hyperparameters are stored once, at the start of the run.
    """
    trackers: list[GeneralTracker] = []
    if config.tensorboard is not None:
        trackers.append(
            TensorBoardTracker("tensorboard", output_dir, **{"purge_step": start_step + 1, **config.tensorboard})
        )
    if config.wandb is not None:
        arguments = {"id": run_name, "name": run_name, "resume": "allow", "dir": str(output_dir), **config.wandb}
        trackers.append(WandBTracker(arguments.pop("project", "ddpm-train"), **arguments))
    if config.trackio is not None:
        arguments = {"name": run_name, "resume": "allow", **config.trackio}
        trackers.append(TrackioTracker(arguments.pop("project", "ddpm-train"), **arguments))
    for tracker in trackers:
        tracker.start()
        if start_step == 0:
            tracker.store_init_configuration(dict(_flatten(values)))
    return trackers


def _tag(key: str) -> str:
    return f"{'evaluation' if key in ('held_out_loss', 'evaluation_seconds') else 'train'}/{key}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> "list[tuple[str, bool | str | float | int]]":
    flat: list[tuple[str, bool | str | float | int]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value if isinstance(value, bool | str | float | int) else str(value)))
    return flat


def _records_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the records after `step`, which the run is about to repeat, and a line torn by a crash; return the rest."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or (record := json.loads(line))["step"] > step:
            break
        records.append(record)
    _replace_records(path, records)
    return records


def _replace_records(path: Path, records: list[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in records).encode())
