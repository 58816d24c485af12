"""Each job in a process of its own: nothing of Accelerate, torch or CUDA goes from one to the next."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from ddpm_train.cli.sweeps.jobs import Record, Status, read_record
from ddpm_train.config.text import shown
from ddpm_train.runs.lock import read_holder
from ddpm_train.system import exit_codes
from ddpm_train.system.signals import handle_signals

LOG = "job.log"


class JobProcesses:
    """The jobs that run on this machine now. For threads, and for signal handlers."""

    def __init__(self) -> None:
        self.stopping = False
        self._folders: dict[subprocess.Popen[bytes], Path] = {}
        self._asked: dict[subprocess.Popen[bytes], Status] = {}  # to stop, and what that makes of them
        self._lock = threading.RLock()

    def run(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> Record:
        """Run a job to its end, or until it is asked to stop, and note in its folder what became of it."""
        before = read_record(folder)
        assert before is not None, "the sweep notes its jobs before it starts them"
        exit_code_file = (folder / ".exit_code").resolve()
        exit_code_file.unlink(missing_ok=True)
        started = time.monotonic()
        with open(folder / LOG, "ab") as log, self._lock:
            if self.stopping:
                return before
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment, exit_codes.FILE_VARIABLE: str(exit_code_file)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the sweep to hand on: a second one would end a run unsaved
            )
            self._folders[process] = folder
        Record(before.choices, "running", before.seconds).write(folder)
        code = process.wait()
        with self._lock:
            del self._folders[process]
            asked = self._asked.pop(process, None)
        if code and exit_code_file.exists() and (noted := exit_code_file.read_text()).endswith("\n"):
            code = int(noted)
        record = Record(before.choices, _status(code, asked), round(before.seconds + time.monotonic() - started, 1))
        record.write(folder)
        return record

    def stop(self) -> bool:
        """Ask all jobs to save and leave, and start no others; returns whether there were any."""
        with self._lock:
            self.stopping = True
            for process in self._folders:
                self._ask(process, "stopped")
            return bool(self._folders)

    def prune(self, folder: Path) -> None:
        """Ask the job in a folder to save and leave: it is not worth going on with."""
        with self._lock:
            for process in [process for process, its_folder in self._folders.items() if its_folder == folder]:
                self._ask(process, "pruned")

    def _ask(self, process: "subprocess.Popen[bytes]", outcome: Status) -> None:
        """SIGTERM for the run's main process, on which all of its processes agree, and not for launchers and workers.

        torchrun would kill its processes half a minute later, however long saving takes.
        """
        self._asked[process] = outcome
        holder = read_holder(self._folders[process])
        try:
            family = {process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))}
            if holder is not None and holder.pid in family:
                os.kill(holder.pid, signal.SIGTERM)
            else:  # it has only begun; there is nothing to save
                os.killpg(process.pid, signal.SIGTERM)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass  # it has just left

    def kill(self) -> None:
        with self._lock:
            for process in self._folders:
                os.killpg(process.pid, signal.SIGKILL)


def complaint(log: Path) -> str:
    """Why a job ended, as its log says it in the end, and where that is."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    told = [line for line in lines if line.startswith("error: ")] or lines
    return shown(f"{told[-1]} ({log})")


def _status(code: int, asked: Status | None) -> Status:
    if code == 0:
        return "finished"
    if code == exit_codes.NON_FINITE:
        return "diverged"
    return asked or ("stopped" if code == exit_codes.REQUEUE else "failed")


JOBS = JobProcesses()  # of this process: a signal comes to the process, not to a sweep


@contextmanager
def signals_reach_the_jobs() -> Iterator[None]:
    """Signals ask the jobs to save and leave; a second Ctrl-C ends them and the sweep at once."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        if JOBS.stopping and number == signal.SIGINT:
            JOBS.kill()
            os._exit(exit_codes.INTERRUPTED)
        again = "; press Ctrl-C again to end them at once" if number == signal.SIGINT else ""
        print(f"stopping ({signal.Signals(number).name}): the jobs save{again}", flush=True)
        if not JOBS.stop():
            sys.exit(exit_codes.REQUEUE)

    with _handled(hand_on):
        yield


@contextmanager
def signals_wait_for_the_jobs() -> Iterator[None]:
    """Signals ask the jobs to save and leave; whoever handles them otherwise does so when they have left."""
    came: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))
        JOBS.stop()

    with _handled(note):
        yield
    for number, frame in came[:1]:
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, frame)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = handle_signals(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
