"""Training from Python: `ddpm_train.train(…)`, in a script or a notebook."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_train.config.naming import named_after
from ddpm_train.config.overrides import as_overrides
from ddpm_train.config.program import compose_configs
from ddpm_train.evaluation import preflight as evaluation
from ddpm_train.evaluation.evaluate import evaluate as run_evaluation
from ddpm_train.evaluation.scores import Score
from ddpm_train.runs.folder import read_records, read_result
from ddpm_train.sampling.pipeline import Pipeline, load
from ddpm_train.system.output import lost_output_forgiven
from ddpm_train.system.signals import StopRequest
from ddpm_train.training.preflight import PROGRAM
from ddpm_train.training.train import train_run


@dataclass(frozen=True)
class TrainedRun:
    """A run that has come to its end, in its folder."""

    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        """What `result.json` holds: the objective's name, value and best step, and the last step."""
        return read_result(self.folder) or {}

    @property
    def records(self) -> list[dict[str, Any]]:
        """The record of each step: loss, lr, grad_norm, images_per_second, held_out_loss, …"""
        return list(read_records(self.folder))

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model, loaded once."""
        return load(self.folder)

    def sample(self, num_images: int = 1, **keys: Any) -> list[Image.Image] | np.ndarray:
        """Images 0 … num_images-1 of the seed, see `Pipeline.sample`."""
        return self.pipeline.sample(num_images, **keys)

    def evaluate(self, **keys: Any) -> dict[str, Score]:
        """Scores of the run by name, see `evaluate`."""
        return evaluate(self.folder, **keys)


def train(
    output_dir: str | Path,
    keys: Mapping[str, Any] | None = None,
    *,
    config_dir: str | Path | None = None,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
    **keywords: Any,
) -> TrainedRun:
    """Train a run to its end, or go on with the one in this folder: what `ddpm-train` does, with the same keys.

    Args:
        output_dir: the run's folder. The run is called like it, unless `name` says otherwise.
        keys: keys of `ddpm-train` that are no Python names: {"train.max_steps": 1000}.
        keywords: keys of `ddpm-train`. A section is a mapping, train={"max_steps": 1000}; the choice of a group a text,
            dataset="cifar10", or "name" beside the keys to change: dataset={"name": "imagefolder", "path": "cats"}.
        config_dir: a folder with further choices.
        on_record: called on the main process with each step's record, in order, as they are written; and once more
            with what an evaluation has added to the record of a step.

    Raises:
        Mistakes: something in the keys, the dataset or the folder is wrong; a line for each mistake.
        Stopped: asked to stop by a signal or Ctrl-C, and saved: the same call goes on.
        NonFinite, SavingFailed, OutOfMemory: the text says how to go on.
        TakenOver: another process has taken the run over, and goes on with it.
    """
    given = {**(keys or {}), **keywords, "output_dir": str(output_dir)}
    given.setdefault("name", named_after(Path(output_dir).resolve().name))
    overrides = as_overrides(given)
    folder = None if config_dir is None else Path(config_dir)
    ((config, values),) = compose_configs(PROGRAM, overrides, config_dir=folder)
    with StopRequest() as stop, lost_output_forgiven():
        train_run(config, values, arguments=overrides, stop=stop, on_record=on_record)
    return TrainedRun(Path(output_dir))


def evaluate(pipeline: str | Path, **keys: Any) -> dict[str, Score]:
    """Score a run, a checkpoint, a model or a folder of images: what `ddpm-evaluate` does, with the same keys.

    Returns:
        The scores of this call by name, such as "kid_efficientnet_lite0_n2048".

    Raises:
        Mistakes: a key is wrong, or the model cannot be measured so; a line for each mistake.
        Stopped: asked to stop.
    """
    ((config, _),) = compose_configs(evaluation.PROGRAM, as_overrides({**keys, "pipeline": str(pipeline)}))
    with StopRequest() as stop, lost_output_forgiven():
        return {score.name: score for score in run_evaluation(config, stop)}
