"""A run's pushes to the Hub: what is shared of it, when, and how that went."""

import functools
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.parts import Hub
from ddpm_train.data.sources import dataset_licence
from ddpm_train.hub.access import reason
from ddpm_train.hub.background import Outcome, PushThread
from ddpm_train.hub.preflight import is_offline
from ddpm_train.hub.push import Push, Target
from ddpm_train.hub.share import OWNED, Shared
from ddpm_train.models.unet import Description, build_unet, pipeline_files
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, read_config, read_part
from ddpm_train.runs.stores import Candidate, newest_good, on_disk
from ddpm_train.training.run import Run


@dataclass(frozen=True)
class _ItsDataset:
    """The part of a run's config that says what it was trained on."""

    dataset: Dataset


def open_push(run: Run) -> PushThread | None:
    """The thread that pushes this run, if it is to be pushed; on the main process only."""
    config = run.config
    if not (config.hub.push and run.accelerator.is_main_process):
        return None
    if is_offline():
        run.console.warn(f"warning: HF_HUB_OFFLINE is set, so nothing is pushed; `{_command(run.output_dir)}` does it")
        return None
    files = pipeline_files(run.state.sampling_unet, run.noise_scheduler)
    shared = _shared(run.output_dir, config.dataset, config.hub, run.values, files)
    return PushThread(shared, _target(config.hub), 60 * config.hub.finish_minutes, run.console.warn)


def finish_push(run: Run, push: PushThread | None, seconds: float) -> None:
    """Wait for the push of the run's last checkpoint, and say how it went."""
    if push is None or (outcome := push.finish(seconds)) is None:
        return
    if outcome.commit:
        run.console.say(_pushed(str(run.config.hub.repo_id), outcome))
    else:
        run.console.warn(
            f"ERROR: step {outcome.step:,} was NOT pushed to {run.config.hub.repo_id}, because {outcome.problem}; "
            f"`{_command(run.output_dir)}` pushes it"
        )


def push_finished(run: Run, path: Path | None) -> None:
    """Push a finished run's checkpoint: the push may have failed, or the run may have been killed during it."""
    push = open_push(run)
    if push is not None and path is not None:
        push.submit(path)
        finish_push(run, push, 60 * run.config.hub.finish_minutes)


def push_run(run: Path, hub: Hub) -> None:
    """Push the newest whole checkpoint of a run that another process may be training.

    Args:
        hub: where to, in the run's place.

    Raises:
        Mistakes: no checkpoint is whole, or the Hub did not take it.
    """
    path = _newest_whole(run)
    described = read_part(run, Description)
    unet = build_unet(described.model, described.dataset, described.noise_scheduler)
    files = pipeline_files(unet, described.noise_scheduler.build())
    dataset = read_part(run, _ItsDataset).dataset
    shared = _shared(run, dataset, hub, read_config(run / CONFIG), files)
    step = checkpoint.step_of(path)
    with tempfile.TemporaryDirectory(dir=run, prefix=".push-by-hand-") as staging:
        shared.stage(path, Path(staging))
        push = Push(_target(hub), staging, f"Step {step:,}", OWNED, checkpoint.MANIFEST)
        try:
            outcome = Outcome(step, push())
        except Exception as error:
            print(f"error: not pushed, because {reason(error)}; the same command tries again", file=sys.stderr)
            sys.exit(1)
    print(_pushed(shared.repo_id, outcome))


def _newest_whole(run: Path) -> Path:
    problems: list[str] = []

    def note(candidate: Candidate, error: checkpoint.BadCheckpoint) -> None:
        problems.append(f"run={run}: {candidate.name} is not a whole checkpoint: {error}")

    if (path := newest_good(on_disk(run / CHECKPOINTS), note)) is None:
        raise Mistakes(*problems)
    return path


def _shared(run: Path, dataset: Dataset, hub: Hub, values: Mapping[str, Any], files: Mapping[str, str]) -> Shared:
    licence = functools.cache(lambda: dataset_licence(dataset))
    return Shared(run, values, files, licence, str(hub.repo_id), hub.strategy)


def _target(hub: Hub) -> Target:
    return Target(str(hub.repo_id), hub.private, hub.revision or "main", 60 * hub.retry_minutes, hub.stall_seconds)


def _pushed(repo_id: str, outcome: Outcome) -> str:
    from huggingface_hub import constants

    return f"  pushed     {constants.ENDPOINT}/{repo_id} (step {outcome.step:,}, commit {str(outcome.commit)[:12]})"


def _command(run: Path) -> str:
    return f"ddpm-push run={run}"
