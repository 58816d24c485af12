"""What is wrong with an evaluation on this machine, before anything slow starts. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.evaluate import EVALUATION, EvaluateConfig
from ddpm_train.config.foreign import BadFile
from ddpm_train.config.idle import idle_mistakes
from ddpm_train.config.metrics import names_needing, package_mistakes
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.config.program import Program
from ddpm_train.config.samplers import sampler_package_mistakes
from ddpm_train.data.paths import path_mistakes as dataset_mistakes
from ddpm_train.data.paths import unused_mistakes
from ddpm_train.evaluation.image_folder import image_folder, made_by
from ddpm_train.models.source import INDEX, path_mistakes
from ddpm_train.runs.folder import EVALUATION as FOLDER
from ddpm_train.runs.folder import read_part, run_of
from ddpm_train.sampling.preflight import guide_mistakes, precision_mistakes
from ddpm_train.sampling.refined import with_recipe
from ddpm_train.system.files import expanded, output_mistakes
from ddpm_train.system.launch import launch_mistakes


@dataclass(frozen=True)
class _Trained:
    """The part of a run's config that says which images it was trained with."""

    dataset: Dataset


def preflight(config: EvaluateConfig) -> Iterator[str]:
    """What is wrong with this config on this machine, as far as it shows without torch; a line each."""
    yield from output_mistakes("output", str(output_of(config)))
    yield from _best_width_mistakes(config)
    yield from launch_mistakes()
    yield from precision_mistakes("mixed_precision", config.mixed_precision, ("bf16", "no", "auto"))
    yield from path_mistakes(config.pipeline, revision=config.revision)
    yield from package_mistakes(config.metrics, "metrics")  # also what needs no features is plotted
    yield from config.extractor.mistakes_with(config.all_metrics)
    if image_folder(config.pipeline) is not None:
        yield from _model_mistakes(config)
    yield from sampler_package_mistakes(config.sampler.name)
    yield from guide_mistakes(config.guidance)
    samplers = config.cost.samplers
    yield from sampler_package_mistakes(*samplers, given=f"cost.samplers={as_written(samplers)}")
    try:
        dataset = dataset_of(config.dataset, config.pipeline)
    except Mistakes as mistakes:
        yield from mistakes.lines
    else:
        yield from dataset_mistakes(dataset)
    if config.dataset is not None:  # that of a run need not be told what it was trained with
        yield from unused_mistakes(config.dataset)


def dataset_of(dataset: Dataset | None, pipeline: str) -> Dataset:
    """The dataset to compare with: the run's own unless the command names one.

    Raises:
        Mistakes: there is none.
    """
    if dataset is not None:
        return dataset
    run = run_of(pipeline)
    if run is None:
        raise Mistakes("dataset=null: compare with which images? give dataset=cifar10, dataset=imagefolder, …")
    return read_part(run, _Trained).dataset


def output_of(config: EvaluateConfig) -> Path:
    if config.output is not None:
        return Path(config.output)
    run = run_of(config.pipeline)
    return Path("evaluation", config.pipeline.strip("/").replace("/", "_")) if run is None else run / FOLDER


def _best_width_mistakes(config: EvaluateConfig) -> Iterator[str]:
    """A line if the best width cannot be written where it is to be, or would replace something else."""
    if (folder := config.ema.pipeline) is not None:
        yield from output_mistakes("ema.pipeline", folder)
        if expanded(folder).is_dir() and any(expanded(folder).iterdir()) and not (expanded(folder) / INDEX).is_file():
            yield f"ema.pipeline={folder}: holds something else than a pipeline; give a new folder"


def _model_mistakes(config: EvaluateConfig) -> Iterator[str]:
    """What a folder of images cannot answer."""
    try:
        made_by(config.pipeline)
    except BadFile as error:
        yield f"pipeline={config.pipeline}: {error}; remove that file"
    place = f"{config.pipeline} is a folder of images"
    if wanted := names_needing("model", config.metrics):
        yield f"metrics={as_written(config.metrics)}: {' and '.join(wanted)} need a model, and {place}; leave them out"
    if config.ema.widths:
        yield f"ema.widths={as_written(config.ema.widths)}: needs a run, and {place}; leave it out"
    if config.measures_cost:
        yield f"cost.samplers={as_written(config.cost.samplers)}: needs a model to sample, and {place}; leave it out"
    for key, value in config.guidance.changes.items():
        yield f"{key}={value}: does nothing where {place}; leave it out"
    of_a_model = ("weights", "num_images", "num_inference_steps", "mixed_precision", "compile")
    yield from idle_mistakes(config, "evaluate", [(key, f"where {place}") for key in of_a_model])


PROGRAM = Program("ddpm-evaluate", "evaluate", "output", "output='evaluation/{}'", EVALUATION, preflight, with_recipe)
