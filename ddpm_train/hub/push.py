"""Makes a folder the content of a model repository, in one commit. Knows nothing of training.

As a program (`python -m ddpm_train.hub.push`) it pushes beside a run: in a process of its own it takes nothing from
the step loop, and a connection that hangs ends with it. It ends when the process that started it does.
"""

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ddpm_train.hub.access import limit_waiting, reason, with_retries


@dataclass(frozen=True)
class Target:
    """Where a push goes, and how patient it is.

    Attributes:
        private: of a repository that does not exist yet; None: as the account has it.
        revision: a branch, made if it does not exist.
        retry_seconds: how long after a first failure to try again.
        stall_seconds: a connection on which nothing moves for so long is given up.
    """

    repo_id: str
    private: bool | None
    revision: str
    retry_seconds: float
    stall_seconds: float


@dataclass(frozen=True)
class Push:
    """What a push brings.

    Attributes:
        folder: laid out as the repository will be; nothing changes in it meanwhile.
        owned: folders of the repository that hold this content alone: what is not in `folder` is removed there.
        last: files of this name come last in the commit.
    """

    target: Target
    folder: str
    message: str
    owned: tuple[str, ...]
    last: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        values: dict[str, Any] = json.loads(text)
        target = Target(**values.pop("target"))
        return cls(target=target, owned=tuple(values.pop("owned")), **values)

    def __call__(self) -> str:
        """Push; returns the commit.

        The commit names the branch's head as its parent, so that it cannot land twice or over a commit it has not
        seen. Before it is sent again the head is read again: what is there already is not sent, and if all of it is
        (the reply was lost), nothing is.

        Raises:
            Exception: the client's own, after the retries.
        """
        from huggingface_hub import logging

        logging.set_verbosity_error()
        return with_retries(self._commit, give_up_seconds=self.target.retry_seconds)

    def _commit(self) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        target, folder = self.target, Path(self.folder)
        limit_waiting(target.stall_seconds)
        api = HfApi()
        head, there = self._head(api)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        names = sorted(files, key=lambda name: (name.endswith(self.last), name))
        additions = [CommitOperationAdd(name, str(files[name])) for name in names]
        # Of several links to one file the content is sent once: once it is there, the others need not bring it.
        once = {files[one.path_in_repo].stat().st_ino: one for one in additions}
        if len(once) < len(additions):
            api.preupload_lfs_files(target.repo_id, list(once.values()), revision=target.revision, free_memory=False)
        stale = [
            name for name in there if name.startswith(tuple(f"{one}/" for one in self.owned)) and name not in files
        ]
        result = api.create_commit(
            target.repo_id,
            [*(CommitOperationDelete(name) for name in stale), *additions],
            commit_message=self.message,
            revision=target.revision,
            parent_commit=head,
        )
        return result.oid

    def _head(self, api: Any) -> tuple[str, list[str]]:
        """The branch's newest commit and the files in it; the repository and the branch are made if need be."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        target = self.target
        try:
            info = self._info(api)
        except RepositoryNotFoundError:
            api.create_repo(target.repo_id, private=target.private, exist_ok=True)
            if target.revision != "main":
                api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
            info = self._info(api)
        except RevisionNotFoundError:
            api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
            info = self._info(api)
        return info.sha, [file.rfilename for file in info.siblings]

    def _info(self, api: Any) -> Any:
        target = self.target
        return api.model_info(target.repo_id, revision=target.revision, timeout=target.stall_seconds)


def main() -> None:
    """Push what the first line of the standard input says, and print {"commit": …} or {"error": …}."""
    push = Push.from_json(sys.stdin.readline())
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
