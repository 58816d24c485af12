"""Carries out `ddpm-evaluate`: open, check, measure what was asked for, keep and tell it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor, nn

from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.config.losses import MSE
from ddpm_train.config.metrics import DISTRIBUTION_METRICS, LOWER_IS_BETTER, of_features, score_name
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.parts import Dataset, Sampler
from ddpm_train.config.train import Config
from ddpm_train.data.images import Images
from ddpm_train.data.loader import open_data
from ddpm_train.evaluation.checks import misfits
from ddpm_train.evaluation.copying import measure_copying, picture
from ddpm_train.evaluation.cost import Cost, CostRow
from ddpm_train.evaluation.distribution import about, score_features
from ddpm_train.evaluation.features import Extractor, open_extractor
from ddpm_train.evaluation.held_out import loss_by_timestep
from ddpm_train.evaluation.image_folder import image_folder, open_images
from ddpm_train.evaluation.image_sets import FolderImages, SampledImages, Subject, Workers
from ddpm_train.evaluation.likelihood import variational_bound
from ddpm_train.evaluation.model_scores import bound_score, held_out_score, measure_held_out
from ddpm_train.evaluation.plots import loss_by_timestep_png
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.evaluation.reference import ReferenceFeatures, at_most
from ddpm_train.evaluation.results import add_results, refuse_other_reference
from ddpm_train.evaluation.scores import DependsOn, Score, lines
from ddpm_train.models.load import Model, load_model
from ddpm_train.report import try_to_write_report
from ddpm_train.runs.folder import SCORES
from ddpm_train.sampling import pictures
from ddpm_train.sampling.engine import Engine, choose_compute
from ddpm_train.sampling.recipe import Recipe, compared
from ddpm_train.system.compute import device_name, keep_memory
from ddpm_train.system.console import Console
from ddpm_train.system.files import write_atomic
from ddpm_train.system.ranks import on_main
from ddpm_train.system.shutdown import PATIENCE, ends_by_exit_code

_LOSS_BINS = 10


def evaluate(config: EvaluateConfig, *, dataset: Dataset, output: Path, run: Config | None) -> None:
    """Measure what the config asks for.

    Args:
        dataset: the real images.
        output: where `scores.json` and the pictures go.
        run: the config of the run that the model is of, whose training loss `held_out_loss` is; None: the plain one.

    Raises:
        Mistakes: the model, the images or the extractor cannot be had, or they do not go together.
    """
    again = "the same command begins anew; the features of real images are kept"
    with ends_by_exit_code(again=again) as stop, torch.inference_mode():
        keep_memory()
        accelerator = Accelerator(
            cpu=os.environ.get("ACCELERATE_USE_CPU") == "True",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        workers = Workers(accelerator, stop, Console(accelerator.is_main_process))
        data = open_data(dataset, progress=workers.console.live)
        folder = image_folder(config.pipeline)
        images = None if folder is None else open_images(folder, dataset, progress=workers.console.live)
        model = None if folder is not None else _load(config)
        if lines := list(misfits(config, dataset, data, model, images)):
            raise Mistakes(*lines)
        Scoring(config, RealImages(dataset, data, workers), model, images, output, run, workers).run_all()
        accelerator.wait_for_everyone()


def _load(config: EvaluateConfig) -> Model:
    on_main(lambda: load_model(config.pipeline, revision=config.revision, weights=config.weights) and None)
    return load_model(config.pipeline, revision=config.revision, weights=config.weights)


class Scoring:
    """One call of the program, once everything is open and fits. Every process does all of it together."""

    def __init__(
        self,
        config: EvaluateConfig,
        real: RealImages,
        model: Model | None,
        images: Images | None,
        output: Path,
        run: Config | None,
        workers: Workers,
    ) -> None:
        self.config = config
        self.real = real
        self.model = model
        self.output = output
        self.run = run
        self.workers = workers
        self.scores: list[Score] = []
        self.sections: dict[str, Any] = {}
        self.files: list[Path] = []
        self.subject: Subject
        if images is not None:
            self.subject = FolderImages(images, config.pipeline, workers)
        else:
            self.engine = self._start_engine()
            self.subject = self._sampled(config.sampler, config.num_inference_steps)

    def run_all(self) -> None:
        """Measure, keep and tell."""
        config = self.config
        if not of_features(config.distribution_metrics):
            self._announce()
        else:
            held_out = config.reference == "held_out"
            against = at_most(self.real.images(held_out), config.num_reference_images)
            on_main(lambda: self._refuse_other_references(against, held_out))
            extractor = open_extractor(config.extractor.name, config.extractor.weights, self.device)
            self._announce()
            reference = self.real.features(extractor, against, held_out)
            if of_features(config.metrics):
                self._score_images(extractor, reference)
            if config.measures_cost:
                self._measure_cost(extractor, reference)
        if "bits_per_dim" in config.metrics:
            self._measure_bound()
        if "held_out_loss" in config.metrics:
            self._measure_held_out()
        on_main(lambda: add_results(self.output, self.scores, self.sections))
        self._tell(on_main(lambda: try_to_write_report(self.output, self.workers.console.warn)))

    def _refuse_other_references(self, against: Images, held_out: bool) -> None:
        refuse_other_reference(self.output, DISTRIBUTION_METRICS, self.real.described(against, held_out))
        if "copy_rate" in self.config.metrics:
            refuse_other_reference(
                self.output, ["copy_rate"], self.real.described(self.real.data.train, held_out=False)
            )

    @property
    def device(self) -> torch.device:
        return self.workers.accelerator.device

    def _score_images(self, extractor: Extractor, reference: ReferenceFeatures) -> None:
        """What compares the images with real ones."""
        metrics = [name for name in self.config.metrics if name in DISTRIBUTION_METRICS]
        features = self.subject.features(extractor)
        known = self.subject.depends_on
        self.scores += on_main(lambda: score_features(features, extractor, reference, metrics, known))
        if "copy_rate" in self.config.metrics:
            training = self.real.features(extractor, self.real.data.train, held_out=False)
            held_out = self.real.features(extractor, self.real.images(held_out=True), held_out=True)
            self.scores.append(on_main(lambda: self._measure_copying(extractor, features, training, held_out)))

    def _measure_copying(
        self, extractor: Extractor, features: Tensor, training: ReferenceFeatures, held_out: ReferenceFeatures
    ) -> Score:
        found = measure_copying(features, training.features, held_out.features)
        samples = self.subject.load(found.closest.tolist())
        shown = picture(samples, [self.real.data.train.load(numbers.tolist()) for numbers in found.neighbours])
        self._keep(shown, "nearest.png")
        self.sections["copying"] = found.to_json(extractor.name, "nearest.png")
        return Score(
            name=score_name("copy_rate", extractor.name, len(features)),
            metric="copy_rate",
            value=found.copy_rate,
            interval=found.interval,
            lower_is_better=LOWER_IS_BETTER["copy_rate"],
            warning="; ".join(filter(None, (found.warning, extractor.warning))) or None,
            depends_on=about(self.subject.depends_on, len(features), extractor, training.described),
        )

    def _measure_cost(self, extractor: Extractor, reference: ReferenceFeatures) -> None:
        """The cost metric for each sampler and number of steps."""
        config, rows = self.config, []
        warm_up = torch.zeros(config.batch_size, self.engine.unet.config.in_channels, *self.real.dataset.resolution)
        self.engine.call(warm_up.to(self.device))
        for name in config.cost.samplers:
            for steps in config.cost.steps:
                self.workers.console.say(f"  {name}, {steps} steps")
                sampled = self._sampled(compared(config.sampler, name), steps)
                features, known = sampled.features(extractor), sampled.depends_on

                def measure(features: Tensor = features, known: DependsOn = known) -> list[Score]:
                    return score_features(features, extractor, reference, [config.cost.metric], known)

                (score,) = on_main(measure)
                self.scores.append(score)
                rows.append(CostRow(name, steps, score.value, score.interval, sampled.seconds_per_image))
        cost = Cost(score.name, score.lower_is_better, tuple(rows))
        self.sections["cost"] = cost.to_json("cost.png")
        on_main(lambda: self._keep(cost.to_png(), "cost.png"))
        self.workers.console.say(*cost.table())

    def _measure_bound(self) -> None:
        bound = variational_bound(
            self._unet(),
            self.engine.model.noise_scheduler,
            self.real.images(held_out=True),
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            accelerator=self.workers.accelerator,
            stop=self.workers.stop,
            num_timesteps=self.config.bound_timesteps,
        )
        self.scores.append(bound_score(bound, self._about_held_out(self.config.seed)))
        self.sections["bound"] = bound.to_json() | {"split": self.real.split(held_out=True)}

    def _measure_held_out(self) -> None:
        loss, seed = (MSE("mse"), self.config.seed) if self.run is None else (self.run.loss, self.run.seed)
        unet, noise_scheduler = self._unet(), self.engine.model.noise_scheduler
        measured = measure_held_out(
            unet,
            noise_scheduler,
            self.real.images(held_out=True),
            loss=loss,
            seed=seed,
            batch_size=self.config.batch_size,
            accelerator=self.workers.accelerator,
            stop=self.workers.stop,
        )
        self.scores.append(held_out_score(measured, self._about_held_out(seed)))
        by_timestep = loss_by_timestep(measured, noise_scheduler.config.num_train_timesteps, _LOSS_BINS)
        plot = loss_by_timestep_png(by_timestep, self.engine.model.label)
        on_main(lambda: self._keep(plot, "loss_by_timestep.png"))

    def _start_engine(self) -> Engine:
        assert self.model is not None
        config, recipe = self.config, self._recipe(self.config.sampler, self.config.num_inference_steps)
        model, device = self.model, self.workers.accelerator.device
        compute = on_main(
            lambda: choose_compute(
                model,
                device,
                recipe,
                mixed_precision=config.mixed_precision,
                num_images=config.num_images,
                batch_size=config.batch_size,
            )
        )
        return Engine(model, device, compute=replace(compute, compile=config.compile))

    def _recipe(self, sampler: Sampler, num_inference_steps: int) -> Recipe:
        return Recipe(self.config.seed, sampler, num_inference_steps, self.real.dataset.resolution)

    def _sampled(self, sampler: Sampler, num_inference_steps: int) -> SampledImages:
        recipe = self._recipe(sampler, num_inference_steps)
        return SampledImages(self.engine, recipe, self.config.num_images, self.config.batch_size, self.workers)

    def _unet(self) -> UNet2DModel:
        """In float32, whatever samples are made in; not ModelMixin's `to`, which warns."""
        return nn.Module.to(self.engine.model.unet, device=self.device)

    def _about_held_out(self, seed: int) -> DependsOn:
        """Of scores that sample nothing."""
        images = self.real.images(held_out=True)
        known = replace(self.subject.depends_on, sampler=None, num_inference_steps=None, seed=seed)
        return replace(known, num_images=len(images), reference=self.real.described(images, held_out=True))

    def _keep(self, shown: Image.Image | bytes, name: str) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / name
        write_atomic(path, shown) if isinstance(shown, bytes) else pictures.save(shown, path)
        self.files.append(path)

    def _announce(self) -> None:
        subject, accelerator = self.subject, self.workers.accelerator
        rows = {"images": f"{len(subject):,} of {self.config.pipeline}"}
        if isinstance(subject, SampledImages):
            recipe = subject.recipe
            rows = {"model": self.engine.model.label}
            rows["images"] = (
                f"{len(subject):,}: {recipe.sampler_words}, {recipe.num_inference_steps} steps, seed {recipe.seed}"
            )
        processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
        rows["against"] = f"{self.real.dataset.path}, {self.real.split(self.config.reference == 'held_out')}"
        rows["features"] = self.config.extractor.name
        rows["device"] = f"{device_name(self.device)}{processes}"
        self.workers.console.table(rows)

    def _tell(self, report: Path | None) -> None:
        self.workers.console.say(*lines(self.scores))
        rows = {"scores": self.output / SCORES, "report": report, **{path.stem: path for path in self.files}}
        self.workers.console.table({name: str(path) for name, path in rows.items() if path})
