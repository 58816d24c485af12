"""Evaluation as a part of the training loop."""

from ddpm_train.system.signals import Stopped
from ddpm_train.training.evaluation import RunEvaluation
from ddpm_train.training.records import Records
from ddpm_train.training.run import Run
from ddpm_train.training.trackers import RunTrackers


class Evaluation:
    """Evaluates a run's sampling weights at the steps that the config names, once each.

    Args:
        trackers: on the main process.
    """

    def __init__(self, run: Run, measurement: RunEvaluation, records: Records, trackers: RunTrackers | None) -> None:
        self._run = run
        self._records = records
        self._trackers = trackers
        self._measure = measurement
        self._done = run.state.step if "evaluation_seconds" in records.last else None

    @property
    def is_due(self) -> bool:
        """Every `evaluation.every_steps` and at the end, but not untrained."""
        run, config = self._run, self._run.config.evaluation
        step = run.state.step
        if config.name == "none" or step in (0, self._done):
            return False
        return step == run.max_steps or bool(config.every_steps and step % config.every_steps == 0)

    def run(self) -> bool:
        """Evaluate. False if a request to stop ended it."""
        run, records = self._run, self._records
        records.read_back()
        try:
            values = self._measure(self._trackers)
        except Stopped:
            return False
        records.annotate(run.state.step, values)
        run.selection.note(run.state.step, values)
        records.rest_clock()
        self._done = run.state.step
        return True
