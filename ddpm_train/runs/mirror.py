"""Copies published checkpoints to where disks do not vanish: any fsspec URL (s3://, gs://, a folder)."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.runs import checkpoint, snapshots, state
from ddpm_train.runs.folder import RECORDS, SNAPSHOTS
from ddpm_train.runs.stores import Candidate, Candidates, without_manifest
from ddpm_train.system.failures import one_line, retry
from ddpm_train.system.files import replace_folder

# A call that fails is tried again until this long after its first failure.
RETRY_SECONDS = 15.0
# The end of a run waits this long for its uploads. The other processes wait too, and NCCL for no longer than 600 s.
FINISH_SECONDS = 300.0
# When the run is asked to stop: Slurm and Kubernetes leave 30 s for this, the save before it and the exit after it.
STOP_SECONDS = 15.0


class Mirror:
    """The checkpoints, snapshots and records of one run at a URL: URL/step_00001000/…, URL/snapshots/… A `Store`.

    The manifest goes up last and is removed first, so that a folder without one is no checkpoint.
    """

    remedy = "give another one, or resume=never to start without looking there"

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.key = f"checkpoint.mirror={self.url}"
        self._same: set[str] = set()  # snapshots that are known to be there as they are on the disk
        self._fs, self._root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)  # the preflight has tried it
        # botocore tries a request five times, s3fs does that five times, and `_try` that again: minutes.
        if hasattr(self._fs, "config_kwargs"):
            self._fs.config_kwargs.setdefault("retries", {"total_max_attempts": 1})

    def steps(self) -> dict[int, bool]:
        """The steps of the checkpoints there, oldest first, and whether each has its manifest."""
        self._fs.invalidate_cache()
        found = {}
        for name in self._names(self._root):
            with suppress(checkpoint.BadCheckpoint):
                found[checkpoint.step_of(Path(name))] = checkpoint.MANIFEST in self._names(f"{self._root}/{name}")
        return dict(sorted(found.items()))

    def upload(self, path: Path, records: Path) -> None:
        """Copy a checkpoint, and before it the run's records, which reach at least as far, and its snapshots.

        Raises:
            Exception: the file system's own, after RETRY_SECONDS of tries.
        """
        if records.exists():
            self._put(records, f"{self._root}/{RECORDS}")
        self._upload_snapshots(records.parent, checkpoint.step_of(path))
        self._upload_folder(path, path.name)

    def _upload_snapshots(self, run: Path, step: int) -> None:
        """Have those up to a step there that are on the disk, and no others."""
        here = {f"{SNAPSHOTS}/{path.name}": path for path in snapshots.until(run, step).values()}
        for name in self._snapshots(step):
            if name not in here:
                self._remove(name)
        for name, path in here.items():
            if name not in self._same and self._manifest(name) != (path / checkpoint.MANIFEST).read_bytes():
                self._upload_folder(path, name)
            self._same.add(name)

    def _fetch_snapshots(self, run: Path, step: int) -> None:
        """Have those up to a step on the disk that are there, and no others. They are verified when they are used."""
        there = {Path(name).name: name for name in self._snapshots(step)}
        for path in snapshots.until(run, step).values():
            if path.name not in there:
                shutil.rmtree(path)
        for name, source in there.items():
            path, manifest = run / SNAPSHOTS / name, self._manifest(source)
            known = path / checkpoint.MANIFEST
            if manifest is not None and not (known.exists() and known.read_bytes() == manifest):
                with replace_folder(path) as staging:
                    for file in self._names(f"{self._root}/{source}"):
                        self._get(f"{self._root}/{source}/{file}", staging / file)

    def _snapshots(self, step: int) -> list[str]:
        """The names of those there up to a step."""
        names = []
        for name in self._names(f"{self._root}/{SNAPSHOTS}"):
            with suppress(checkpoint.BadCheckpoint):
                if checkpoint.step_of(Path(name)) <= step:
                    names.append(f"{SNAPSHOTS}/{name}")
        return names

    def _manifest(self, name: str) -> bytes | None:
        """That of a snapshot there; None: it has none."""
        try:
            content: bytes = self._try(self._fs.cat_file, f"{self._root}/{name}/{checkpoint.MANIFEST}")
        except FileNotFoundError:
            return None
        return content

    def _upload_folder(self, path: Path, name: str) -> None:
        """The manifest last: without it the folder counts as nothing."""
        self._remove(name)
        for file in sorted(path.iterdir(), key=lambda file: file.name == checkpoint.MANIFEST):
            self._put(file, f"{self._root}/{name}/{file.name}")

    def prune(self, newest: int, retention: checkpoint.Retention) -> None:
        """Remove what retention lets go, and what an interrupted upload left.

        Whole checkpoints beyond `newest` neither count nor go: the run has passed over them, or has not come as far
        again.
        """
        steps = self.steps()
        until_now = [step for step, whole in steps.items() if whole and step <= newest]
        torn = [step for step, whole in steps.items() if not whole]
        for step in torn + retention.to_prune(until_now):
            self._remove(checkpoint.step_name(step))

    def candidates(self, newer_than: int, directory: Path) -> Candidates:
        for step, whole in sorted(self.steps().items(), reverse=True):
            name = checkpoint.step_name(step)
            if step > newer_than:
                place = f"{name} in {self.url}"
                yield Candidate(place, partial(self.fetch, step, directory)) if whole else without_manifest(place)

    def fetch(self, step: int, directory: Path) -> Path:
        """Copy the checkpoint of a step into `directory`, and the run's records and snapshots beside that.

        Raises:
            Exception: the file system's own.
            BadCheckpoint: it does not verify.
        """
        path = directory / checkpoint.step_name(step)
        with replace_folder(path) as staging:
            source = f"{self._root}/{path.name}"
            for file in self._names(source):
                self._get(f"{source}/{file}", staging / file)
            state.verify(staging, step)
            # Before the checkpoint is in its place: once it is, nothing is fetched again.
            with suppress(FileNotFoundError):
                self._try(self._fs.get_file, f"{self._root}/{RECORDS}", str(directory.parent / RECORDS))
            self._fetch_snapshots(directory.parent, step)
        return path

    def reason(self, error: Exception) -> str:
        return one_line(error)

    def check_fresh_start(self, damaged: bool) -> None:
        if damaged:
            raise Mistakes(f"{self.key}: no checkpoint there can be used; give another name=…")
        # Written now: a missing bucket must not show first when there is something to lose.
        self._make_folder(self._root)
        self._try(self._fs.pipe_file, f"{self._root}/{RECORDS}", b"")

    def _names(self, folder: str) -> list[str]:
        """What is in a folder there; nothing if there is no such folder."""
        # Not `find`: it takes an error for an empty folder.
        try:
            return [Path(entry).name for entry in self._try(self._fs.ls, folder, False)]
        except FileNotFoundError:
            return []

    def _get(self, source: str, file: Path) -> None:
        try:
            self._try(self._fs.get_file, source, str(file))
        except OSError as error:
            # What is listed and not there is no file. A disk that cannot read one may read others; of a network that
            # is away (S3's errors have this number, too) no checkpoint is to blame.
            unreadable = isinstance(self._fs, LocalFileSystem) and error.errno == errno.EIO
            if unreadable or isinstance(error, FileNotFoundError):
                raise checkpoint.BadCheckpoint(f"{file.name} cannot be read: {one_line(error)}") from None
            raise

    def _put(self, file: Path, target: str) -> None:
        self._make_folder(target.rpartition("/")[0])
        self._try(self._fs.put_file, str(file), target)

    def _make_folder(self, folder: str) -> None:
        # Only paths that begin with a slash have folders. Of bucket/key this would make a mistyped bucket.
        if folder.startswith("/"):
            self._try(self._fs.makedirs, folder, True)

    def _remove(self, name: str) -> None:
        folder = f"{self._root}/{name}"
        if self._names(folder):
            with suppress(FileNotFoundError):
                self._try(self._fs.rm_file, f"{folder}/{checkpoint.MANIFEST}")
            with suppress(FileNotFoundError):
                self._try(self._fs.rm, folder, True)

    @staticmethod
    def _try(call: Callable[..., Any], *arguments: object) -> Any:
        return retry(partial(call, *arguments), seconds=RETRY_SECONDS, is_final=_is_final)


def _is_final(error: Exception) -> bool:
    """Whether another try cannot help. Missing credentials have a class in each library, but no common one."""
    return isinstance(error, FileNotFoundError | PermissionError) or "Credentials" in type(error).__name__


class MirrorThread:
    """Uploads in the background, one at a time, the newest first. Never raises into training.

    What fails is tried again with the next submission, unless the disk has pruned it meanwhile.

    Args:
        check: called before anything is changed there; may raise.
    """

    def __init__(
        self,
        mirror: Mirror,
        retention: checkpoint.Retention,
        warn: Callable[[str], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._mirror = mirror
        self._retention = retention
        self._warn = warn
        self._check = check
        self._condition = threading.Condition()
        self._waiting: list[Path] = []
        self._due = self._busy = False  # due: something was submitted since the thread last looked
        self._newest = 0
        threading.Thread(target=self._run, name="mirror", daemon=True).start()

    def submit(self, path: Path) -> None:
        """Have the checkpoint OUTPUT/checkpoints/NAME copied, and OUTPUT's records."""
        with self._condition:
            self._waiting.append(path)
            self._due = True
            self._condition.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait until all that was submitted is copied or has failed, or that many seconds have passed."""
        with self._condition:
            if not self._condition.wait_for(lambda: not self._due and not self._busy, seconds):
                names = ", ".join(path.name for path in self._waiting)
                self._warn(f"ERROR: {names} was NOT copied to {self._mirror.url} in {seconds:.0f} s")

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._due)
                self._busy, self._due = True, False
            while path := self._newest_waiting():
                try:
                    self._copy(path)
                except Exception as error:
                    self._warn(f"ERROR: {path.name} was NOT copied to {self._mirror.url}: {one_line(error)}")
                    break
                with self._condition:
                    self._waiting.remove(path)
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _newest_waiting(self) -> Path | None:
        with self._condition:
            self._waiting = [path for path in self._waiting if path.exists()]
            return max(self._waiting, key=checkpoint.step_of, default=None)

    def _copy(self, path: Path) -> None:
        """Copy from hard links: the disk may prune the checkpoint before a slow upload has read it."""
        self._check()
        links = path.parent / ".mirroring"
        shutil.rmtree(links, ignore_errors=True)
        source = links / path.name
        try:
            shutil.copytree(path, source, copy_function=os.link)
        except OSError:
            if not path.exists():
                return
            source = path  # on a disk that has no hard links
        try:
            self._mirror.upload(source, path.parent.parent / RECORDS)
        finally:
            shutil.rmtree(links, ignore_errors=True)
        self._newest = max(self._newest, checkpoint.step_of(path))
        try:
            self._check()
            self._mirror.prune(self._newest, self._retention)
        except Exception as error:
            self._warn(f"warning: old checkpoints in {self._mirror.url} could not be removed: {one_line(error)}")
