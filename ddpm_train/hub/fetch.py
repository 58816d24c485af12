"""The checkpoints in a repository that `hub.strategy` pushed them to, as a store to resume from."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.hub.access import ASKING_SECONDS, limit_waiting, reason, with_retries
from ddpm_train.hub.push import LAST
from ddpm_train.runs import checkpoint, snapshots, state
from ddpm_train.runs.folder import CHECKPOINTS, RECORDS, SNAPSHOTS
from ddpm_train.runs.stores import Candidate, Candidates, without_manifest
from ddpm_train.system.files import replace_folder

_RETRY_SECONDS = 30.0
# How many commits to look back for a whole checkpoint.
_HISTORY = 10


@dataclass(frozen=True)
class _Commit:
    """A commit, and the names of its files."""

    id: str
    files: list[str]


@dataclass
class HubStore:
    """The checkpoints of a repository's newest commit, then those of the commits before it. A `Store`.

    Attributes:
        key: how the user named the repository, for messages.
        required: whether it is a mistake if there is none.
    """

    key: str
    repo_id: str
    revision: str | None
    required: bool
    remedy = "resume=never starts without looking there"

    def __post_init__(self) -> None:
        limit_waiting(ASKING_SECONDS)

    def candidates(self, newer_than: int, directory: Path) -> Candidates:
        scratch = directory / ".fetching"
        shutil.rmtree(scratch, ignore_errors=True)
        tried = set()  # manifests: the same checkpoint stands in many commits
        try:
            for commit in self._commits():
                whole = []
                for folder in _checkpoint_folders(commit.files):
                    name = f"{folder} in {self.repo_id}@{commit.id[:8]}"
                    if f"{folder}/{checkpoint.MANIFEST}" not in commit.files:
                        yield without_manifest(name)
                        continue
                    path = self._download(commit, f"{folder}/{checkpoint.MANIFEST}", scratch)
                    try:
                        whole.append((checkpoint.read_manifest(path.parent).step, folder, name, path.read_bytes()))
                    except checkpoint.BadCheckpoint as error:
                        yield without_manifest(name, str(error))
                for step, folder, name, manifest in sorted(whole, reverse=True):
                    if step <= newer_than:
                        return
                    if manifest not in tried:
                        tried.add(manifest)
                        target = directory / checkpoint.step_name(step)
                        yield Candidate(name, partial(self._fetch, commit, folder, target, scratch))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def reason(self, error: Exception) -> str:
        return reason(error)

    def check_fresh_start(self, damaged: bool) -> None:
        if damaged:
            raise Mistakes(f"{self.key}: no checkpoint there can be used; {self.remedy}")
        if self.required:
            strategies = "hub.strategy=checkpoint or all_checkpoints"
            raise Mistakes(f"{self.key}: no checkpoint there; only {strategies} pushes checkpoints")

    def _commits(self) -> Iterator[_Commit]:
        """The revision's commit and those before it, newest first."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            newest = self._commit(self.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            if self.required:
                raise
            return
        yield newest
        for commit in _retried(HfApi().list_repo_commits, self.repo_id, revision=newest.id)[1:_HISTORY]:
            yield self._commit(commit.commit_id)

    def _commit(self, revision: str | None) -> _Commit:
        from huggingface_hub import HfApi

        info = _retried(HfApi().model_info, self.repo_id, revision=revision, timeout=ASKING_SECONDS)
        return _Commit(info.sha, [file.rfilename for file in info.siblings])

    def _fetch(self, commit: _Commit, folder: str, target: Path, scratch: Path) -> Path:
        """Have the checkpoint in `folder` verified at `target`, and the run's records beside the checkpoints."""
        try:
            return self._fetch_once(commit, folder, target, scratch, anew=False)
        except checkpoint.BadCheckpoint:  # perhaps damaged on the way: the client checks sizes only
            return self._fetch_once(commit, folder, target, scratch, anew=True)

    def _fetch_once(self, commit: _Commit, folder: str, target: Path, scratch: Path, *, anew: bool) -> Path:
        with replace_folder(target) as staging:
            for name in commit.files:
                if name.rpartition("/")[0] == folder:
                    os.replace(self._download(commit, name, scratch, anew), staging / Path(name).name)
            state.verify(staging, checkpoint.step_of(target))
            # Before the checkpoint is in its place: once it is, nothing is fetched again.
            run = target.parent.parent
            if RECORDS in commit.files:
                os.replace(self._download(commit, RECORDS, scratch, anew), run / RECORDS)
            snapshots.remove(run, after=-1)
            for name in commit.files:
                if re.fullmatch(rf"{SNAPSHOTS}/step_\d+/[^/]+", name):
                    (run / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(self._download(commit, name, scratch, anew), run / name)
        return target

    def _download(self, commit: _Commit, name: str, scratch: Path, anew: bool = True) -> Path:
        from huggingface_hub import hf_hub_download

        options = {"revision": commit.id, "local_dir": scratch, "force_download": anew}
        return Path(_retried(hf_hub_download, self.repo_id, name, **options))


def _retried(call: Callable[..., Any], *arguments: object, **options: object) -> Any:
    return with_retries(partial(call, *arguments, **options), give_up_seconds=_RETRY_SECONDS)


def _checkpoint_folders(files: list[str]) -> list[str]:
    """The folders of a repository that should be checkpoints."""
    folders = sorted({name.rpartition("/")[0] for name in files})
    return [name for name in folders if name == LAST or name.startswith(f"{CHECKPOINTS}/step_")]
