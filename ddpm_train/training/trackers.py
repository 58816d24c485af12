"""Accelerate's trackers: TensorBoard, and others as extras."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from ddpm_train.config.schema import dotted_values
from ddpm_train.config.train import Config
from ddpm_train.runs.folder import TENSORBOARD
from ddpm_train.system.failures import one_line

_LONGEST_REST_SECONDS = 600.0
# What a record says of its step; all else an evaluation has measured.
_OF_STEPS = ("loss", "lr", "grad_norm", "images_per_second", "checkpoint_stall_seconds")


class RunTrackers:
    """The configured trackers of one run, on the main process.

    A resumed run goes on in the same TensorBoard folder: what an earlier process wrote beyond `start_step` is hidden
    (`purge_step`). The hyperparameters are stored once, at the start of the run. A tracker that fails, on a full disk
    for instance, does not end the run: a warning says so, and it is opened again for the next records.

    Args:
        values: the config as plain values, for the hyperparameters.
    """

    def __init__(self, config: Config, values: Mapping[str, Any], start_step: int, warn: Callable[[str], None]) -> None:
        self._config = config
        self._warn = warn
        self._unlogged: list[dict[str, Any]] = []
        self._failures, self._rest_until = 0, 0.0
        self._images: dict[int, dict[str, Image.Image]] = {}
        flat = dict(dotted_values(values))
        # TensorBoard's HParams hold nothing but texts and numbers.
        flat |= {key: str(value) for key, value in flat.items() if not isinstance(value, str | float | int)}
        self._hyperparameters = flat
        self._trackers: list[GeneralTracker] = []
        if config.tracker.tensorboard is not None:
            threading.excepthook = _told_by_its_writer
        with self._reopened_after_errors():
            self._trackers = self._open(start_step)

    def _open(self, start_step: int) -> list[GeneralTracker]:
        config, name = self._config.tracker, self._config.name
        output_dir = Path(self._config.output_dir)
        trackers: list[GeneralTracker] = []
        if config.tensorboard is not None:
            arguments = {"purge_step": start_step + 1, **config.tensorboard}
            trackers.append(TensorBoardTracker(TENSORBOARD, output_dir, **arguments))
        if config.wandb is not None:
            arguments = {"id": name, "name": name, "resume": "allow", "dir": str(output_dir), **config.wandb}
            trackers.append(WandBTracker(arguments.pop("project", "ddpm-train"), **arguments))
        if config.trackio is not None:
            arguments = {"name": name, "resume": "allow", **config.trackio}
            trackers.append(TrackioTracker(arguments.pop("project", "ddpm-train"), **arguments))
        for tracker in trackers:
            tracker.start()
            if start_step == 0:
                tracker.store_init_configuration(self._hyperparameters)
        return trackers

    def log(self, records: list[dict[str, Any]]) -> None:
        """Log the numbers of each record at its step."""
        self._unlogged += records
        if self._unlogged and (self._trackers or time.monotonic() >= self._rest_until):
            self._log()

    def _log(self) -> None:
        with self._reopened_after_errors():
            if not self._trackers:
                self._trackers = self._open(self._unlogged[0]["step"] - 1)
            for record in self._unlogged:
                values = {_tag(key): value for key, value in record.items() if key not in ("step", "images_seen")}
                for tracker in self._trackers:
                    tracker.log(values, step=record["step"])
                    for name, image in self._images.get(record["step"], {}).items():
                        _log_image(tracker, name, image, record["step"])
            self._unlogged.clear()
            self._images.clear()
            self._failures = 0

    def add_image(self, name: str, image: Image.Image, step: int) -> None:
        """Log a picture together with the record of its step: wandb takes steps in order only."""
        self._images.setdefault(step, {})[name] = image.convert("RGB")

    def close(self) -> None:
        if self._unlogged:
            self._log()
        with self._reopened_after_errors():
            for tracker in self._trackers:
                tracker.finish()

    @contextmanager
    def _reopened_after_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorBoard's writer thread reports a full disk as whatever it was doing
            self._warn(f"ERROR: a tracker failed and will be opened again: {one_line(error)}")
            self._trackers = []
            # One that is away for long may take a minute for each try: the run must not wait for it all the time.
            self._rest_until = time.monotonic() + min(_LONGEST_REST_SECONDS, 10 * self._failures)
            self._failures += 1


def _told_by_its_writer(arguments: threading.ExceptHookArgs) -> None:
    """Leave out the traceback of TensorBoard's own thread: the next that writes there gets its error, and tells it."""
    if type(arguments.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(arguments)


def _log_image(tracker: GeneralTracker, name: str, image: Image.Image, step: int) -> None:
    if isinstance(tracker, TensorBoardTracker):
        tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
    elif isinstance(tracker, WandBTracker):  # Accelerate's tracker for trackio takes numbers only
        tracker.log_images({name: [image]}, step=step)


def _tag(key: str) -> str:
    return f"{'train' if key in _OF_STEPS else 'evaluation'}/{key}"
