"""A run's checkpoints, saved beside training: the loop waits for a snapshot only, and a thread writes it."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_train.runs import checkpoint, snapshots
from ddpm_train.runs.lock import RunLock, TakenOver
from ddpm_train.runs.mirror import MirrorThread
from ddpm_train.system.exit_codes import NOT_SAVED, CannotGoOn
from ddpm_train.system.failures import disk_remedy, is_refused_by_disk, one_line
from ddpm_train.system.ranks import on_main
from ddpm_train.training.push import open_push
from ddpm_train.training.records import Records
from ddpm_train.training.run import Run
from ddpm_train.training.start import run_mirror

Tensors = Mapping[str, Mapping[str, Tensor]]


class SavingFailed(CannotGoOn):
    """`checkpoint.max_failures` saves in a row have failed, or the last of the run."""

    exit_code = NOT_SAVED


def _with_remedy(error: Exception) -> str:
    """Why a save failed, and what helps."""
    otherwise = f"{disk_remedy(error)}, or choose" if is_refused_by_disk(error) else "Choose"
    return f"{one_line(error)}. {otherwise} another output_dir; the same command continues"


@dataclass
class Saver:
    """Publishes checkpoints of one run from one process; one save in flight bounds the memory.

    A save that fails is reported and tried again at the next one; the last good checkpoint stays.

    Attributes:
        directory: the run's `checkpoints` folder.
        max_failures: saves that may fail in a row.
        keep: called in the thread with each new checkpoint, for what of it stays when it is pruned; may raise OSError.
        published: called in the thread with each new checkpoint.
        settled: called in the thread with it once it is known how good it is, see `settle`.
        warn: shows a line to a person.
        check: raises `TakenOver` if the run must not be written here any more.
    """

    directory: Path
    retention: checkpoint.Retention
    max_failures: int
    keep: Callable[[Path], None]
    published: Callable[[Path], None]
    settled: Callable[[Path], None]
    warn: Callable[[str], None]
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._snapshot: dict[str, dict[str, Tensor]] = {}
        self._error = Exception()  # that of the last failure
        self._failures = 0
        self._may_settle = threading.Event()

    def save(self, step: int, tensors: Tensors, scalars: dict[str, Any], refused: Exception | None = None) -> float:
        """Start the save of `step`; returns the seconds that the caller was held up.

        Args:
            tensors, scalars: see `checkpoint.save`; the tensors on any device.
            refused: counts as a failed save: why the records before this step are not on the disk.

        Raises:
            SavingFailed: too many saves in a row have failed.
            TakenOver: see `check`.
        """
        started = time.monotonic()
        self.close()
        self.check()
        if self._failures >= self.max_failures:
            raise SavingFailed(
                f"checkpoint.max_failures={self.max_failures}: that many saves in a row failed, the last "
                f"with: {_with_remedy(self._error)}"
            )
        if refused is not None:
            self._fail(step, refused)
            return time.monotonic() - started
        self._take_snapshot(tensors)
        self._may_settle.clear()
        self._thread = threading.Thread(target=self._write, args=(step, scalars), name="checkpoint")
        self._thread.start()
        return time.monotonic() - started

    def check_saved(self) -> None:
        """Raise `SavingFailed` if the newest save, which must be over, has failed."""
        if self._failures:
            raise SavingFailed(f"the last checkpoint could not be saved: {_with_remedy(self._error)}")

    def settle(self) -> None:
        """The step that is being saved has been evaluated, if it is to be: which checkpoints stay depends on that."""
        self._may_settle.set()

    def close(self) -> None:
        """Wait for the save in flight."""
        self.settle()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _take_snapshot(self, tensors: Tensors) -> None:
        """Copy to host memory that is kept from save to save: fresh pages would cost more than the copy."""
        for name, named in tensors.items():
            kept = self._snapshot.setdefault(name, {})  # the optimizer's state comes with the first step
            for key, tensor in named.items():
                if key not in kept:
                    kept[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                kept[key].copy_(tensor, non_blocking=tensor.is_cuda)  # others do not pin, and would not wait either
        for device in {tensor.device for named in tensors.values() for tensor in named.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)

    def _write(self, step: int, scalars: dict[str, Any]) -> None:
        try:
            path = checkpoint.save(self.directory, step, self._snapshot, scalars, self.check)
            self.keep(path)
        except TakenOver:
            return  # which the next save raises
        except Exception as error:
            self._fail(step, error)
            return
        self._failures = 0
        self.published(path)
        self._may_settle.wait()
        try:
            self.check()
            checkpoint.prune(self.directory, self.retention)
        except TakenOver:
            return
        except OSError as error:
            self.warn(f"warning: old checkpoints in {self.directory} could not be removed: {error}")
        self.settled(path)

    def _fail(self, step: int, error: Exception) -> None:
        self._error = error
        self._failures += 1
        self.warn(
            f"ERROR: the checkpoint of step {step} was NOT saved: {one_line(error)}. The last good one stays; the next "
            f"save tries again (failure {self._failures} of checkpoint.max_failures={self.max_failures})."
        )


class Saving:
    """A run's checkpoints: when one is due, and that it is saved, copied to the mirror and pushed, beside training.

    The main process saves; every process knows how it went.
    """

    def __init__(self, run: Run, records: Records, lock: RunLock) -> None:
        self._run = run
        self._records = records
        self._lock = lock
        config = run.config.checkpoint
        mirror = run_mirror(run.config) if run.accelerator.is_main_process else None
        best = run.selection.best if config.keep_best else lambda steps: None
        retention = checkpoint.Retention(config.keep_last, config.keep_every_steps, best, run.branch_step)
        self._mirror = MirrorThread(mirror, retention, run.console.warn, lock.check) if mirror else None
        self.push = open_push(run, lock)
        told = (self._keep, self._copy, self._push, run.console.warn, lock.check)
        self._saver = Saver(run.checkpoints, retention, config.max_failures, *told)
        self._last = time.monotonic()
        self._saved_step = run.state.step

    @property
    def is_overdue(self) -> bool:
        """Whether this process's clock says that a checkpoint is due; or has to be tried, to tell all processes that
        the run was taken over."""
        minutes = self._run.config.checkpoint.every_minutes
        return self._lock.is_lost or (minutes is not None and time.monotonic() - self._last > 60 * minutes)

    @property
    def is_due(self) -> bool:
        """Whether the step says so: a multiple of `every_steps`, the best one so far, the one to branch at, or one
        whose averages are kept."""
        run, config = self._run, self._run.config.checkpoint
        every = any(run.state.step % steps == 0 for steps in (config.every_steps, run.snapshot_every_steps) if steps)
        best = config.keep_best and run.selection.best() == run.state.step
        return every or best or run.state.step == run.branch_step

    def save(self) -> None:
        """Start the checkpoint of this step, unless there is one; raises as `Saver.save` does."""
        run = self._run
        if run.state.step == self._saved_step:
            return
        self._last = time.monotonic()
        self._saved_step = run.state.step
        state = run.resumed_state().to_json()
        # A checkpoint whose records are not on the disk would leave a gap in them.
        refused = self._records.unwritten
        stall = on_main(lambda: self._saver.save(run.state.step, run.state.tensors(), state, refused))
        self._records.carry({"checkpoint_stall_seconds": round(stall, 4)})

    def settle(self) -> None:
        """This step has been evaluated, if it is to be."""
        self._saver.settle()

    def close(self, mirror_seconds: float) -> None:
        """Wait for what is being written, and that long for what is being copied."""
        self._saver.close()
        if self._mirror is not None:
            self._mirror.finish(mirror_seconds)

    def check(self) -> None:
        """Raise `SavingFailed` on all processes if the run's last checkpoint is not on the disk, or `TakenOver`."""
        on_main(self._lock.check)
        on_main(self._saver.check_saved)

    def _keep(self, path: Path) -> None:
        if (every := self._run.snapshot_every_steps) is not None:
            snapshots.keep(path, every)

    def _copy(self, path: Path) -> None:
        if self._mirror is not None:
            self._mirror.submit(path)

    def _push(self, path: Path) -> None:
        run, step = self._run, checkpoint.step_of(path)
        # The run may have ended early while an older checkpoint was still being written.
        finished = run.is_finished_at(step) and step >= max(run.selection.values, default=0)
        if self.push is not None and (finished or run.config.hub.strategy != "end"):
            self.push.submit(path)
