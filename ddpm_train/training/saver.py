"""Saves beside training: the step loop waits for a snapshot only; one thread writes, prunes and mirrors."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_train.runs import checkpoint


class SavingFailed(Exception):
    """`checkpoint.max_failures` saves in a row have failed, or the last of the run."""


class Saver:
    """Publishes checkpoints of one run from one process; one save in flight bounds the memory.

    A failing save is told loudly and tried again at the next one; the last good checkpoint stays.

    Args:
        directory: the run's `checkpoints` folder.
        max_failures: saves that may fail in a row.
        published: called in the thread with each new checkpoint.
        warn: tells a person about a failure.
    """

    def __init__(
        self,
        directory: Path,
        retention: checkpoint.Retention,
        *,
        max_failures: int,
        published: Callable[[Path], None],
        warn: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._retention = retention
        self._max_failures = max_failures
        self._published = published
        self._warn = warn
        self._thread: threading.Thread | None = None
        self._snapshot: dict[str, dict[str, Tensor]] = {}
        self._error: Exception | None = None
        self._failures = 0

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        scalars: Mapping[str, Any],
        *,
        refused: Exception | None = None,
    ) -> float:
        """Start the save of `step`; returns the seconds that the caller was held up.

        Args:
            tensors, scalars: see `checkpoint.save`; the tensors on any device.
            refused: counts as a failed save: what must be on the disk before a checkpoint is not.

        Raises:
            SavingFailed: too many saves in a row have failed.
        """
        started = time.monotonic()
        self.close()
        if self._failures >= self._max_failures:
            raise SavingFailed(
                f"checkpoint.max_failures={self._max_failures}: that many saves in a row failed, the last "
                f"with: {self._error}"
            )
        if refused is not None:
            self._fail(step, refused)
            return time.monotonic() - started
        self._take_snapshot(tensors)
        self._thread = threading.Thread(target=self._write, args=(step, dict(scalars)), name="checkpoint")
        self._thread.start()
        return time.monotonic() - started

    def check(self) -> None:
        """Raise if the newest save, which must be over, has failed.

        Raises:
            SavingFailed: it did.
        """
        if self._failures:
            raise SavingFailed(f"the last checkpoint could not be saved: {self._error}")

    def close(self) -> None:
        """Wait for the save in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _take_snapshot(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy to host memory that is kept from save to save: fresh pages would cost more than the copy."""
        if {name: list(named) for name, named in tensors.items()} != {
            name: list(named) for name, named in self._snapshot.items()
        }:
            self._snapshot = {
                name: {
                    key: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                    for key, tensor in named.items()
                }
                for name, named in tensors.items()
            }
        for name, named in tensors.items():
            for key, tensor in named.items():
                self._snapshot[name][key].copy_(tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _write(self, step: int, scalars: dict[str, Any]) -> None:
        try:
            path = checkpoint.save(self._directory, step, self._snapshot, scalars)
            checkpoint.prune(self._directory, self._retention)
        except Exception as error:
            self._fail(step, error)
        else:
            self._failures = 0
            self._published(path)

    def _fail(self, step: int, error: Exception) -> None:
        self._error = error
        self._failures += 1
        self._warn(
            f"ERROR: the checkpoint of step {step} was NOT saved: {error}. The last good one stays; the next save "
            f"tries again (failure {self._failures} of checkpoint.max_failures={self._max_failures})."
        )
