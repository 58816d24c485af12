"""Bayesian search over a sweep's space with Optuna: `hydra/sweeper=optuna`.

A function of its journal, `optuna.journal` in the sweep's folder: killed at any moment, the same command goes on with
the trials that were under way, in their own folders, and draws the next ones as if nothing had happened.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from ddpm_train.cli.sweeps.jobs import Job, Record, end_of, objective_of, read_record
from ddpm_train.cli.sweeps.launchers import Launcher
from ddpm_train.cli.sweeps.processes import JOBS
from ddpm_train.config.objective import Criterion
from ddpm_train.runs.best import evaluated

JOURNAL = "optuna.journal"
_WATCH_SECONDS = 1.0


def distribution(override: Override) -> BaseDistribution:
    """What a sweep override means to an optimiser; choices by how one writes them."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        if isinstance(value.start, int):
            return IntDistribution(value.start, int(value.end), log="log" in value.tags)
        return FloatDistribution(value.start, value.end, log="log" in value.tags)
    numbers = value.range() if isinstance(value, RangeSweep) else None
    if isinstance(numbers, range):
        return IntDistribution(min(numbers), max(numbers), step=abs(numbers.step) if len(numbers) > 1 else 1)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


@dataclass
class Search:
    """Draws trials, runs each as a job, and prunes those that are not worth going on with.

    Attributes:
        folder: the sweep's.
        space: by key.
        make_job: the job with such choices, as one writes them on the command line.
        num_trials: in all, those of earlier commands among them.
        num_startup_trials: drawn at random, and not pruned, before the search learns from them.
        prune: whether a job ends early whose criterion is worse, at an evaluation, than the median of the others'.
    """

    folder: Path
    space: Mapping[str, BaseDistribution]
    criterion: Criterion
    make_job: Callable[[Mapping[str, str]], Job]
    launcher: Launcher
    num_trials: int
    num_startup_trials: int
    seed: int
    prune: bool

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.folder / JOURNAL))),
            study_name="sweep",
            direction="minimize" if self.criterion.lower_is_better else "maximize",
            pruner=optuna.pruners.MedianPruner(self.num_startup_trials) if self.prune else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._lock = threading.Lock()
        self._folder_locks: dict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._interrupted = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.params.keys() == self.space.keys():
                self._interrupted.append(Trial(self._study, trial._trial_id))
            else:  # killed while it was drawn
                self._study.tell(trial.number, state=TrialState.FAIL)

    @property
    def num_remaining(self) -> int:
        """How many trials are to be run, at most: two that choose alike are one run."""
        return max(0, self.num_trials - len(self._study.get_trials(deepcopy=False))) + len(self._interrupted)

    def run(self) -> list[Path]:
        """Run the trials that remain, as many at a time as the launcher has places; returns all jobs' folders."""
        with ThreadPoolExecutor(self.launcher.places) as threads:
            for worker in [threads.submit(self._work) for _ in range(self.launcher.places)]:
                worker.result()
        trials = self._study.get_trials(deepcopy=False)
        return list(dict.fromkeys(Path(trial.user_attrs["folder"]) for trial in trials if trial.user_attrs))

    def _work(self) -> None:
        while not JOBS.stopping and (trial := self._next()) is not None:
            written = {key: value if isinstance(value, str) else repr(value) for key, value in trial.params.items()}
            with self._lock:  # Hydra composes one config at a time
                job = self.make_job(written)
            trial.set_user_attr("folder", str(job.folder))
            with self._folder_locks[job.folder]:  # two trials may choose alike
                self._carry_out(trial, job)

    def _next(self) -> Trial | None:
        """A trial that was interrupted, or the next one; None at the end."""
        with self._lock:
            if self._interrupted:
                return self._interrupted.pop(0)
            number = len(self._study.get_trials(deepcopy=False))
            if number >= self.num_trials:
                return None
            # Seeded by its number: a search that goes on must not draw what it has drawn before.
            (seed,) = np.random.SeedSequence((self.seed, number)).generate_state(1)
            self._study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.num_startup_trials, seed=int(seed), constant_liar=True
            )
            return self._study.ask(dict(self.space))

    def _carry_out(self, trial: Trial, job: Job) -> None:
        before = read_record(job.folder) or Record(job.choices, "waiting")
        if (ended := end_of(job)) is None:
            Record(job.choices, "waiting", before.seconds).write(job.folder)
            over = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(trial, job, over), name=f"watch {job.folder.name}")
            watcher.start()
            try:
                self.launcher.launch([job])
            finally:
                over.set()
                watcher.join()
        record = read_record(job.folder)
        status = ended or (record.status if record else "failed")
        value = objective_of(job.folder)
        if status == "finished" and not math.isnan(value):
            self._study.tell(trial, value)
        elif status == "diverged":  # as bad as can be, and not as if it had never been tried
            self._study.tell(trial, math.inf if self.criterion.lower_is_better else -math.inf)
        elif status == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)
        elif status in ("finished", "failed"):
            self._study.tell(trial, state=TrialState.FAIL)

    def _watch(self, trial: Trial, job: Job, over: threading.Event) -> None:
        """Report a job's evaluations as they come, and stop it if they are not worth going on with."""
        reported: set[int] = set()
        while not over.wait(_WATCH_SECONDS):
            for step, value in evaluated(job.folder, self.criterion).items():
                if step not in reported:
                    trial.report(value, step)
                    reported.add(step)
                    if trial.should_prune():
                        JOBS.prune(job.folder)
                        return
