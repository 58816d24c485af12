"""`ddpm-refine`: opens and checks a model and its held-out images, and carries out the refinement."""

from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ddpm_train.config.metrics import FEWEST_IMAGES
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.refine import RefineConfig
from ddpm_train.data.loader import open_data
from ddpm_train.data.order import image_indices
from ddpm_train.evaluation.checks import shape_mistakes, values_mistakes
from ddpm_train.evaluation.features import open_extractor
from ddpm_train.evaluation.preflight import dataset_of
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.evaluation.refine_preflight import held_out_mistake
from ddpm_train.evaluation.refine_record import Record
from ddpm_train.evaluation.refinement import Refinement
from ddpm_train.evaluation.workers import Workers
from ddpm_train.models.load import load_model
from ddpm_train.sampling.recipe import sampler_mistakes
from ddpm_train.system.compute import keep_memory, out_of_memory
from ddpm_train.system.console import Console
from ddpm_train.system.ranks import join
from ddpm_train.system.signals import StopRequest


def refine(config: RefineConfig, stop: StopRequest) -> Record:
    """Try what the config asks for, and leave what was kept.

    Raises:
        Mistakes: the model, the images or the extractor cannot be had, or they do not go together.
        Stopped: asked to stop; the stages that are done are kept.
    """
    keep_memory()
    join()
    accelerator = Accelerator()
    try:
        with torch.inference_mode():
            return _open(config, Workers(accelerator, stop, Console(enabled=True))).carry_out()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise Mistakes(f"batch_size={config.batch_size}: out of memory; use a smaller number") from None
    finally:
        AcceleratorState._reset_state()


def _open(config: RefineConfig, workers: Workers) -> Refinement:
    dataset = dataset_of(config.dataset, config.pipeline)
    model = load_model(config.pipeline, revision=config.revision)
    # Before the images, which may take long to prepare.
    lines = [*shape_mistakes(dataset, model)]
    if model.values is not None:
        lines += config.extractor.array_mistakes()
    asked = [(config.sampler, config.num_inference_steps)]
    lines += sampler_mistakes(model.noise_scheduler, asked, learned_variance=model.learned_variance)
    if lines:
        raise Mistakes(*lines)
    data = open_data(dataset, progress=workers.console.live)
    lines = [*values_mistakes(dataset, data, model.values)]
    held_out = data.validation
    if held_out is None or len(held_out) < 2 * FEWEST_IMAGES:
        raise Mistakes(*lines, held_out_mistake(config, dataset, 0 if held_out is None else len(held_out)))
    if lines:
        raise Mistakes(*lines)
    for line in data.warnings():
        workers.console.warn(line)
    halves = _halves(RealImages(held_out, dataset, workers, held_out=True))
    shape = (dataset.channels, *dataset.resolution)
    extractor = open_extractor(config.extractor.name, config.extractor.weights, workers.device, shape=shape)
    return Refinement(config, dataset.resolution, model, halves, extractor, workers)


def _halves(real: RealImages) -> tuple[RealImages, RealImages]:
    """The same two every time, chosen without regard to the images' order."""
    count = len(real.images)
    order = image_indices(np.arange(count), count, seed=0)
    rows = (real.images.rows[np.sort(part)] for part in (order[: count // 2], order[count // 2 :]))
    first, second = (replace(real, images=replace(real.images, rows=each)) for each in rows)
    return first, second
