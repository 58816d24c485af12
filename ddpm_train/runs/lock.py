"""One process group trains a run at a time."""

import itertools
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.runs.folder import HEARTBEAT, LOCK
from ddpm_train.system.files import write_atomic

BEAT_SECONDS = 5.0
# A holder on another host that is silent for three beats is dead. No clocks are compared.
SILENT_BEATS = 3


class RunLock:
    """Holds a run's folder while it trains.

    On one host, and on shared disks with locks, the operating system's file lock decides: it ends with its process,
    however that ends. Where hosts do not see each other's locks, a heartbeat file tells the living from the dead.
    """

    def __init__(self, output_dir: Path) -> None:
        self._folder = output_dir
        self._lock = FileLock(output_dir / LOCK)
        self._heartbeat = output_dir / HEARTBEAT
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def acquire(self) -> None:
        """Take the run, also from a dead holder; raises `Mistakes` if a living process holds it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            self._refuse(read_holder(self._folder))
        holder = read_holder(self._folder)
        if holder is not None and holder["host"] != socket.gethostname():
            deadline = time.monotonic() + SILENT_BEATS * BEAT_SECONDS
            while time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 5)
                if (now := read_holder(self._folder)) not in (holder, None):
                    self._lock.release()
                    self._refuse(now)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
            self._heartbeat.unlink(missing_ok=True)
        self._lock.release()

    def _refuse(self, holder: dict[str, Any] | None) -> None:
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        raise Mistakes(f"output_dir={self._folder}: {who} is training this run; wait for it, or give another name=…")

    def _beat(self) -> None:
        for beat in itertools.count():
            try:
                holder = {"host": socket.gethostname(), "pid": os.getpid(), "beat": beat}
                write_atomic(self._heartbeat, json.dumps(holder).encode())
            except OSError:
                pass  # a full disk must not end the run; the file lock still holds
            if self._released.wait(BEAT_SECONDS):
                return


def is_held(output_dir: Path) -> bool:
    """Whether a process holds a run, as far as this host can see."""
    if not (output_dir / LOCK).exists():
        return False
    try:
        with FileLock(output_dir / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True


def read_holder(output_dir: Path) -> dict[str, Any] | None:
    """The host and the process that last said they hold a run, alive or not."""
    try:
        holder: dict[str, Any] = json.loads((output_dir / HEARTBEAT).read_text())
    except (OSError, ValueError):
        return None
    return holder
