"""Takes over a checkpoint, if it is of the same run; and writes down what computes the run from there on."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.optimizers import Decaying
from ddpm_train.runs import checkpoint, environment, snapshots
from ddpm_train.runs.folder import CONFIG, ENVIRONMENT, RESULT, config_yaml
from ddpm_train.runs.identity import accept
from ddpm_train.runs.length import LENGTH, Rates, branch, branching, jump, rates_of
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
    path = start.path
    if path is None or start.state is None:
        on_main(lambda: snapshots.remove(run.output_dir, after=-1))
        return []
    there, now, step = start.state.identity, run.identity, start.state.step
    where = f"{path} (step {step:,})"
    harmless, accepted = accept(there, now, allowed=run.config.allow_change, where=where)
    run.changes = [*start.state.changes, *_recorded(run, start.state, accepted)]
    run.environments = start.state.environments
    run.state.step = step
    on_main(lambda: snapshots.go_on_from(path, step, run.output_dir))
    _load(run, path, start.state, afresh="optimizer.name" in accepted)
    scaler = run.accelerator.scaler
    if scaler is not None and start.state.grad_scaler:
        scaler.load_state_dict(start.state.grad_scaler)
    if (line := _jump(run, path, start.state)) is not None:
        run.console.warn(f"warning: {line}")
    return harmless + [f"{key}: {there.get(key)} -> {now.get(key)} (accepted, recorded)" for key in accepted]


def _recorded(run: Run, stored: ResumedState, accepted: Sequence[str]) -> list[dict[str, Any]]:
    """The changes of the config since a checkpoint that change what the run computes, as `ResumedState` has them."""
    length = stored.max_steps or stored.identity.get("train.max_steps") or run.max_steps
    there, now = {**stored.identity, "train.max_steps": length}, {**run.identity, "train.max_steps": run.max_steps}
    keys = [key for key in LENGTH if there.get(key) != now.get(key)]
    return [{"step": stored.step, "key": key, "from": there.get(key), "to": now.get(key)} for key in [*keys, *accepted]]


def _jump(run: Run, path: Path, stored: ResumedState) -> str | None:
    """What happens to the learning rate, where it does not go on as it would have, and how to avoid that."""
    before, now = rates_of(stored.identity), Rates(run.config.optimizer, run.config.lr_scheduler)
    if before is None or run.is_finished_at(stored.step):
        return None
    length = stored.max_steps or run.max_steps
    line = jump(stored.step, (before, length), (now, run.max_steps))
    if line is None or not isinstance(before.lr_scheduler, Decaying) or run.max_steps < length:
        return line
    if (kept := branch(path.parent, before.lr_scheduler, length)) is not None:
        return f"{line}; the same command with {' '.join(branching(run.values, kept))} goes on without the jump"
    remedy = (
        "a run that begins with lr_scheduler=wsd, or with a lr_scheduler.total_steps, can be made longer without it"
    )
    return f"{line}; {remedy}"


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
