"""What a run measures on its way: samples, the held-out loss, scores. Nothing of it touches the training."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import UNet2DModel

from ddpm_train.config.foreign import printable
from ddpm_train.config.metrics import FEWEST_IMAGES
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.train import Config
from ddpm_train.diffusion.objective import Objective
from ddpm_train.diffusion.pixels import shown
from ddpm_train.evaluation.floor import Floor, has_floor, measure_floor
from ddpm_train.evaluation.held_out import held_out_losses, over_timesteps
from ddpm_train.evaluation.image_sets import SampledImages
from ddpm_train.evaluation.measure import Found, ModelInputs, Result, collect, measure_images
from ddpm_train.evaluation.memorisation import measure_loss_ratio
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.evaluation.scores import DependsOn
from ddpm_train.evaluation.workers import Workers
from ddpm_train.runs import checkpoint
from ddpm_train.runs.clock import RATIO
from ddpm_train.runs.environment import versions
from ddpm_train.runs.folder import EVALUATION, SAMPLES
from ddpm_train.sampling import pictures
from ddpm_train.sampling.engine import Engine
from ddpm_train.sampling.recipe import Recipe, sampler_mistakes
from ddpm_train.system.console import Console
from ddpm_train.system.exit_codes import CannotGoOn
from ddpm_train.system.failures import one_line
from ddpm_train.system.files import write_atomic
from ddpm_train.system.ranks import is_everywhere, on_main
from ddpm_train.system.signals import Stopped
from ddpm_train.training import messages
from ddpm_train.training.messages import OutOfMemory, evaluation_memory_remedy, out_of_memory_ends
from ddpm_train.training.records import Records
from ddpm_train.training.run import Run
from ddpm_train.training.trackers import RunTrackers

if TYPE_CHECKING:  # of an extra
    from ddpm_train.evaluation.features import Extractor


class Evaluation:
    """Evaluates a run's sampling weights at the steps that the config names, once each; on all processes alike.

    Args:
        extractor: see `open_extractor`.
        trackers: on the main process only.

    Attributes:
        failed: the steps whose evaluation has failed, and why.
    """

    def __init__(self, run: Run, extractor: "Extractor | None", records: Records, trackers: RunTrackers | None) -> None:
        self._run = run
        self._extractor = extractor
        self._records = records
        self._trackers = trackers
        # At uniform timesteps, whatever the run trains at: so its losses compare with other runs'.
        self._objective = Objective(run.objective.noise_scheduler, run.config.loss, run.config.seed)
        self._workers = Workers(run.accelerator, run.stop, Console(enabled=False))  # the run's own shows its steps
        self._floor: Floor | None = None  # the same for every step
        self.failed: dict[int, str] = {}
        self._done = run.state.step if "evaluation_seconds" in records.last else None
        self._seconds = records.last.get("evaluation_seconds", 0.0)  # of the last one

    @property
    def is_due(self) -> bool:
        """At `evaluation.first_step`, at multiples of `Run.evaluated_every` and at the end, but not untrained."""
        run, config, step = self._run, self._run.config.evaluation, self._run.state.step
        if config.name == "none" or step in (0, self._done):
            return False
        return step == run.next_evaluation(step - 1)

    def seconds_left(self) -> float:
        """What the evaluations that are still to come will take, if each takes as long as the last; 0 before one."""
        step, last = self._run.state.step, self._run.max_steps
        every = self._run.evaluated_every or last
        return self._seconds * (math.ceil(last / every) - step // every)

    def run(self) -> bool:
        """Measure, show, store and judge. False if a request to stop ended it.

        A failure is told, and costs the run no more than this evaluation.

        Raises:
            OutOfMemory: the text says how to go on.
            Exception: on this process alone; the others would wait for it.
        """
        started, step = time.monotonic(), self._run.state.step
        try:
            remedy = evaluation_memory_remedy(self._run.config)
            with out_of_memory_ends(remedy), _as_diffusers_loads_it(self._run.state.sampling_unet) as unet:
                found = collect(self._results(unet))
            on_main(lambda: self._keep(found))
        except Stopped:
            return False
        except OutOfMemory:
            raise
        except Exception as error:
            if not is_everywhere(error):
                raise
            self._fail(step, error)
            return True
        self._seconds = time.monotonic() - started
        if (share := found.numbers.get("learned")) is not None:
            loss, least = (found.numbers[name] for name in ("held_out_loss", "held_out_loss_floor"))
            self._run.console.say(f"step {step:,}: {messages.learned(loss, least, share)}")
        self._run.clock = self._run.clock.after(step, found.numbers)
        if (memorised := found.details.get("memorisation")) is not None:
            forecast = self._run.clock.forecast(memorised["interval"])
            self._run.console.say(f"step {step:,}: {messages.memorisation(memorised['ratio'], forecast, step)}")
        values = {**found.numbers, "evaluation_seconds": round(self._seconds, 3)}
        self._records.annotate(step, values)
        self._run.selection.note(step, values)
        self._done = step
        return True

    def _fail(self, step: int, error: Exception) -> None:
        speaks_for_itself = isinstance(error, CannotGoOn | Mistakes)
        text = one_line(error) if speaks_for_itself else f"{type(error).__name__}: {one_line(error)}"
        self.failed[step] = reason = printable(text)
        self._run.console.warn(f"ERROR: the evaluation of step {step:,} failed: {reason}. The run goes on without it.")

    def _results(self, unet: UNet2DModel) -> Iterator[Result]:
        run, data, config = self._run, self._run.data, self._run.config
        grid = self._sampled(unet, config.evaluation.num_images)
        yield "samples", pictures.image_grid(shown(grid.pixels().cpu(), self._run.data.values))
        training, held_out = RealImages(data.train, config.dataset, self._workers), None
        if data.validation is not None:
            held_out = RealImages(data.validation, config.dataset, self._workers, held_out=True)
            inputs = ModelInputs(
                unet=unet,
                noise_scheduler=run.objective.noise_scheduler,
                title=f"step {run.state.step:,}",
                objective=self._objective,
                held_out=held_out,
                seed=config.seed,
                batch_size=config.evaluation.batch_size,
                timestep_bins=config.evaluation.timestep_bins,
                workers=self._workers,
            )
            losses, timesteps = held_out_losses(inputs)
            yield "held_out_loss", float(losses.cpu().double().mean())
            yield from over_timesteps(losses, timesteps, inputs)
            if has_floor(self._objective):
                self._floor = self._floor or measure_floor(inputs, training)
                yield from self._floor.results(losses, run.objective.noise_scheduler.config.num_train_timesteps)
            yield from self._memorised(inputs, training)
        if self._extractor is not None:
            metrics, samples = config.evaluation.metrics, self._sampled(unet, config.evaluation.num_samples)
            yield from measure_images(
                metrics, samples, self._extractor, reference=training, training=training, held_out=held_out
            )

    def _memorised(self, inputs: ModelInputs, training: RealImages) -> Iterator[Result]:
        """How far the losses on training and held-out images have parted, and when copying will begin."""
        if (ratio := measure_loss_ratio(inputs, training)) is None:
            return
        yield RATIO, ratio.value
        forecast = self._run.clock.after(self._run.state.step, {RATIO: ratio.value}).forecast(ratio.interval)
        if forecast is not None:
            yield "copying_step", forecast.step
        stored = {"ratio": ratio.value, "interval": ratio.interval, "forecast": forecast and asdict(forecast)}
        yield "memorisation", stored

    def _sampled(self, unet: UNet2DModel, num_images: int) -> SampledImages:
        run, config = self._run, self._run.config
        engine = Engine(unet, run.objective.noise_scheduler)
        steps = config.evaluation.num_inference_steps
        recipe = Recipe(config.seed, config.sampler, steps, config.dataset.resolution)
        depends_on = DependsOn(step=run.state.step, weights=run.state.sampling_weights, versions=versions())
        size, values = config.evaluation.batch_size, self._run.data.values
        return SampledImages(engine, recipe, num_images, size, self._workers, depends_on, values)

    def _keep(self, found: Found) -> None:
        """Pictures, as files and in the trackers; and the numbers, with all that they depend on."""
        step, output_dir = self._run.state.step, self._run.output_dir
        step_name = checkpoint.step_name(step)
        for name, picture in found.pictures.items():
            place = f"{SAMPLES}/{step_name}" if name == "samples" else f"{EVALUATION}/{name}"
            self._write(output_dir / f"{place}.png", pictures.to_png(picture))
            if self._trackers is not None:
                self._trackers.add_image(name, picture, step)
        stored = {
            "step": step,
            "held_out_loss": found.numbers.get("held_out_loss"),
            "held_out_images": len(self._run.data.validation or ()),
            "training_images": len(self._run.data.train),
            "loss_by_timestep": None,
            **found.details,
            "scores": [asdict(score) for score in found.scores],
        }
        self._write(output_dir / EVALUATION / f"{step_name}.json", json.dumps(stored, indent=1).encode())

    def _write(self, path: Path, data: bytes) -> None:
        """A full disk costs the file, and not the run."""
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            self._run.console.warn(f"ERROR: {path} cannot be written: {error}")


def check_sampler(config: Config) -> None:
    """Raise `Mistakes` if the sampler, or an argument of it, cannot make this run's pictures: found out by trying it.

    Every process does this alike.
    """
    if config.evaluation.name == "none":
        return
    chosen, key = [(config.sampler, config.evaluation.num_inference_steps)], "evaluation.num_inference_steps"
    if lines := list(sampler_mistakes(config.noise_scheduler.build(), chosen, steps_key=key)):
        raise Mistakes(*lines)


def open_extractor(run: Run) -> "Extractor | None":
    """What the run's metrics need, if there are any; raises `Mistakes` if it cannot be had or images are too few."""
    config = run.config.evaluation
    if config.name == "none" or not config.metrics:
        return None
    if len(run.data.train) < FEWEST_IMAGES:
        raise Mistakes(
            f"evaluation.metrics: the {len(run.data.train)} training images are too few to compare with; "
            f"use at least {FEWEST_IMAGES}, or evaluation.metrics=[]"
        )
    from ddpm_train.evaluation import features

    choice, dataset = config.extractor, run.config.dataset
    return features.open_extractor(
        choice.name,
        choice.weights,
        run.accelerator.device,
        shape=(dataset.channels, *dataset.resolution),
        key="evaluation.extractor",
    )


@contextmanager
def _as_diffusers_loads_it(unet: UNet2DModel) -> Iterator[UNet2DModel]:
    """The UNet in eval mode and not compiled, so that its pictures are those of the pipeline that the run leaves.

    Without an average this is the network that trains.
    """
    compiled, unet._compiled_call_impl = unet._compiled_call_impl, None
    training = unet.training
    unet.eval()
    try:
        yield unet
    finally:
        unet.train(training)
        unet._compiled_call_impl = compiled
