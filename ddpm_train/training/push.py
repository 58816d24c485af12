"""A run's pushes to the Hub: what is shared of it, when, and how that went."""

import functools
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.train import Config
from ddpm_train.data.sources import dataset_licence
from ddpm_train.hub.access import told
from ddpm_train.hub.background import Outcome, PushThread
from ddpm_train.hub.preflight import is_offline
from ddpm_train.hub.push import Push, Target
from ddpm_train.hub.share import OWNED, Shared
from ddpm_train.models.unet import build_unet, pipeline_files
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import CONFIG, read_config
from ddpm_train.training.run import Run


def open_push(run: Run) -> PushThread | None:
    """The thread that pushes this run, if it is to be pushed; on the main process only."""
    config = run.config
    if not (config.hub.push and run.accelerator.is_main_process):
        return None
    if is_offline():
        run.console.warn(f"warning: HF_HUB_OFFLINE is set, so nothing is pushed; `{_command(run.output_dir)}` does it")
        return None
    files = pipeline_files(run.state.sampling_unet, run.noise_scheduler)
    shared = _shared(run.output_dir, config, run.values, files)
    return PushThread(shared, _target(config), 60 * config.hub.finish_minutes, run.console.warn)


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


def push_run(run: Path, config: Config) -> None:
    """Push the newest whole checkpoint of a run that another process may be training.

    Raises:
        Mistakes: no checkpoint is whole, or the Hub did not take it.
    """
    path = _newest_whole(run)
    files = pipeline_files(build_unet(config), config.noise_scheduler.build())
    shared = _shared(run, config, read_config(run / CONFIG), files)
    step = checkpoint.step_of(path)
    with tempfile.TemporaryDirectory(dir=run, prefix=".push-by-hand-") as staging:
        shared.stage(path, Path(staging))
        push = Push(_target(config), staging, f"Step {step:,}", OWNED, checkpoint.MANIFEST)
        try:
            outcome = Outcome(step, push())
        except Exception as error:
            print(f"error: not pushed, because {told(error)}; the same command tries again", file=sys.stderr)
            sys.exit(1)
    print(_pushed(shared.repo_id, outcome))


def _newest_whole(run: Path) -> Path:
    problems = []
    for path in reversed(checkpoint.published(run / "checkpoints")):
        try:
            checkpoint.verify(path, checkpoint.step_of(path))
        except checkpoint.BadCheckpoint as error:
            problems.append(f"run={run}: {path.name} is not a whole checkpoint: {error}")
        else:
            return path
    raise Mistakes(*problems)


def _shared(run: Path, config: Config, values: Mapping[str, Any], files: Mapping[str, str]) -> Shared:
    licence = functools.cache(lambda: dataset_licence(config.dataset))
    return Shared(run, values, files, licence, str(config.hub.repo_id), config.hub.strategy)


def _target(config: Config) -> Target:
    hub = config.hub
    return Target(str(hub.repo_id), hub.private, hub.revision or "main", 60 * hub.retry_minutes, hub.stall_seconds)


def _pushed(repo_id: str, outcome: Outcome) -> str:
    from huggingface_hub import constants

    return f"  pushed     {constants.ENDPOINT}/{repo_id} (step {outcome.step:,}, commit {str(outcome.commit)[:12]})"


def _command(run: Path) -> str:
    return f"ddpm-push run={run}"
