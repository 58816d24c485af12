"""Takes over a checkpoint, if it is of the same run; and writes down what computes the run from there on."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.runs import checkpoint, environment
from ddpm_train.runs.folder import CONFIG, ENVIRONMENT, RESULT, config_yaml
from ddpm_train.runs.identity import accept
from ddpm_train.runs.state import ResumedState
from ddpm_train.system.compute import device_name
from ddpm_train.system.exit_codes import CannotGoOn
from ddpm_train.system.files import write_atomic
from ddpm_train.system.ranks import broadcast, gather, here, on_main
from ddpm_train.training.optimizer_state import layout_of
from ddpm_train.training.run import Run
from ddpm_train.training.start import Start


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
    run.state.step = step
    _load(run, start.path, start.state, afresh="optimizer.name" in accepted)
    scaler = run.accelerator.scaler
    if scaler is not None and start.state.grad_scaler:
        scaler.load_state_dict(start.state.grad_scaler)
    return harmless + [f"{key}: {there.get(key)} -> {now.get(key)} (accepted, recorded)" for key in accepted]


def _load(run: Run, path: Path, stored: ResumedState, *, afresh: bool) -> None:
    """Have the main process load the checkpoint, which may lie on its disk alone; `share` hands the tensors on.

    Args:
        afresh: the optimizer is another one now, and begins with nothing.

    Raises:
        Mistakes: its tensors are not those of this run's model, whatever its state says.
    """

    def load() -> None:
        tensors = checkpoint.load(path)
        run.state.load({**tensors, "optimizer": {}} if afresh else tensors)

    try:
        if not afresh:
            layout = on_main(lambda: layout_of(checkpoint.load(path).get("optimizer", {})))
            run.state.optimizer_state.allocate(layout, stored.optimizer)
        on_main(load)
    except checkpoint.BadCheckpoint as error:
        remedy = "give another name=… to start afresh, or remove that checkpoint"
        raise Mistakes(f"{path}: its tensors are not of this model ({error}); {remedy}") from None


def share(run: Run) -> None:
    """Take over the main process's tensors on all processes, and make sure of it.

    Raises:
        CannotGoOn: the state is not the same on all of them.
    """
    if run.plan.num_processes == 1:
        return
    for named in run.state.tensors().values():
        for tensor in named.values():
            broadcast(tensor)
    digests = gather((run.state.digest(), here()))
    for digest, where in digests[1:]:
        if digest != digests[0][0]:
            raise CannotGoOn(f"the state at step {run.state.step:,} is not the same on {where} as on {digests[0][1]}")


def describe_run(run: Run, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Write what the run's folder says of it until it ends: its config, what computes it, and no result.

    Returns:
        What has computed the run up to here and what does from now on, for its checkpoints.
    """
    (run.output_dir / RESULT).unlink(missing_ok=True)
    write_atomic(run.output_dir / CONFIG, config_yaml(run.values))
    compute = {
        "device": device_name(run.accelerator.device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "num_processes": run.plan.num_processes,
        "micro_batch_size": run.plan.micro_batch_size,
        "compute": asdict(run.choice.compute),
        "deterministic": run.config.train.deterministic,
    }
    now = environment.environment(arguments, compute)
    environments = run.environments
    if not environments or environments[-1] != {**environments[-1], **now}:
        environments = [*environments, {"from_step": run.state.step, **now}]
    write_atomic(run.output_dir / ENVIRONMENT, json.dumps(environments, indent=1, ensure_ascii=False).encode())
    return environments
