"""Where a run goes on: which checkpoint `resume` means."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.train import Config
from ddpm_train.hub.fetch import HubStore
from ddpm_train.hub.preflight import SCHEME, is_offline, parse_uri
from ddpm_train.runs import checkpoint
from ddpm_train.runs.best import read_selection
from ddpm_train.runs.folder import CHECKPOINTS
from ddpm_train.runs.mirror import Mirror
from ddpm_train.runs.state import ResumedState, read_state, verify
from ddpm_train.runs.stores import fetch_newest, newest_on_disk


@dataclass(frozen=True)
class Start:
    """A verified checkpoint to go on from, and its state; None both for a fresh start."""

    path: Path | None = None
    state: ResumedState | None = None


def find_start(config: Config, warn: Callable[[str], None]) -> Start:
    """The checkpoint that `resume` means. On the main process, which holds the run's lock.

    A run's own checkpoints come first, also with `resume=PATH`: the same command, given again after a preemption,
    must go on where the run stopped and not where it began. For the same reason the newest one is taken of those on the
    disk, in the mirror and in a repository on the Hub: that of `resume=hf://…`, or the one that the run pushes to.

    Raises:
        Mistakes: asked to go on, and nothing usable is there; or asked not to, over a run that would be lost.
    """
    directory = Path(config.output_dir) / CHECKPOINTS
    if config.resume == "never":
        if checkpoint.published(directory):
            remedy = f"give another name=… or remove {directory.parent}"
            raise Mistakes(f"resume=never: {directory} holds checkpoints; {remedy}")
        return Start()
    path = newest_on_disk(directory, warn)
    if (mirror := run_mirror(config)) is not None:
        local, path = path, fetch_newest(mirror, directory, path, warn)
        if path is not None and path != local and config.checkpoint.keep_best:
            _fetch_best(mirror, config, path, warn)
    if (repository := _repository(config)) is not None:
        path = fetch_newest(repository, directory, path, warn)
    if path is None and config.resume != "auto" and not config.resume.startswith(SCHEME):
        try:
            path = verify(Path(config.resume))
        except checkpoint.BadCheckpoint as error:
            raise Mistakes(f"resume={config.resume}: not a whole checkpoint: {error}") from None
    if path is None and any(directory.glob("step_*")):  # what was set aside
        raise Mistakes(
            f"resume=auto: no checkpoint in {directory} can be used; give another name=… to start afresh, "
            "or resume=PATH to go on from elsewhere"
        )
    return Start(path, read_state(path)) if path is not None else Start()


def run_mirror(config: Config) -> Mirror | None:
    """The mirror of a run's checkpoints, if it has one."""
    url = config.checkpoint.mirror
    return Mirror(f"{url.rstrip('/')}/{config.name}") if url else None


def _repository(config: Config) -> HubStore | None:
    """The repository on the Hub to look for checkpoints in: the one named, or the run's own."""
    pushes = config.hub.push and config.hub.strategy in ("checkpoint", "all_checkpoints")
    if (named := parse_uri(config.resume)) is not None:
        repo_id, revision = named
        # Where the run itself pushes checkpoints to there are none before its first.
        own = pushes and (config.hub.repo_id, config.hub.revision or "main") == (repo_id, revision or "main")
        return HubStore(f"resume={config.resume}", repo_id, revision, required=not own)
    if pushes and not is_offline():
        repo_id = str(config.hub.repo_id)
        return HubStore(f"hub.repo_id={repo_id}", repo_id, config.hub.revision, required=False)
    return None


def _fetch_best(mirror: Mirror, config: Config, newest: Path, warn: Callable[[str], None]) -> None:
    """Bring back the best checkpoint too. The run does not need it to go on."""
    try:
        whole = [step for step, is_whole in mirror.steps().items() if is_whole]
        best = read_selection(newest.parent.parent, config, checkpoint.step_of(newest)).best(whole)
        if best is not None and not (newest.parent / checkpoint.step_name(best)).exists():
            mirror.fetch(best, newest.parent)
    except Exception as error:
        warn(f"warning: the best checkpoint in {mirror.url} is left there: {error}")
