"""Takes a run's newest whole checkpoint from a repository that `hub.strategy` pushed it to."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.hub.access import ASKING_SECONDS, limit_waiting, told, with_retries
from ddpm_train.hub.share import ALL, LAST, RECORDS
from ddpm_train.runs import checkpoint
from ddpm_train.system.files import replace_folder

_RETRY_SECONDS = 30.0
# How many commits to look back for a whole checkpoint.
_HISTORY = 10


@dataclass(frozen=True)
class Source:
    """A repository that may hold checkpoints.

    Attributes:
        named: how the user named it, for messages.
        required: whether it is a mistake if there is none.
    """

    named: str
    repo_id: str
    revision: str | None
    required: bool


def fetch_newest(source: Source, directory: Path, local: Path | None, warn: Callable[[str], None]) -> Path | None:
    """Bring the newest checkpoint there that verifies into `directory`, and the run's records beside that.

    Args:
        local: the newest on the disk; only a newer one is fetched.

    Returns:
        The checkpoint to go on from: the fetched one, or `local`.

    Raises:
        Mistakes: there is none here, and none there although there should be, or the repository cannot be read.
    """
    limit_waiting(ASKING_SECONDS)
    repository = _Repository(source, warn)
    try:
        found = repository.fetch(directory, -1 if local is None else checkpoint.step_of(local))
    except Exception as error:
        reason = str(error) if isinstance(error, checkpoint.BadCheckpoint) else told(error)
        if local is not None:
            warn(f"warning: {source.named}: {reason}; goes on from {local.name} on the disk")
            return local
        raise Mistakes(f"{source.named}: {reason}; resume=never starts without looking there") from None
    if found is None and local is None and source.required:
        raise Mistakes(
            f"{source.named}: no checkpoint there; it takes hub.strategy=checkpoint or all_checkpoints to push them"
        )
    return found or local


class _Repository:
    def __init__(self, source: Source, warn: Callable[[str], None]) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi()
        self._source = source
        self._warn = warn
        self._bad: set[str] = set()  # manifests of checkpoints that did not verify

    def fetch(self, directory: Path, newer_than: int) -> Path | None:
        """The newest whole checkpoint beyond that step, looked for in the newest commit first.

        Raises:
            BadCheckpoint: there are checkpoints, and none can be used.
        """
        scratch = directory / ".fetching"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            for commit, files in self._commits():
                for step, folder, manifest in self._checkpoints(commit, files, scratch):
                    if step <= newer_than:
                        return None
                    if manifest in self._bad:
                        continue
                    try:
                        return self._fetch(commit, folder, files, directory / checkpoint.step_name(step), scratch)
                    except checkpoint.BadCheckpoint as error:
                        self._bad.add(manifest)
                        self._tell(commit, folder, error)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if self._bad:
            raise checkpoint.BadCheckpoint("no checkpoint there can be used")
        return None

    def _commits(self) -> Iterator[tuple[str, list[str]]]:
        """The revision's commit and those before it, newest first, with the names of their files."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        source = self._source
        try:
            newest = self._info(source.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            if source.required:
                raise
            return
        yield newest.sha, [file.rfilename for file in newest.siblings]
        history = with_retries(
            lambda: self._api.list_repo_commits(source.repo_id, revision=newest.sha), give_up_seconds=_RETRY_SECONDS
        )
        for commit in history[1:_HISTORY]:
            info = self._info(commit.commit_id)
            yield info.sha, [file.rfilename for file in info.siblings]

    def _info(self, revision: str | None) -> Any:
        return with_retries(
            lambda: self._api.model_info(self._source.repo_id, revision=revision, timeout=ASKING_SECONDS),
            give_up_seconds=_RETRY_SECONDS,
        )

    def _checkpoints(self, commit: str, files: list[str], scratch: Path) -> list[tuple[int, str, str]]:
        """Step, folder and manifest of the commit's checkpoints that have one, newest first."""
        found = []
        for folder in sorted({name.rpartition("/")[0] for name in files}):
            if folder != LAST and not (folder.startswith(f"{ALL}/step_")):
                continue
            if f"{folder}/{checkpoint.MANIFEST}" not in files:
                self._tell(commit, folder, checkpoint.BadCheckpoint(f"no {checkpoint.MANIFEST}"))
                continue
            manifest = self._download(commit, f"{folder}/{checkpoint.MANIFEST}", scratch).read_text()
            try:
                found.append((int(json.loads(manifest)["step"]), folder, manifest))
            except (ValueError, KeyError, TypeError) as error:
                self._tell(commit, folder, checkpoint.BadCheckpoint(f"{checkpoint.MANIFEST} cannot be read ({error})"))
        return sorted(found, reverse=True)

    def _fetch(self, commit: str, folder: str, files: list[str], target: Path, scratch: Path) -> Path:
        names = [name for name in files if name.rpartition("/")[0] == folder]
        for again in (False, True):  # the client checks sizes only: what was damaged on the way is fetched once more
            try:
                with replace_folder(target) as staging:
                    for name in names:
                        os.replace(self._download(commit, name, scratch, again), staging / Path(name).name)
                    checkpoint.verify(staging, checkpoint.step_of(target))
                    # Before the checkpoint is in its place: once it is, nothing is fetched again.
                    if RECORDS in files:
                        os.replace(self._download(commit, RECORDS, scratch, again), target.parent.parent / RECORDS)
                return target
            except checkpoint.BadCheckpoint:
                if again:
                    raise
        raise AssertionError

    def _download(self, commit: str, name: str, scratch: Path, again: bool = True) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            with_retries(
                lambda: hf_hub_download(
                    self._source.repo_id, name, revision=commit, local_dir=scratch, force_download=again
                ),
                give_up_seconds=_RETRY_SECONDS,
            )
        )

    def _tell(self, commit: str, folder: str, error: Exception) -> None:
        self._warn(f"warning: {folder} in {self._source.repo_id}@{commit[:8]} is passed over: {error}")
