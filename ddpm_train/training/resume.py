"""Takes over a checkpoint, if it is of the same run; and what a checkpoint says of a run."""

import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from ddpm_train.runs import checkpoint, environment
from ddpm_train.runs.folder import ENVIRONMENT
from ddpm_train.runs.identity import accept, identity
from ddpm_train.runs.state import ResumedState
from ddpm_train.system.compute import device_name
from ddpm_train.system.files import write_atomic
from ddpm_train.training.run import Run
from ddpm_train.training.start import Start


def restore(run: Run, start: Start) -> list[str]:
    """Load the start into the run's state; returns a line for each change of the config since.

    Raises:
        Mistakes: it is a checkpoint of another run.
    """
    if start.path is None or start.state is None:
        return []
    step, old, new = start.state.step, start.state.identity, run_identity(run)
    where = f"{start.path} (step {step:,})"
    harmless, accepted = accept(old, new, allowed=run.config.allow_change, where=where)
    recorded = [{"step": step, "key": key, "from": old.get(key), "to": new.get(key)} for key in accepted]
    run.changes = [*start.state.changes, *recorded]
    run.environments = start.state.environments
    run.state.load(step, checkpoint.load(start.path))
    scaler = run.accelerator.scaler
    if scaler is not None and start.state.grad_scaler:
        scaler.load_state_dict(start.state.grad_scaler)
    return harmless + [
        f"{change['key']}: {change['from']} -> {change['to']} (accepted, recorded)" for change in recorded
    ]


def record_environment(run: Run) -> list[dict[str, Any]]:
    """What has computed the run up to here, and what does from now on; written into its folder, and its checkpoints."""
    compute = {
        "device": device_name(run.accelerator.device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "num_processes": run.plan.num_processes,
        "micro_batch_size": run.plan.micro_batch_size,
        "compute": asdict(run.choice.compute),
    }
    now = environment.environment(sys.argv[1:], compute)
    environments = environment.followed_by(run.environments, now, run.state.step)
    text = json.dumps(environments, indent=1, ensure_ascii=False)
    write_atomic(run.output_dir / ENVIRONMENT, text.encode())
    return environments


def run_identity(run: Run) -> dict[str, Any]:
    return identity(run.values, dataset_content=run.data.content, mixed_precision=run.accelerator.mixed_precision)


def resumed_state(run: Run) -> ResumedState:
    """What a checkpoint of the run holds besides tensors."""
    scaler = run.accelerator.scaler
    return ResumedState(
        step=run.state.step,
        images_seen=run.state.step * run.plan.batch_size,
        compute=asdict(run.choice.compute),
        device=device_name(run.accelerator.device),
        micro_batch_size=run.plan.micro_batch_size,
        num_processes=run.plan.num_processes,
        grad_scaler=scaler.state_dict() if scaler is not None else {},
        identity=run_identity(run),
        changes=run.changes,
        environments=run.environments,
    )
