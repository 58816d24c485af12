"""What is wrong with a sweep as a whole: its launcher and sweeper, what it varies, what the machine cannot give it."""

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override

from ddpm_train.cli.sweeps.devices import visible_gpus
from ddpm_train.config.compose import options
from ddpm_train.config.mistakes import did_you_mean, not_installed
from ddpm_train.config.overrides import is_hydra
from ddpm_train.system.launch import port_error

# Jobs that differ in these could not be compared.
_SAME_FOR_ALL = ("objective", "allow_change", "extensions")
# Choices that need a package, and the extra that brings it.
_EXTRAS = {
    "hydra/launcher=submitit_slurm": ("submitit", "slurm"),
    "hydra/launcher=submitit_local": ("submitit", "slurm"),
    "hydra/sweeper=optuna": ("optuna", "optuna"),
}


def plugin_mistakes(overrides: list[Override]) -> Iterator[str]:
    for override in overrides:
        group, choice = override.key_or_group, str(override.value())
        if group not in ("hydra/launcher", "hydra/sweeper") or override.is_sweep_override():
            continue
        extras = [name for name in _EXTRAS if name.startswith(group)]
        known = sorted({*options(group), *(name.partition("=")[2] for name in extras)} - {"basic"})
        package, extra = _EXTRAS.get(f"{group}={choice}", ("hydra", ""))
        if choice not in known:
            yield f"{group}={choice}: no such {group[6:]};{did_you_mean(choice, known)} (one of {', '.join(known)})"
        else:
            yield from not_installed(f"{group}={choice}", package, extra)


def variation_mistakes(given: list[Override], own: list[Override], optimised: bool) -> Iterator[str]:
    """A line for each key that cannot vary, or not so.

    Args:
        given: what the command line varies.
        own: what the jobs may.
    """
    for override in filter(Override.is_sweep_override, [*filter(is_hydra, given), *own]):
        key, text, value = override.key_or_group, override.input_line, override.value()
        start, end = (value.start or 0, value.end or 0) if isinstance(value, IntervalSweep) else (0, 1)
        if is_hydra(override):
            yield f"{text}: how a sweep is done cannot vary within it; give one value"
        elif key in _SAME_FOR_ALL:
            yield f"{text}: must be the same for all jobs, which could not be compared; give one value"
        elif isinstance(value, IntervalSweep) and not optimised:
            yield (
                f"{text}: only an optimiser can choose from an interval; add hydra/sweeper=optuna, "
                f"or write {key}=A,B or range(A,B)"
            )
        elif start >= end:
            yield f"{text}: must go from a lower number to a higher one"
        elif isinstance(value, IntervalSweep) and "log" in value.tags and start <= 0:
            yield f"{text}: a logarithmic interval must begin above 0"
    if optimised and not any(override.is_sweep_override() for override in own):
        yield "hydra/sweeper=optuna: nothing to choose; write KEY=interval(A,B), KEY=tag(log,interval(A,B)) or KEY=A,B"


def sweeper_mistakes(sweeper: Mapping[str, Any]) -> Iterator[str]:
    for key in ("num_trials", "num_startup_trials"):
        value = sweeper.get(key, 1)
        if not (type(value) is int and value > 0):
            yield f"hydra.sweeper.{key}={value}: must be a whole number above 0"
    if not (type(seed := sweeper.get("seed", 0)) is int and seed >= 0):
        yield f"hydra.sweeper.seed={seed}: must be a whole number of at least 0"


def launcher_mistakes(launcher: Mapping[str, Any]) -> Iterator[str]:
    """What the machine cannot give the jobs."""
    parallel, count, port = (launcher.get(key) for key in ("max_parallel", "num_processes", "main_process_port"))
    for key, value in (("max_parallel", parallel), ("num_processes", count)):
        if value is not None and not (type(value) is int and value > 0):
            yield f"hydra.launcher.{key}={value}: must be a whole number above 0"
            return
    gpus = visible_gpus() if count else []
    if gpus and count and count > len(gpus):
        yield f"hydra.launcher.num_processes={count}: more than the {len(gpus)} GPUs here; use at most {len(gpus)}"
    if port is not None:
        if parallel != 1 and (gpus or parallel):
            yield f"hydra.launcher.main_process_port={port}: one port for several jobs at a time; leave it out"
        elif port_error(port):
            yield f"hydra.launcher.main_process_port={port}: taken by another process; leave it out for a free one"
