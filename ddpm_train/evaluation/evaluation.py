"""One evaluation, once all is open and checked: measures, keeps and tells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.config.metrics import FEWEST_IMAGES, METRICS, names_needing
from ddpm_train.config.parts import Sampler
from ddpm_train.data.images import Images
from ddpm_train.data.loader import Data
from ddpm_train.evaluation.cost import Cost, CostRow
from ddpm_train.evaluation.features import Extractor, open_extractor
from ddpm_train.evaluation.held_out import objective_of
from ddpm_train.evaluation.image_sets import FolderImages, ImageSet, SampledImages
from ddpm_train.evaluation.measure import Found, ModelInputs, Result, collect, measure_images, measure_model
from ddpm_train.evaluation.preflight import output_of
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.evaluation.scores import DependsOn, Score, add_results, lines, refuse_other_reference
from ddpm_train.evaluation.widths import Widths
from ddpm_train.evaluation.workers import Workers
from ddpm_train.models.load import Model
from ddpm_train.models.save import save_pipeline
from ddpm_train.report import try_to_write_report
from ddpm_train.report.formatting import measured
from ddpm_train.runs.environment import versions
from ddpm_train.runs.folder import SCORES, run_of
from ddpm_train.sampling import pictures
from ddpm_train.sampling.engine import Engine, choose_compute, open_engine
from ddpm_train.sampling.guidance import Guidance
from ddpm_train.sampling.recipe import Recipe, compared
from ddpm_train.system.compute import device_name
from ddpm_train.system.files import expanded
from ddpm_train.system.ranks import on_main

_LOSS_BINS = 10


@dataclass
class Evaluation:
    """One call of the program, once all is open and checked. Every process does all of it together."""

    config: EvaluateConfig
    dataset: Dataset
    data: InitVar[Data]
    model: Model | None
    of_width: Mapping[float, Model]  # by `ema.widths`
    guidance: Guidance | None
    folder_images: InitVar[Images | None]
    workers: Workers

    def __post_init__(self, data: Data, folder_images: Images | None) -> None:
        config, rest = self.config, (self.dataset, self.workers)
        self.output = output_of(config)
        self.training = RealImages(data.train, *rest)
        self.held_out = None if data.validation is None else RealImages(data.validation, *rest, held_out=True)
        reference = self.held_out if config.reference == "held_out" else self.training
        assert reference is not None  # the checks see to it
        self.reference = reference.at_most(config.num_reference_images)
        self.images: ImageSet
        if folder_images is not None:
            self.images = FolderImages(folder_images, config.pipeline, self.workers)
        else:
            assert self.model is not None  # a folder of images needs none
            self.images = self._sampled(self.model, config.sampler, config.num_inference_steps)
        self.scores_of_widths: list[Score] = []

    def carry_out(self) -> list[Score]:
        """Measure, keep and show; returns what was measured."""
        found = collect(self._results())
        report = on_main(lambda: self._keep(found))
        self.workers.console.say(*lines(found.scores))
        paths = {"scores": self.output / SCORES, "report": report}
        paths |= {name: self._picture(name) for name in found.pictures}
        self.workers.console.table({name: str(path) for name, path in paths.items() if path})
        return [*found.scores, *self.scores_of_widths]

    def _results(self) -> Iterator[Result]:
        config = self.config
        extractor = None
        if not names_needing("features", config.all_metrics):
            self._announce()
        else:
            on_main(self._refuse_other_references)
            choice, shape = config.extractor, (self.dataset.channels, *self.dataset.resolution)
            extractor = open_extractor(choice.name, choice.weights, self.workers.device, shape=shape)
            self._announce()
            if chosen := names_needing("features", config.metrics):
                yield from self._compare(chosen, self.images, extractor)
                if "kid" in chosen:
                    yield from self._yardstick(extractor)
            if config.measures_cost:
                yield from self._cost(extractor)
        if chosen := names_needing("model", config.metrics):
            alone = replace(self.images.depends_on, sampler=None, num_inference_steps=None, guidance=None)
            known = replace(alone, seed=config.seed)
            assert self.model is not None  # the checks see to it
            yield from measure_model(chosen, self._model_inputs(self.model, _LOSS_BINS), known)
        if self.of_width:
            yield "widths", self._compare_widths(extractor).to_json()

    def _compare(self, metrics: Sequence[str], images: ImageSet, extractor: Extractor) -> Iterator[Result]:
        return measure_images(
            metrics, images, extractor, reference=self.reference, training=self.training, held_out=self.held_out
        )

    def _yardstick(self, extractor: Extractor) -> Iterator[Result]:
        """The KID of real images that training never saw, as far as there are enough: no model needs a lower one."""
        held_out, config = self.held_out, self.config
        if held_out is None or len(held_out.images) < FEWEST_IMAGES or config.reference == "held_out":
            return
        from ddpm_train.evaluation.distribution import kid_between  # an extra

        seen, unseen = self.reference.features(extractor), held_out.features(extractor)
        found = on_main(lambda: kid_between(unseen, seen))
        count = f"{len(held_out.images):,}"
        value = measured(found.value, [*(found.interval or ())])
        self.workers.console.say(
            f"  for comparison: the KID of the {count} real held-out images is {value}; 0 is perfect"
        )
        known = {"metric": "kid", "extractor": extractor.name, "num_images": len(held_out.images)}
        yield "yardstick", known | {"value": found.value, "interval": list(found.interval or ())}

    def _cost(self, extractor: Extractor) -> Iterator[Result]:
        """The cost metric for each sampler and number of steps."""
        config, engine, model, say = self.config, self._engine, self.model, self.workers.console.say
        assert model is not None  # the checks see to it
        warm_up = torch.zeros(config.batch_size, engine.unet.config.in_channels, *self.dataset.resolution)
        engine.call(warm_up.to(engine.device))
        rows = []
        for name in config.cost.samplers:
            for steps in config.cost.steps:
                say(f"  {name}, {steps} steps")
                images = self._sampled(model, compared(config.sampler, name), steps)
                (score,) = collect(self._compare([config.cost.metric], images, extractor)).scores
                rows.append(CostRow(name, steps, score.value, score.interval, images.seconds_per_image))
                yield score.name, score
        cost = Cost(score.name, score.lower_is_better, tuple(rows))
        say(*cost.table())
        yield "cost", cost.to_json()
        if self.workers.accelerator.is_main_process:  # which alone keeps pictures
            yield "cost", cost.picture()

    def _compare_widths(self, extractor: Extractor | None) -> Widths:
        """The metric of the widths for each of them; the best one is written, if it is to be."""
        say, models = self.workers.console.say, self.of_width
        found = Widths({width: self._score(self.config.ema.metric, models[width], extractor) for width in models})
        self.scores_of_widths = found.named()
        say(*found.table())
        if (folder := self.config.ema.pipeline) is not None:
            best = models[found.best]
            parts = (best.unet, best.noise_scheduler, best.step, best.weights, best.values)
            on_main(lambda: save_pipeline(expanded(folder), *parts))
            self.workers.console.table({"pipeline": folder})
        return found

    def _score(self, metric: str, model: Model, extractor: Extractor | None) -> Score:
        """One metric of another model than the chosen one."""
        self.workers.console.say(f"  {model.label}")
        config = self.config
        images = self._sampled(model, config.sampler, config.num_inference_steps)
        if "features" in METRICS[metric].needs:
            assert extractor is not None  # opened for it
            return collect(self._compare([metric], images, extractor)).scores[0]
        known = replace(images.depends_on, sampler=None, num_inference_steps=None)
        return collect(measure_model([metric], self._model_inputs(model), known)).scores[0]

    def _model_inputs(self, model: Model, timestep_bins: int | None = None) -> ModelInputs:
        """The model in float32, whatever samples are made in."""
        assert self.held_out is not None  # the checks see to it
        config, device, noise_scheduler = self.config, self.workers.device, model.noise_scheduler
        noise_scheduler.alphas_cumprod = noise_scheduler.alphas_cumprod.to(device)
        run = run_of(config.pipeline) if "held_out_loss" in config.model_metrics else None
        return ModelInputs(
            unet=nn.Module.to(model.unet, device=device),  # not ModelMixin's `to`, which warns
            noise_scheduler=noise_scheduler,
            title=model.label,
            objective=objective_of(run, noise_scheduler, config.seed),
            held_out=self.held_out,
            seed=config.seed,
            batch_size=config.batch_size,
            timestep_bins=timestep_bins,
            bound_timesteps=config.bound_timesteps,
            workers=self.workers,
        )

    def _refuse_other_references(self) -> None:
        sees_training = names_needing("training_images")
        compares = [name for name in names_needing("features") if name not in sees_training]
        refuse_other_reference(self.output, compares, self.reference.described)
        if chosen := [name for name in self.config.metrics if name in sees_training]:
            refuse_other_reference(self.output, chosen, self.training.described)

    @cached_property
    def _engine(self) -> Engine:
        assert self.model is not None
        return self._engine_of(self.model)

    def _engine_of(self, model: Model) -> Engine:
        config, device = self.config, self.workers.device
        recipe = self._recipe(config.sampler, config.num_inference_steps)
        limits = (config.num_images, config.batch_size)
        compute = on_main(lambda: choose_compute(model, device, recipe, config.mixed_precision, *limits))
        return open_engine(model, device, replace(compute, compile=config.compile))

    def _recipe(self, sampler: Sampler, num_inference_steps: int) -> Recipe:
        resolution = self.dataset.resolution
        return Recipe(self.config.seed, sampler, num_inference_steps, resolution, guidance=self.guidance)

    def _sampled(self, model: Model, sampler: Sampler, num_inference_steps: int) -> SampledImages:
        config, engine = self.config, self._engine if model is self.model else self._engine_of(model)
        known = versions() | {"precision": str(engine.compute), "model": model.digest}
        return SampledImages(
            engine,
            self._recipe(sampler, num_inference_steps),
            config.num_images,
            config.batch_size,
            self.workers,
            DependsOn(step=model.step, weights=model.weights, versions=known),
            model.values,
        )

    def _announce(self) -> None:
        config, count, accelerator = self.config, f"{len(self.images):,}", self.workers.accelerator
        rows = {"images": f"{count} of {config.pipeline}"}
        if self.model is not None:
            recipe = self._recipe(config.sampler, config.num_inference_steps)
            made = f"{recipe.sampler_text}, {recipe.num_inference_steps} steps, seed {recipe.seed}"
            rows = {"model": self.model.label, "images": f"{count}: {made}"}
        processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
        if self.guidance is not None:
            rows["guided by"] = str(self.guidance)
        rows["against"] = f"{self.dataset.path}, {self.reference.split}"
        rows["features"] = config.extractor.name
        rows["device"] = f"{device_name(self.workers.device)}{processes}"
        self.workers.console.table(rows)

    def _keep(self, found: Found) -> Path | None:
        """Write the scores, the pictures and the report; returns where that is."""
        add_results(self.output, found.scores, found.details)
        for name, picture in found.pictures.items():
            pictures.save(picture, self._picture(name))
        return try_to_write_report(self.output, self.workers.console.warn)

    def _picture(self, name: str) -> Path:
        return self.output / f"{name}.png"
