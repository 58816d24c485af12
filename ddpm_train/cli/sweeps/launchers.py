"""What starts the jobs of a sweep: processes of this machine, or one of Hydra's launchers.

Ours are chosen as Hydra's are, with `hydra/launcher=`, and configured by `hydra.launcher.…`.
"""

import queue
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from ddpm_train.cli.sweeps.devices import accelerate_launch, shares
from ddpm_train.cli.sweeps.jobs import Job
from ddpm_train.cli.sweeps.sweep import Sweep

# jobs at a time; null: one for each `num_processes` GPUs, on a CPU one. Each has its own share of the devices.
_PROCESSES: dict[str, Any] = {"max_parallel": None}
_ACCELERATE: dict[str, Any] = {
    **_PROCESSES,
    "num_processes": 1,  # of each job
    "main_process_port": None,  # null: a free one for each job
    "arguments": [],  # further ones of `accelerate launch`
}


_GRID: dict[str, Any] = {"params": {}}  # choices by key, for a config that describes a sweep
_OPTUNA: dict[str, Any] = {
    **_GRID,
    "num_trials": 20,  # in all; more of them go on where fewer ended
    "num_startup_trials": 5,  # at random, before the search learns from them
    "seed": 0,
    "prune": True,  # end a job early that is worse, at an evaluation, than the median of the others there
}


class Launcher(Protocol):
    @property
    def places(self) -> int:
        """How many jobs run at a time."""

    def launch(self, jobs: Sequence[Job]) -> list[float]:
        """Run jobs to their ends, or until asked to stop; returns their objectives, NaN where there is none."""


class Processes:
    """Each job is a process of this machine, with its own share of the devices; `hydra/launcher=processes`."""

    def __init__(self, sweep: Sweep, *, max_parallel: int | None, num_processes: int = 1) -> None:
        self._sweep = sweep
        self._free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for environment in shares(max_parallel, num_processes):
            self._free.put(environment)
        self.places = self._free.qsize()

    def launch(self, jobs: Sequence[Job]) -> list[float]:
        with ThreadPoolExecutor(self.places) as threads:
            return list(threads.map(self._run, jobs))

    def _run(self, job: Job) -> float:
        environment = self._free.get()
        try:
            command = [sys.executable, *self.launch_arguments(), *self._sweep.program(job.overrides)]
            return self._sweep.run_job(job.folder, command, environment)
        finally:
            self._free.put(environment)

    def launch_arguments(self) -> list[str]:
        """What stands between Python and the program."""
        return []


class Accelerate(Processes):
    """Each job is an `accelerate launch` of this machine; `hydra/launcher=accelerate`."""

    def __init__(
        self,
        sweep: Sweep,
        *,
        max_parallel: int | None,
        num_processes: int,
        main_process_port: int | None,
        arguments: Sequence[str],
    ) -> None:
        super().__init__(sweep, max_parallel=max_parallel, num_processes=num_processes)
        self._num_processes = num_processes
        self._port = main_process_port
        self._arguments = arguments

    def launch_arguments(self) -> list[str]:
        return [*accelerate_launch(self._num_processes, self._port), *self._arguments]


class FromHydra:
    """One of Hydra's own launchers, which calls the sweep for each job, wherever that runs."""

    places = 1  # it takes many jobs at once and returns when all have ended

    def __init__(self, launcher: HydraLauncher) -> None:
        self._launcher = launcher

    def launch(self, jobs: Sequence[Job]) -> list[float]:
        print(f"handed {len(jobs)} jobs to {type(self._launcher).__name__}", flush=True)
        returned = self._launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
        return [each.return_value if each.status == JobStatus.COMPLETED else float("nan") for each in returned]


_OURS = {"processes": Processes, "accelerate": Accelerate}


def choose(sweep: Sweep, master: DictConfig) -> Launcher:
    """The launcher that the sweep's config names."""
    choice = master.hydra.runtime.choices["hydra/launcher"]
    if choice in _OURS:
        arguments: dict[str, Any] = OmegaConf.to_container(master.hydra.launcher)  # type: ignore[assignment]
        return _OURS[choice](sweep, **arguments)
    # Hydra's launchers call them, and there is no public way to say that there are none: a config's would be code.
    from hydra._internal.callbacks import Callbacks

    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    return FromHydra(Plugins.instance().instantiate_launcher(context, sweep, master))


def register() -> None:
    """Make ours known to Hydra by name."""
    for group, name, node in (
        ("launcher", "processes", _PROCESSES),
        ("launcher", "accelerate", _ACCELERATE),
        ("sweeper", "grid", _GRID),
        ("sweeper", "optuna", _OPTUNA),
    ):
        ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node, provider="ddpm-train")
