"""Copies published checkpoints to where disks do not vanish: any fsspec URL (s3://, gs://, a folder)."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import fsspec

from ddpm_train import checkpoint
from ddpm_train.files import replace_folder
from ddpm_train.mistakes import Mistakes

ATTEMPTS = 5
# At the end of a run the newest upload may take this long; then the run ends without it.
FINISH_SECONDS = 600.0

T = TypeVar("T")


class Mirror:
    """The checkpoints of one run at a URL, laid out as on the disk: URL/step_00001000/…

    The manifest goes up last and is removed first, so that a folder without one is no checkpoint.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise Mistakes(f"checkpoint.mirror={url}: {error}") from None

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints there, oldest first."""
        self._fs.invalidate_cache()
        try:
            found = _with_retries(self._fs.glob, f"{self._root}/step_*/{checkpoint.MANIFEST}")
        except FileNotFoundError:
            return []
        return sorted(checkpoint.step_of(Path(manifest).parent) for manifest in found)

    def upload(self, path: Path, keep_last: int | None, keep_every_steps: int | None) -> None:
        """Copy one checkpoint, then let go of what retention lets go.

        Raises:
            Exception: the file system's own, after ATTEMPTS tries.
        """
        target = f"{self._root}/{path.name}"
        self._fs.makedirs(target, exist_ok=True)
        for file in sorted(path.iterdir(), key=lambda file: file.name == checkpoint.MANIFEST):
            _with_retries(self._fs.put_file, str(file), f"{target}/{file.name}")
        for step in checkpoint.to_prune(self.steps(), keep_last, keep_every_steps):
            old = f"{self._root}/{checkpoint.step_name(step)}"
            _with_retries(self._fs.rm_file, f"{old}/{checkpoint.MANIFEST}")
            _with_retries(self._fs.rm, old, True)

    def fetch_newest(self, directory: Path, warn: Callable[[str], None]) -> Path | None:
        """Copy the newest checkpoint that verifies into `directory`; None if there is none."""
        for step in reversed(self.steps()):
            name = checkpoint.step_name(step)
            try:
                with replace_folder(directory / name) as staging:
                    for file in _with_retries(self._fs.ls, f"{self._root}/{name}", False):
                        _with_retries(self._fs.get_file, file, str(staging / Path(file).name))
                    checkpoint.verify(staging, step)
            except (checkpoint.BadCheckpoint, OSError) as error:
                warn(f"warning: {name} in {self.url} is passed over: {error}")
            else:
                return directory / name
        return None


class MirrorThread:
    """Uploads in the background, one at a time; of those that wait, the newest wins. Never raises into training."""

    def __init__(
        self, mirror: Mirror, keep_last: int | None, keep_every_steps: int | None, warn: Callable[[str], None]
    ) -> None:
        self._mirror = mirror
        self._retention = (keep_last, keep_every_steps)
        self._warn = warn
        self._condition = threading.Condition()
        self._waiting: Path | None = None
        self._busy = False
        threading.Thread(target=self._run, name="mirror", daemon=True).start()

    def submit(self, path: Path) -> None:
        with self._condition:
            self._waiting = path
            self._condition.notify_all()

    def finish(self) -> None:
        """Wait until nothing waits and nothing is under way, or FINISH_SECONDS have passed."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._waiting is None and not self._busy, FINISH_SECONDS):
                self._warn(f"ERROR: the newest checkpoint did not reach {self._mirror.url} in {FINISH_SECONDS:.0f} s")

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting is not None)
                path, self._waiting, self._busy = self._waiting, None, True
            assert path is not None
            try:
                self._mirror.upload(path, *self._retention)
            except Exception as error:
                # Pruned while it waited: a newer one is about to be submitted.
                if path.exists():
                    self._warn(f"ERROR: {path.name} was NOT copied to {self._mirror.url}: {error}")
            with self._condition:
                self._busy = False
                self._condition.notify_all()


def _with_retries(call: Callable[..., T], *arguments: object) -> T:
    """Try ATTEMPTS times, 1, 2, 4 … seconds apart."""
    for attempt in range(ATTEMPTS):
        try:
            return call(*arguments)
        except FileNotFoundError:
            raise
        except Exception:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(2.0**attempt)
    raise AssertionError("unreachable")
