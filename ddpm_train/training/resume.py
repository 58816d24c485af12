"""Where a run goes on: which checkpoint `resume` means, and whether it is of the same run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.train import Config
from ddpm_train.hub.fetch import Source, fetch_newest
from ddpm_train.hub.preflight import SCHEME, is_offline, parse_uri
from ddpm_train.runs import checkpoint, environment
from ddpm_train.runs.best import read_selection
from ddpm_train.runs.identity import accept
from ddpm_train.runs.mirror import Mirror
from ddpm_train.runs.state import ResumedState
from ddpm_train.system.compute import device_name
from ddpm_train.system.files import write_atomic
from ddpm_train.training.run import Run


@dataclass(frozen=True)
class Start:
    """A verified checkpoint to go on from, and what it holds besides tensors; None is a fresh start."""

    path: Path | None
    state: ResumedState | None


def run_mirror(config: Config) -> Mirror | None:
    url = config.checkpoint.mirror
    return Mirror(f"{url.rstrip('/')}/{config.name}") if url else None


def hub_source(config: Config) -> Source | None:
    """The repository on the Hub to look for checkpoints in: the one named, or the run's own."""
    if (named := parse_uri(config.resume)) is not None:
        return Source(f"resume={config.resume}", *named, required=not _pushes_to(config, *named))
    if _pushes_checkpoints(config) and not is_offline():
        return Source(f"hub.repo_id={config.hub.repo_id}", str(config.hub.repo_id), config.hub.revision, required=False)
    return None


def _pushes_checkpoints(config: Config) -> bool:
    return config.hub.push and config.hub.strategy in ("checkpoint", "all_checkpoints")


def _pushes_to(config: Config, repo_id: str, revision: str | None) -> bool:
    """Whether that is where the run itself pushes checkpoints: then there are none before its first."""
    here = (config.hub.repo_id, config.hub.revision or "main")
    return _pushes_checkpoints(config) and here == (repo_id, revision or "main")


def find_start(config: Config, warn: Callable[[str], None]) -> Start:
    """The checkpoint that `resume` means. On the main process, which holds the run's lock.

    A run's own checkpoints come first, also with `resume=PATH`: the same command, given again after a preemption,
    must go on where the run stopped and not where it began. For the same reason the newer one is taken of those on the
    disk and in a repository on the Hub, be it `resume=hf://…` or the one that the run itself pushes checkpoints to.

    Raises:
        Mistakes: asked to go on, and nothing usable is there; or asked not to, over a run that would be lost.
    """
    directory = Path(config.output_dir) / "checkpoints"
    if config.resume == "never":
        if checkpoint.published(directory):
            raise Mistakes(
                f"resume=never: {directory} holds checkpoints; give another name=… or remove {directory.parent}"
            )
        return Start(None, None)
    path = checkpoint.newest_good(directory, warn)
    mirror = run_mirror(config)
    if mirror is not None:
        # Also where there is one on the disk: the run may have gone on elsewhere since.
        on_disk, path = path, mirror.fetch_newest(directory, warn, on_disk=path)
        if path is not None and path != on_disk and config.checkpoint.keep_best:
            _fetch_best(mirror, config, path, warn)
    if (source := hub_source(config)) is not None:
        path = fetch_newest(source, directory, path, warn)
    if path is None and config.resume != "auto" and not config.resume.startswith(SCHEME):
        path = Path(config.resume)
        try:
            checkpoint.verify(path)
        except checkpoint.BadCheckpoint as error:
            raise Mistakes(f"resume={config.resume}: not a whole checkpoint: {error}") from None
    if path is None and directory.is_dir() and any(directory.glob("step_*")):
        raise Mistakes(
            f"resume=auto: no checkpoint in {directory} can be used; give another name=… to start afresh, "
            "or resume=PATH to go on from elsewhere"
        )
    return Start(path, ResumedState.from_json(checkpoint.load_scalars(path)) if path else None)


def _fetch_best(mirror: Mirror, config: Config, newest: Path, warn: Callable[[str], None]) -> None:
    """Bring back the best checkpoint too. The run does not need it to go on."""
    run, step = newest.parent.parent, checkpoint.step_of(newest)
    try:
        whole = [each for each, is_whole in mirror.steps().items() if is_whole]
        best = read_selection(run, config, step).best(whole)
        if best is not None and not (newest.parent / checkpoint.step_name(best)).exists():
            mirror.fetch(best, newest.parent)
    except Exception as error:
        warn(f"warning: the best checkpoint in {mirror.url} is left there: {error}")


def restore(run: Run, start: Start) -> list[str]:
    """Load the start into the run's state; returns a line for each change of the config since.

    Raises:
        Mistakes: it is a checkpoint of another run.
    """
    if start.path is None or start.state is None:
        return []
    there, now, step = start.state.identity, run.identity, start.state.step
    where = f"{start.path} (step {step:,})"
    harmless, accepted = accept(there, now, allowed=run.config.allow_change, where=where)
    recorded = [{"step": step, "key": key, "from": there.get(key), "to": now.get(key)} for key in accepted]
    run.changes = [*start.state.changes, *recorded]
    run.environments = start.state.environments
    run.state.load(step, checkpoint.load(start.path))
    scaler = run.accelerator.scaler
    if scaler is not None and start.state.grad_scaler:
        scaler.load_state_dict(start.state.grad_scaler)
    return harmless + [
        f"{change['key']}: {change['from']} -> {change['to']} (accepted, recorded)" for change in recorded
    ]


def record_environment(run: Run, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What has computed the run up to here, and what does from now on; written into its folder, and its checkpoints.

    Args:
        arguments: of `ddpm-train`, which this run is the same as.
    """
    compute = {
        "device": device_name(run.accelerator.device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "num_processes": run.plan.num_processes,
        "micro_batch_size": run.plan.micro_batch_size,
        "compute": asdict(run.choice.compute),
    }
    now = environment.environment(arguments, compute)
    environments = environment.followed_by(run.environments, now, run.state.step)
    text = json.dumps(environments, indent=1, ensure_ascii=False)
    write_atomic(run.output_dir / environment.FILE, text.encode())
    return environments
