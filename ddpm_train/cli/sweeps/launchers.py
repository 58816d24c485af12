"""What starts the jobs of a sweep: processes of this machine, or one of Hydra's launchers.

Ours are chosen as Hydra's are, with `hydra/launcher=`, and configured by `hydra.launcher.…`.
"""

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from ddpm_train.cli.sweeps.devices import accelerate_launch, shares
from ddpm_train.cli.sweeps.jobs import Job
from ddpm_train.cli.sweeps.sweep import Sweep

# What `Processes` takes.
_LAUNCHERS: dict[str, dict[str, Any]] = {
    "processes": {"max_parallel": None},
    "accelerate": {"max_parallel": None, "num_processes": 1, "main_process_port": None, "arguments": []},
}
_SWEEPERS: dict[str, dict[str, Any]] = {
    "grid": {"params": {}},  # choices by key, for a config that describes a sweep
    "optuna": {
        "params": {},
        "num_trials": 20,  # in all; more of them go on where fewer ended
        "num_startup_trials": 5,  # at random, before the search learns from them
        "seed": 0,
        "prune": True,  # end a job early that is worse, at an evaluation, than the median of the others there
    },
}


class Processes:
    """Each job is a process of this machine, with its own share of the devices.

    Args:
        max_parallel: how many jobs run at a time; None: one for each `num_processes` GPUs, on a CPU one.
        num_processes: of a job that is an `accelerate launch` of so many; None: it is a process alone.
        main_process_port, arguments: of `accelerate launch`.

    Attributes:
        places: how many jobs run at a time.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        max_parallel: int | None,
        num_processes: int | None = None,
        main_process_port: int | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._sweep = sweep
        self._num_processes = num_processes
        self._port = main_process_port
        self._arguments = arguments
        self._free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for environment in shares(max_parallel, num_processes or 1):
            self._free.put(environment)
        self.places = self._free.qsize()

    def launch(self, jobs: Sequence[Job]) -> None:
        """Run jobs to their ends, or until asked to stop."""
        with ThreadPoolExecutor(self.places) as threads:
            list(threads.map(self._run, jobs))

    def _run(self, job: Job) -> None:
        environment, launch = self._free.get(), []
        try:
            if self._num_processes is not None:
                launch = [*accelerate_launch(self._num_processes, self._port), *self._arguments]
            self._sweep.run_job(job.folder, launch, job.overrides, environment)
        finally:
            self._free.put(environment)


class FromHydra:
    """One of Hydra's own launchers, which calls the sweep for each job, wherever that runs."""

    places = 1  # it takes many jobs at once and returns when all have ended

    def __init__(self, launcher: HydraLauncher) -> None:
        self._launcher = launcher

    def launch(self, jobs: Sequence[Job]) -> None:
        print(f"handed {len(jobs)} jobs to {type(self._launcher).__name__}", flush=True)
        self._launcher.launch([job.overrides for job in jobs], initial_job_idx=0)


Launcher = Processes | FromHydra


def choose(sweep: Sweep, master: DictConfig) -> Launcher:
    """The launcher that the sweep's config names."""
    choice = master.hydra.runtime.choices["hydra/launcher"]
    if choice in _LAUNCHERS:
        arguments: dict[str, Any] = OmegaConf.to_container(master.hydra.launcher)  # type: ignore[assignment]
        return Processes(sweep, **arguments)
    # Hydra's launchers call them, and there is no public way to say that there are none: a config's would be code.
    from hydra._internal.callbacks import Callbacks

    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    return FromHydra(Plugins.instance().instantiate_launcher(context, sweep, master))


def register() -> None:
    """Make ours known to Hydra by name."""
    for group, choices in {"hydra/launcher": _LAUNCHERS, "hydra/sweeper": _SWEEPERS}.items():
        for name, node in choices.items():
            ConfigStore.instance().store(group=group, name=name, node=node, provider="ddpm-train")
