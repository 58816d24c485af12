"""A run that is made longer: by which keys, and what becomes of its learning rate. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.optimizers import LR_SCHEDULERS, OPTIMIZERS, Decaying, LRScheduler, Optimizer
from ddpm_train.config.overrides import as_overrides
from ddpm_train.config.schema import Schema
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import CHECKPOINTS

# The keys that the length of a run and of its schedule follow from; epochs are told as steps.
LENGTH = ("train.max_steps", "lr_scheduler.total_steps")
# By less than this share of the higher rate two schedules do not jump from one to the other.
_JUMP = 0.05


@dataclass(frozen=True)
class Rates:
    """The part of a config that, with the number of steps, the learning rates follow from."""

    optimizer: Annotated[Optimizer, OPTIMIZERS]
    lr_scheduler: Annotated[LRScheduler, LR_SCHEDULERS]

    def at(self, step: int, max_steps: int) -> float:
        return self.lr_scheduler.at(step, self.optimizer.lr, max_steps)


@dataclass(frozen=True)
class _Epochs:
    epochs: float | None


@dataclass(frozen=True)
class _Run(Rates):
    name: str
    output_dir: str
    train: _Epochs


def rates_of(identity: Mapping[str, Any]) -> Rates | None:
    """Those of a run's identity, see `identity.py`; None: it does not say, or nobody here knows its choices."""
    sections: dict[str, dict[str, Any]] = {"optimizer": {}, "lr_scheduler": {}}
    for key, value in identity.items():
        section, _, rest = key.partition(".")
        if section in sections:
            sections[section][rest] = value
    try:
        return Schema(Rates).parse(sections)
    except Mistakes:
        return None


def jump(step: int, before: tuple[Rates, int], now: tuple[Rates, int]) -> str | None:
    """What happens to the learning rate at `step`, if it is another than it would have been.

    Args:
        before, now: the rates and the number of steps until then, and from there on.
    """
    would_be, rate = (rates.at(step, max_steps) for rates, max_steps in (before, now))
    if abs(rate - would_be) <= _JUMP * max(rate, would_be):
        return None
    last = before[0].at(max(0, step - 1), before[1])
    return f"the learning rate jumps from {last:.2e} to {rate:.2e} after step {step:,}"


def branch(checkpoints: Path, scheduler: LRScheduler, max_steps: int) -> Path | None:
    """The newest checkpoint from which a run of more than `max_steps` goes on as if it had been longer from the start,
    if the schedule has such a step and one is kept."""
    step = scheduler.branches_at(max_steps)
    kept = [path for path in checkpoint.published(checkpoints) if step and checkpoint.step_of(path) <= step]
    return kept[-1] if kept else None


def branching(values: Mapping[str, Any], path: Path) -> list[str]:
    """The overrides by which the run of these values goes on from a checkpoint, in a folder beside its own."""
    run = Schema(_Run).parse(values)
    name, folder = _longer_name(run.name), Path(run.output_dir)
    elsewhere = {} if folder == Path("outputs", run.name) else {"output_dir": str(folder.with_name(name))}
    return as_overrides({"name": name, **elsewhere, "resume": str(path)})


def _longer_name(name: str) -> str:
    """`cats_longer` after `cats`, `cats_longer2` after that, and so on."""
    stem, is_longer, number = re.fullmatch(r"(.*?)(_longer(\d*))?", name).group(1, 2, 3)  # type: ignore[union-attr]
    return f"{stem}_longer{int(number or 1) + 1}" if is_longer else f"{name}_longer"


def longer(folder: Path, values: Mapping[str, Any], max_steps: int) -> tuple[list[str], str]:
    """The overrides that make a finished run twice as long, and how its learning rate then jumps, or "".

    Args:
        folder: the run's.
        values: its config.
        max_steps: its length.

    Raises:
        Mistakes: this is no config of this program.
    """
    run = Schema(_Run).parse(values)
    scheduler, steps = run.lr_scheduler, 2 * max_steps
    keys: dict[str, int | None] = {"train.epochs": None} if run.train.epochs else {}
    if isinstance(scheduler, Decaying) and scheduler.total_steps is not None:
        if scheduler.total_steps > max_steps:
            steps = min(steps, scheduler.total_steps)
        else:
            keys["lr_scheduler.total_steps"] = steps
            scheduler = replace(scheduler, total_steps=steps)
    overrides = as_overrides({"train.max_steps": steps, **keys})
    if (path := branch(folder / CHECKPOINTS, run.lr_scheduler, max_steps)) is not None:
        return [*branching(values, path), *overrides], ""
    return overrides, jump(max_steps, (run, max_steps), (replace(run, lr_scheduler=scheduler), steps)) or ""
