"""A sweep: its jobs, how each is started, and in which folder their comparison stands."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ddpm_train.cli.sweeps.devices import accelerate_launch, visible_gpus
from ddpm_train.cli.sweeps.jobs import Job, Record, end_of, objective_of, read_record
from ddpm_train.cli.sweeps.processes import JOBS, LOG, complaint, signals_reach_the_jobs, signals_wait_for_the_jobs
from ddpm_train.cli.sweeps.summary import summarize
from ddpm_train.config.objective import Criterion
from ddpm_train.report.formatting import duration
from ddpm_train.runs.lock import is_held
from ddpm_train.system import exit_codes


@dataclass
class _Progress:
    """How far a sweep is. Of a job that is started elsewhere nothing is known.

    Attributes:
        total: how many jobs run in all.
        began: when, by the monotonic clock.
    """

    total: int = 0
    began: float = 0.0
    started: list[Path] = field(default_factory=list)
    ended: list[Path] = field(default_factory=list)

    def expect(self, total: int) -> None:
        self.total, self.began = total, time.monotonic()

    def number(self, folder: Path) -> str:
        """`2/4  `, which is left out where nobody counts."""
        return f"{self.started.index(folder) + 1}/{self.total}  " if self.total else ""

    def left(self) -> str:
        """How long the others will take, if they take as long as those that have ended."""
        remaining = self.total - len(self.ended)
        if remaining <= 0:
            return ""
        return f"; about {duration((time.monotonic() - self.began) / len(self.ended) * remaining)} left"


@dataclass(frozen=True)
class Sweep:
    """What Hydra's sweepers and launchers are given as their task: it runs a job in a process of its own.

    Attributes:
        flags: of the program, besides a job's overrides.
        folder: where the comparison of the jobs stands.
        jobs: all of them; of a search examples.
        criterion: what they are compared by.
    """

    flags: tuple[str, ...]
    folder: Path
    jobs: tuple[Job, ...]
    criterion: Criterion | None
    progress: _Progress = field(default_factory=_Progress)

    def __call__(self, composed: DictConfig) -> None:
        """Run the job that Hydra has composed, with all GPUs there are, for launchers whose jobs are functions.

        Whoever wants to be told before the job is killed, such as submitit to requeue it, is told once it has saved.
        """
        self.progress.total = 0  # in a process of its own nobody counts
        overrides = list(HydraConfig.get().overrides.task)
        gpus = visible_gpus()
        launch = accelerate_launch(len(gpus)) if len(gpus) > 1 else []
        with signals_wait_for_the_jobs():
            self.run_job(Path(composed.output_dir), launch, overrides, {})

    def run_job(
        self, folder: Path, launch: Sequence[str], overrides: Sequence[str], environment: dict[str, str]
    ) -> None:
        """Run a job to its end, and print what becomes of it.

        Args:
            launch: what stands between Python and the program.
        """
        if JOBS.stopping:
            return
        command = [sys.executable, *launch, "-m", "ddpm_train.cli.train", *self.flags, *overrides]
        gpus = environment.get("CUDA_VISIBLE_DEVICES")
        self.progress.started.append(folder)
        number = self.progress.number(folder)
        print(f"started   {number}{folder.name}{f' (GPU {gpus})' if gpus else ''}", flush=True)
        record = JOBS.run(folder, command, environment)
        value = objective_of(folder)
        self.progress.ended.append(folder)
        result = f" {self.criterion.name} {value:.4g}" if self.criterion and not math.isnan(value) else ""
        told = f"{folder.name}:{result} after {duration(record.seconds)}{self.progress.left()}"
        print(f"{record.status:<9} {number}{told}", flush=True)
        if record.status in ("failed", "diverged"):
            print(f"          {complaint(folder / LOG)}", flush=True)

    def run_all(self, launch: Callable[[list[Job]], object]) -> list[Path]:
        """Run the jobs that have not ended; returns the folders of all."""
        remaining = []
        for job in self.jobs:
            before = read_record(job.folder) or Record(job.choices, "waiting")
            if ended := end_of(job):
                print(f"skipped   {job.folder.name}: {ended} before", flush=True)
            elif is_held(job.folder):  # left behind by a sweep that was killed, or another host's
                print(f"running   {job.folder.name}: in another process already", flush=True)
                replace(before, status="running").write(job.folder)
            else:
                remaining.append(job)
                replace(before, status="waiting").write(job.folder)
        if remaining:
            self.progress.expect(len(remaining))
            launch(remaining)
        return [job.folder for job in self.jobs]

    def carry_out(self, run: Callable[[], list[Path]]) -> None:
        """Run the jobs and compare them. Leaves with code 75 if asked to stop, with 1 if any failed.

        Args:
            run: runs them; returns their folders.
        """
        with signals_reach_the_jobs():
            folders = run()
            summarize(self.folder, folders, self.criterion)
        statuses = {record.status for folder in folders if (record := read_record(folder))}
        if statuses & {"stopped", "waiting", "running"}:
            print("the same command continues", flush=True)
            sys.exit(exit_codes.REQUEUE)
        if "failed" in statuses:
            sys.exit(1)
