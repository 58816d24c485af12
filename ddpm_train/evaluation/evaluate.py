"""`ddpm-evaluate`: opens and checks what it is asked to compare, and carries out the evaluation."""

from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.loader import open_data
from ddpm_train.evaluation.checks import folder_mistakes, image_mistakes, measurable, model_mistakes, values_mistakes
from ddpm_train.evaluation.evaluation import Evaluation
from ddpm_train.evaluation.image_folder import image_folder, open_images
from ddpm_train.evaluation.preflight import dataset_of
from ddpm_train.evaluation.scores import Score
from ddpm_train.evaluation.workers import Workers
from ddpm_train.models.load import load_model
from ddpm_train.sampling.guidance import guidance_of, guide_mistakes, load_guide
from ddpm_train.system.compute import keep_memory, out_of_memory
from ddpm_train.system.console import Console
from ddpm_train.system.ranks import everywhere, join, wait_for_all
from ddpm_train.system.signals import StopRequest


def evaluate(config: EvaluateConfig, stop: StopRequest) -> list[Score]:
    """Measure what the config asks for, and add it to `scores.json`.

    Raises:
        Mistakes: the model, the images or the extractor cannot be had, or they do not go together.
        Stopped: asked to stop.
    """
    keep_memory()
    join()
    accelerator = Accelerator()
    try:
        with torch.inference_mode():
            scores = _evaluate(config, Workers(accelerator, stop, Console(accelerator.is_main_process)))
        wait_for_all()
        return scores
    finally:
        # A run of this process may compute in another precision.
        AcceleratorState._reset_state()


def _evaluate(config: EvaluateConfig, workers: Workers) -> list[Score]:
    dataset = dataset_of(config.dataset, config.pipeline)
    folder = image_folder(config.pipeline)
    scored = images = model = guide = None
    of_width = {}
    if folder is not None:
        if mistakes := [*folder_mistakes(config, dataset)]:
            raise Mistakes(*mistakes)
        scored = everywhere(lambda: open_images(folder, dataset, progress=workers.console.live))
        images = scored.train
    else:
        load = partial(load_model, config.pipeline, revision=config.revision)
        model = everywhere(lambda: load(weights=config.weights), fetches=True)
        of_width = {width: everywhere(partial(load, weights=f"ema@{width:g}")) for width in config.ema.widths}
        guide = everywhere(lambda: load_guide(config.guidance), fetches=True)
        # Before the images, which may take long to prepare.
        if mistakes := [*model_mistakes(config, dataset, model), *guide_mistakes(config.guidance, guide, model)]:
            raise Mistakes(*mistakes)
    data = everywhere(lambda: open_data(dataset, progress=workers.console.live))
    if images is not None and images.values is not None:
        images = replace(images, values=data.values)
    config, left_out = measurable(config, data)
    made = images.values if images is not None else model.values if model is not None else None
    if mistakes := [*image_mistakes(config, dataset, data, images), *values_mistakes(dataset, data, made)]:
        raise Mistakes(*mistakes)
    for line in [*(scored.warnings() if scored else ()), *data.warnings(), *left_out]:
        workers.console.warn(line)
    for opened in (scored, data):
        if opened is not None and opened.frames_text:
            workers.console.say(f"dataset.frames=all: {opened.frames_text}")
    guidance = guidance_of(config.guidance, guide)
    evaluation = Evaluation(config, dataset, data, model, of_width, guidance, images, workers)
    try:
        return evaluation.carry_out()
    except (RuntimeError, MemoryError) as error:
        if workers.accelerator.num_processes > 1 or not out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["this machine has no memory left"])[0]
        raise Mistakes(f"batch_size={config.batch_size}: out of memory ({reason}); use a smaller number") from None
