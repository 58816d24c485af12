"""What is wrong with a refinement on this machine, before anything slow starts. Imports no torch."""

from collections.abc import Iterator
from pathlib import Path

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.metrics import package_mistakes
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.config.program import Program
from ddpm_train.config.refine import REFINING, RefineConfig
from ddpm_train.config.samplers import sampler_package_mistakes
from ddpm_train.data.paths import path_mistakes as dataset_mistakes
from ddpm_train.data.paths import unused_mistakes
from ddpm_train.evaluation.image_folder import image_folder
from ddpm_train.evaluation.preflight import dataset_of
from ddpm_train.models.source import path_mistakes
from ddpm_train.runs.folder import run_of
from ddpm_train.sampling.preflight import precision_mistakes
from ddpm_train.sampling.refined import REFINED
from ddpm_train.system import launch
from ddpm_train.system.files import expanded, output_mistakes

FOLDER = "refined"


def preflight(config: RefineConfig) -> Iterator[str]:
    """What is wrong with this config on this machine, as far as it shows without torch; a line each."""
    output = output_of(config)
    yield from output_mistakes("output", str(output))
    if output.is_dir() and any(output.iterdir()) and not (output / REFINED).is_file():
        yield f"output={output}: holds files that are not ddpm-refine's; give another output"
    if launch.is_one_of_several():
        yield "ddpm-refine: works in one process; start it without accelerate launch and torchrun"
    yield from precision_mistakes("mixed_precision", config.mixed_precision, ("bf16", "no"))
    yield from path_mistakes(config.pipeline, revision=config.revision)
    if image_folder(config.pipeline) is not None:
        yield f"pipeline={config.pipeline}: a folder of images; give a run or a model"
    absent = list(package_mistakes([config.metric], "metric"))
    yield from absent or config.extractor.mistakes_with([config.metric])
    yield from sampler_package_mistakes(config.sampler.name)
    yield from sampler_package_mistakes(*config.samplers, given=f"samplers={as_written(config.samplers)}")
    try:
        dataset = dataset_of(config.dataset, config.pipeline)
    except Mistakes as mistakes:
        yield from mistakes.lines
        return
    yield from dataset_mistakes(dataset)
    if config.dataset is not None:  # that of a run need not be told what it was trained with
        yield from unused_mistakes(config.dataset)
    if dataset.validation_split is None and dataset.validation_fraction == 0:
        yield held_out_mistake(config, dataset, 0)


def held_out_mistake(config: RefineConfig, dataset: Dataset, count: int) -> str:
    """That there are too few images which training never saw, and how to get them."""
    place = f"pipeline={config.pipeline}" if config.dataset is None else f"dataset.path={dataset.path}"
    return (
        f"{place}: {count} held-out images, too few to choose by; give images that this model was not trained with, "
        "such as dataset=imagefolder dataset.path=DIR dataset.validation_fraction=0.9, or train a run that holds "
        "some out"
    )


def output_of(config: RefineConfig) -> Path:
    if config.output is not None:
        return expanded(config.output)
    run = run_of(config.pipeline)
    return Path(FOLDER, config.pipeline.strip("/").replace("/", "_")) if run is None else run / FOLDER


PROGRAM = Program("ddpm-refine", "refine", "output", "output='refined/{}'", REFINING, preflight)
