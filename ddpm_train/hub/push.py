"""Makes a folder the content of a model repository, in one commit.

As a program (`python -m ddpm_train.hub.push`) it pushes beside a run: in a process of its own it takes nothing from
the step loop, and a connection that hangs ends with it. It ends when the process that started it does.
"""

import json
import os
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_train.hub.access import limit_waiting, reason, with_retries
from ddpm_train.runs.checkpoint import MANIFEST
from ddpm_train.runs.folder import SNAPSHOTS

LAST = "last-checkpoint"
# Folders of the repository that hold the newest push alone: what it does not bring is removed there. Checkpoints in
# other folders stay.
_OWNED = ("unet/", "scheduler/", f"{LAST}/", f"{SNAPSHOTS}/")


@dataclass(frozen=True)
class Push:
    """What a push brings, where it goes, and how patient it is.

    Attributes:
        folder: laid out as the repository will be; nothing changes in it meanwhile.
        message: of the commit.
        private: of a repository that does not exist yet; None: as the account has it.
        revision: a branch, made if it does not exist.
        retry_seconds: how long after a first failure to try again.
        stall_seconds: a connection on which nothing moves for so long is given up.
    """

    folder: str
    message: str
    repo_id: str
    private: bool | None
    revision: str
    retry_seconds: float
    stall_seconds: float

    def __call__(self) -> str:
        """Push; returns the commit.

        The commit names the branch's head as its parent, so that it cannot land twice or over a commit it has not
        seen. Before it is sent again the head is read again: what is there already is not sent again.

        Raises:
            Exception: the client's own, after the retries.
        """
        from huggingface_hub import logging

        logging.set_verbosity_error()
        return with_retries(self._commit, give_up_seconds=self.retry_seconds)

    def _commit(self) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        folder = Path(self.folder)
        limit_waiting(self.stall_seconds)
        api = HfApi()
        head, there = self._head(api)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        names = sorted(files, key=lambda name: (name.endswith(MANIFEST), name))
        additions = [CommitOperationAdd(name, str(files[name])) for name in names]
        # The content of several links to one file is sent once: when it is there, the others need not bring it.
        once = {files[one.path_in_repo].stat().st_ino: one for one in additions}
        if len(once) < len(additions):
            api.preupload_lfs_files(self.repo_id, list(once.values()), revision=self.revision, free_memory=False)
        deletions = [CommitOperationDelete(name) for name in there if name.startswith(_OWNED) and name not in files]
        return api.create_commit(
            self.repo_id,
            [*deletions, *additions],
            commit_message=self.message,
            revision=self.revision,
            parent_commit=head,
        ).oid

    def _head(self, api: Any) -> tuple[str, list[str]]:
        """The branch's newest commit and the files in it; the repository and the branch are made if need be."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        ask = partial(api.model_info, self.repo_id, revision=self.revision, timeout=self.stall_seconds)
        try:
            info = ask()
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if isinstance(error, RepositoryNotFoundError):
                api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            if isinstance(error, RevisionNotFoundError) or self.revision != "main":
                api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
            info = ask()
        return info.sha, [file.rfilename for file in info.siblings]


def main() -> None:
    """Push what the first line of the standard input says, and print {"commit": …} or {"error": …}."""
    push = Push(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)
    try:
        outcome = {"commit": push()}
    except Exception as error:
        outcome = {"error": reason(error)}
    print(json.dumps(outcome), flush=True)
    # To end as usual would be to wait for the threads of the client that hang.
    os._exit(0)


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
