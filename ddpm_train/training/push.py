"""A run's pushes to the Hub: what is shared of it, when, and how that went."""

import functools
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.parts import Hub
from ddpm_train.config.text import shown
from ddpm_train.data.sources import dataset_licence
from ddpm_train.hub.access import reason
from ddpm_train.hub.background import Outcome, PushThread
from ddpm_train.hub.preflight import is_offline
from ddpm_train.hub.share import Shared
from ddpm_train.models.unet import Description, build_unet, pipeline_files
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, read_config, read_part
from ddpm_train.runs.lock import RunLock
from ddpm_train.runs.stores import Candidate, newest_good, on_disk
from ddpm_train.system import exit_codes
from ddpm_train.system.failures import is_refused_by_disk
from ddpm_train.training.run import Run


@dataclass(frozen=True)
class _ItsDataset:
    """The part of a run's config that says what it was trained on."""

    dataset: Dataset


def open_push(run: Run, lock: RunLock) -> PushThread | None:
    """The thread that pushes this run, if it is to be pushed; on the main process only."""
    config = run.config
    if not (config.hub.push and run.accelerator.is_main_process):
        return None
    if is_offline():
        run.console.warn(f"warning: HF_HUB_OFFLINE is set, so nothing is pushed; `{_by_hand(run)}` pushes it later")
        return None
    files = pipeline_files(run.state.sampling_unet, run.objective.noise_scheduler, run.data.values)
    licence = functools.cache(lambda: dataset_licence(config.dataset))
    return PushThread(Shared(run.output_dir, run.values, config.hub, files, licence), run.console.warn, lock.check)


def _by_hand(run: Run) -> str:
    return shlex.join(["ddpm-push", f"run={run.output_dir}"])


def finish_push(run: Run, push: PushThread | None, seconds: float) -> None:
    """Wait for the push of the run's last checkpoint, and say how it went."""
    if push is None or (outcome := push.finish(seconds)) is None:
        return
    if outcome.commit:
        run.console.say(_pushed(run.config.hub, outcome))
    else:
        missing = f"step {outcome.step:,} was NOT pushed to {run.config.hub.repo_id}"
        run.console.warn(f"ERROR: {missing}, because {outcome.error}; `{_by_hand(run)}` pushes it")


def push_finished(run: Run, lock: RunLock, path: Path | None) -> None:
    """Push a finished run's checkpoint: the push may have failed, or the run may have been killed during it."""
    if path is not None and (push := open_push(run, lock)) is not None:
        push.submit(path)
        finish_push(run, push, 60 * run.config.hub.finish_minutes)


_BY_HAND = ".push-by-hand-"


def push_run(run: Path, hub: Hub) -> None:
    """Push the newest whole checkpoint of a run that another process may be training.

    Args:
        hub: where to, whatever the run's config says.

    Raises:
        Mistakes: no checkpoint is whole.
        SystemExit: the Hub did not take it; a line has said why.
    """
    problems: list[str] = []

    def note(candidate: Candidate, error: checkpoint.BadCheckpoint) -> None:
        problems.append(f"run={run}: {candidate.name} is not a whole checkpoint: {error}")

    if (path := newest_good(on_disk(run / CHECKPOINTS), note)) is None:
        raise Mistakes(*problems)
    described = read_part(run, Description)
    unet = build_unet(described.model, described.dataset, described.noise_scheduler)
    files = pipeline_files(unet, described.noise_scheduler.build(), described.dataset.values)
    dataset = read_part(run, _ItsDataset).dataset
    shared = Shared(run, read_config(run / CONFIG), hub, files, lambda: dataset_licence(dataset))
    for left in run.glob(f"{_BY_HAND}*"):  # by one that was killed: links keep what is pruned on the disk
        shutil.rmtree(left, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=run, prefix=_BY_HAND) as staging:
            outcome = Outcome(checkpoint.step_of(path), shared.stage(path, Path(staging))())
    except Exception as error:
        print(f"error: not pushed, because {shown(reason(error))}; the same command tries again", file=sys.stderr)
        sys.exit(exit_codes.NOT_SAVED if is_refused_by_disk(error) else 1)
    print(shown(_pushed(hub, outcome)))


def _pushed(hub: Hub, outcome: Outcome) -> str:
    from huggingface_hub import constants

    return f"  pushed     {constants.ENDPOINT}/{hub.repo_id} (step {outcome.step:,}, commit {outcome.commit[:12]})"
