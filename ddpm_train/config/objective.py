"""By what number a run is judged."""

from collections.abc import Iterator
from dataclasses import dataclass

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.metrics import METRICS, names_of_features_alone, score_name
from ddpm_train.config.mistakes import as_written, did_you_mean, one_of
from ddpm_train.config.train import Config, Evaluation, Train

_HOLD_OUT = "hold images out with dataset.validation_fraction=0.02"


@dataclass(frozen=True)
class Criterion:
    """A number in the records of evaluated steps, and which way is better."""

    name: str
    lower_is_better: bool


@dataclass(frozen=True)
class Judging:
    """The parts of a run's config that say by what number it is judged."""

    objective: str | None
    dataset: Dataset
    evaluation: Evaluation
    train: Train


def measured(config: Config | Judging) -> dict[str, Criterion]:
    """What the run's evaluations measure, by the names that `objective` may have."""
    evaluation, dataset = config.evaluation, config.dataset
    if evaluation.name == "none":
        return {}
    holds_out = dataset.validation_split is not None or dataset.validation_fraction > 0
    names = [*(["held_out_loss"] if holds_out else []), *evaluation.metrics]
    extractor, num_samples = evaluation.extractor.name, evaluation.num_samples
    return {name: Criterion(score_name(name, extractor, num_samples), METRICS[name].lower_is_better) for name in names}


def criterion(config: Config | Judging) -> Criterion | None:
    """What `objective` means: with auto the held-out loss, if there is one."""
    return measured(config).get("held_out_loss" if config.objective == "auto" else config.objective or "")


def objective_mistakes(config: Config) -> Iterator[str]:
    """A line if the run would not measure what it is to be judged by, or too seldom."""
    known, patience = measured(config), config.train.patience
    none_at_all = config.evaluation.name == "none"
    remedy = "use evaluation=grid or evaluation=full" if none_at_all else _HOLD_OUT
    if config.objective is not None and config.objective not in ("auto", *known):
        if config.objective in names_of_features_alone() and not none_at_all:
            remedy = f"add it with 'evaluation.metrics={as_written([*config.evaluation.metrics, config.objective])}'"
        elif config.objective != "held_out_loss" and not none_at_all:
            remedy = f"{did_you_mean(config.objective, known)} give {one_of([*known, 'auto', 'null'])}".strip()
        yield f"objective={config.objective}: the evaluations of this run do not measure it; {remedy}"
    elif patience is not None and criterion(config) is None:
        remedy = f"give objective={one_of([*known])}" if known else remedy
        yield f"train.patience={patience}: nothing measures whether the run improves; {remedy}"
    if patience is not None and _evaluates_once(config) and not none_at_all:
        yield f"train.patience={patience}: the run evaluates at its end only; give evaluation.every_steps"
    if config.train.stop_before_copying:
        yield from _clock_mistakes(config, holds_out="held_out_loss" in known)


def _evaluates_once(config: Config) -> bool:
    """Whether the run evaluates at its end only, as far as the config alone shows its length."""
    every, max_steps = config.evaluation.every_steps, config.train.max_steps
    return (every if max_steps is None else config.evaluation.interval(max_steps)) is None


def _clock_mistakes(config: Config, *, holds_out: bool) -> Iterator[str]:
    """A line if nothing would show that copying is to come."""
    given = "train.stop_before_copying=true"
    if config.evaluation.name == "none":
        yield f"{given}: nothing measures what the run has memorised; use evaluation=grid or evaluation=full"
        return
    if not holds_out:
        yield f"{given}: needs held-out images; {_HOLD_OUT}"
    if _evaluates_once(config):
        yield f"{given}: the run evaluates at its end only; give evaluation.every_steps"
