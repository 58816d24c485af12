"""One process group trains a run at a time."""

import errno
import itertools
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import BaseFileLock, Timeout

from ddpm_train.config.foreign import BadFile, printable, read_json
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.runs.folder import HEARTBEAT, LOCK
from ddpm_train.system.exit_codes import MISTAKE, CannotGoOn
from ddpm_train.system.files import file_lock, replace_file

BEAT_SECONDS = 5.0
# A holder on another host that is silent for three beats is dead. No clocks are compared.
SILENT_BEATS = 3
# Of a heartbeat file, whose beats overwrite each other: longer than any.
_BYTES = 1024
# File systems without locks: NFS without its daemon, Lustre mounted without -o flock, some of FUSE.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class TakenOver(CannotGoOn):
    """Another process holds the run, which must not be written here any more."""

    exit_code = MISTAKE


@dataclass(frozen=True)
class Holder:
    """Who last said that they hold a run, alive or not.

    Attributes:
        beat: how often they had said so.
        token: tells holders apart that have the same host and process number, as containers may.
        generation: one more than that of the holder before.
        held: False: they have let go of it.
    """

    host: str
    pid: int
    beat: int
    token: str = ""
    generation: int = 0
    held: bool = True

    def __str__(self) -> str:
        return printable(f"process {self.pid} on {self.host}")


class RunLock:
    """Holds a run's folder while it trains.

    On one host, and on shared disks with locks, the operating system's file lock decides: it ends with its process,
    however that ends. Where hosts do not see each other's locks, or a disk has none, a heartbeat file tells the living
    from the dead. One that was only held up (a frozen machine, a disk that hung) finds there that it was taken for
    dead: who takes a run puts a new file there, and each beat goes into the file of its own holder, so that one that
    was held up just before it was written cannot hide the successor.

    Attributes:
        is_lost: whether it has been found that another process has taken the run over.
    """

    def __init__(self, output_dir: Path) -> None:
        self._folder = output_dir
        self._lock = file_lock(output_dir / LOCK)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._me: Holder | None = None  # while the run is held
        self._beats = -1  # the descriptor of this holder's own heartbeat file
        self.is_lost = False

    def acquire(self) -> None:
        """Take the run, also from a dead holder.

        Raises:
            Mistakes: a living process holds it.
            OSError: the disk does not take it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            has_lock = _try(self._lock)
        except Timeout:
            self._refuse(read_holder(self._folder))
        holder = read_holder(self._folder)
        if holder is not None and holder.held and not (has_lock and holder.host == socket.gethostname()):
            deadline = time.monotonic() + SILENT_BEATS * BEAT_SECONDS
            while time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 5)
                if (now := read_holder(self._folder)) not in (holder, None):
                    self._lock.release()
                    self._refuse(now)
        generation = 1 if holder is None else holder.generation + 1
        me = Holder(socket.gethostname(), os.getpid(), 0, secrets.token_hex(8), generation)
        with replace_file(self._folder / HEARTBEAT) as staging:
            staging.touch()
            self._beats = os.open(staging, os.O_WRONLY)
            self._write(me)
        self._me = me
        self._thread.start()

    def check(self) -> None:
        """Raise `TakenOver` if another process has taken the run over since it was acquired here.

        A holder of an earlier generation does not count: held up in the middle of a beat, it has ended that now, and
        will find out.
        """
        if self._me is None or (holder := read_holder(self._folder)) is None:
            return
        if holder.token != self._me.token and holder.generation >= self._me.generation:
            self.is_lost = True
            raise TakenOver(
                f"output_dir={self._folder}: {holder} has taken this run over, since this process gave no sign of life "
                f"for {SILENT_BEATS * BEAT_SECONDS:.0f} s; nothing more is written here"
            )

    def release(self) -> None:
        self._released.set()
        if self._me is not None:
            self._thread.join()
            with suppress(TakenOver, OSError):
                self.check()
                self._write(replace(self._me, held=False))
            os.close(self._beats)
        self._lock.release()

    def _refuse(self, holder: Holder | None) -> None:
        who = holder if holder is not None and holder.held else "another process"
        raise Mistakes(f"output_dir={self._folder}: {who} is training this run; wait for it, or give another name=…")

    def _beat(self) -> None:
        for beat in itertools.count(1):
            if self._released.wait(BEAT_SECONDS):
                return
            assert self._me is not None
            try:
                self.check()
                self._write(replace(self._me, beat=beat))
            except TakenOver:
                return
            except OSError:
                pass  # a full disk must not end the run; the file lock still holds

    def _write(self, holder: Holder) -> None:
        os.pwrite(self._beats, json.dumps(asdict(holder)).encode().ljust(_BYTES), 0)
        os.fsync(self._beats)


def _try(lock: BaseFileLock) -> bool:
    """Take a lock; False: its disk has none.

    Raises:
        Timeout: another process holds it.
        OSError: the disk does not take it.
    """
    try:
        lock.acquire(blocking=False)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def is_held(output_dir: Path) -> bool:
    """Whether a process holds a run, as far as this host can see."""
    if not (output_dir / LOCK).exists():
        return False
    lock = file_lock(output_dir / LOCK)
    try:
        _try(lock)
    except Timeout:
        return True
    lock.release()
    return False


def read_holder(output_dir: Path) -> Holder | None:
    """The process that last said it holds a run, alive or not; None: nobody can be told."""
    try:
        return read_json(output_dir / HEARTBEAT, Holder)
    except (OSError, BadFile):
        return None
