"""The newest checkpoint that verifies: one search, be it on the disk, in a mirror or on the Hub.

A store knows which checkpoints it has and how to bring one to the disk. The rest is said here.
"""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.runs import checkpoint, state
from ddpm_train.runs.checkpoint import BadCheckpoint
from ddpm_train.system.failures import one_line


@dataclass(frozen=True)
class Candidate:
    """A checkpoint in a store that may be damaged.

    Attributes:
        name: for messages.
        bring: has it verified on the disk and returns its folder there; raises `BadCheckpoint`.
        was_whole: whether it was a checkpoint once: it has a manifest.
    """

    name: str
    bring: Callable[[], Path]
    was_whole: bool = True


Candidates = Generator[Candidate, None, None]  # the newest first


def without_manifest(name: str, problem: str = f"no {checkpoint.MANIFEST}") -> Candidate:
    """A candidate that is known not to verify."""

    def refuse() -> Path:
        raise BadCheckpoint(problem)

    return Candidate(name, refuse, was_whole=False)


def newest_good(candidates: Candidates, reject: Callable[[Candidate, BadCheckpoint], None]) -> Path | None:
    """The first candidate that verifies, None if none does; `reject` is called with each before it."""
    with closing(candidates):
        for candidate in candidates:
            try:
                return candidate.bring()
            except BadCheckpoint as error:
                reject(candidate, error)
    return None


def on_disk(directory: Path) -> Candidates:
    """The published checkpoints in a folder."""
    for path in reversed(checkpoint.published(directory)):
        yield Candidate(path.name, partial(state.verify, path, checkpoint.step_of(path)))


def newest_on_disk(directory: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies. Bad ones are named and set aside; what killed saves left is removed.

    Only the process that owns the run may call this.
    """

    def set_aside(candidate: Candidate, error: BadCheckpoint) -> None:
        aside, number = directory / f"{candidate.name}.bad", 2
        while aside.exists():
            aside, number = directory / f"{candidate.name}.bad-{number}", number + 1
        try:
            os.rename(directory / candidate.name, aside)
        except OSError as refused:
            warn(f"warning: checkpoint {candidate.name} is passed over: {error}. It stays there: {one_line(refused)}")
        else:
            warn(f"warning: checkpoint {candidate.name} is set aside as {aside.name}: {error}")

    checkpoint.remove_leftovers(directory)
    return newest_good(on_disk(directory), set_aside)


class Store(Protocol):
    """Checkpoints of one run elsewhere.

    Attributes:
        key: how the user named the store, for messages.
        remedy: what to do if it cannot be read.
    """

    key: str
    remedy: str

    def candidates(self, newer_than: int, directory: Path) -> Candidates:
        """The checkpoints beyond a step, which are brought into `directory`, and the run's records beside that."""

    def reason(self, error: Exception) -> str:
        """What has gone wrong, in a line."""

    def check_fresh_start(self, damaged: bool) -> None:
        """Raise if the run must not start afresh, with nothing on the disk and nothing usable there.

        Args:
            damaged: whether there were checkpoints: none of them verifies, and to start might repeat a long run.
        """


def fetch_newest(store: Store, directory: Path, local: Path | None, warn: Callable[[str], None]) -> Path | None:
    """Bring the newest checkpoint of a store that verifies into `directory`, and the run's records beside that.

    Args:
        local: the newest checkpoint in `directory`, if there is one; only a newer one is brought.

    Returns:
        The checkpoint to go on from; None if there is none, and the run may start afresh.

    Raises:
        Mistakes: nothing is on the disk, and the store cannot be read, or no checkpoint there can be used.
    """
    damaged = False

    def pass_over(candidate: Candidate, error: BadCheckpoint) -> None:
        nonlocal damaged
        damaged |= candidate.was_whole
        warn(f"warning: {candidate.name} is passed over: {error}")

    try:
        newer_than = -1 if local is None else checkpoint.step_of(local)
        found = newest_good(store.candidates(newer_than, directory), pass_over)
        if found is None and local is None:
            store.check_fresh_start(damaged)
        return found or local
    except Mistakes:
        raise
    except Exception as error:
        if local is None:
            raise Mistakes(f"{store.key}: {store.reason(error)}; {store.remedy}") from None
        warn(
            f"warning: {store.key}: {store.reason(error)}; the run goes on from {local.name} on the disk. If it has "
            "gone further elsewhere, it computes those steps again"
        )
        return local
