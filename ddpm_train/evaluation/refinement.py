"""One refinement, once all is open and checked: stage after stage, each kept only if it is better by other images."""

from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from torch import Tensor

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.refine import RefineConfig
from ddpm_train.config.samplers import FITTED
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.distribution import fid_between, kid_between
from ddpm_train.evaluation.features import Extractor
from ddpm_train.evaluation.image_sets import SampledImages
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.evaluation.refine_card import card
from ddpm_train.evaluation.refine_preflight import output_of
from ddpm_train.evaluation.refine_record import Comparison, Record, Stage, Value, read_record
from ddpm_train.evaluation.scores import DependsOn
from ddpm_train.evaluation.variants import Candidates, Variant, candidates_of
from ddpm_train.evaluation.workers import Workers
from ddpm_train.models.load import Model
from ddpm_train.models.save import save_pipeline
from ddpm_train.runs.folder import PIPELINE
from ddpm_train.sampling import pictures
from ddpm_train.sampling.engine import Engine, open_engine
from ddpm_train.sampling.fitting import write_steps
from ddpm_train.sampling.recipe import Recipe
from ddpm_train.sampling.refined import CARD, GUIDE, PICTURE, STEPS, KeptRecipe
from ddpm_train.system.compute import PLAIN, device_name
from ddpm_train.system.files import write_atomic

BEFORE = "as before"
# What computes a score of two sets of features, and what resamples it. Of both less is better.
_METRICS = {"kid": (kid_between, bootstrap.kid), "fid": (fid_between, bootstrap.fid)}
_STAGES = ("average", "guidance", "sampler")
_SHOWN_IMAGES = 8


@dataclass
class Refinement:
    """One call of the program.

    Attributes:
        resolution: (height, width).
        halves: the held-out images that choose, and those that decide what is kept.
    """

    config: RefineConfig
    resolution: tuple[int, int]
    model: Model
    halves: tuple[RealImages, RealImages]
    extractor: Extractor
    workers: Workers
    _features: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def carry_out(self) -> Record:
        """Try, keep and tell; what was done before is not done again."""
        output, say = output_of(self.config), self.workers.console.say
        record = read_record(output, self._identity())
        self._announce()
        original = current = Variant(self.model, self.config.sampler)
        done = {stage.name: stage for stage in record.stages}
        for name in (name for name in _STAGES if name in self.config.stages):
            candidates, why_none = candidates_of(name, self.config, current)
            if (stage := done.get(name)) is None:
                stage = self._try(name, current, candidates, why_none, record)
                record = replace(record, stages=(*record.stages, stage), under_way={})
                record.write(output)
            say(f"{name}: {stage.why}")
            if stage.kept:
                current = self._again(stage, candidates)
        if record.recipe is None:
            record = self._leave(record, original, current)
        if record.overall is not None:
            say(f"all together: {record.overall}")
        self.workers.console.table({"refined": str(output), "samples": f"ddpm-sample pipeline={output}"})
        return record

    def _try(self, name: str, current: Variant, candidates: Candidates, why_none: str, record: Record) -> Stage:
        if not candidates:
            return Stage(name, kept=False, why=f"nothing to try: {why_none}")
        tried, left_out = dict(record.under_way), list[str]()
        for each, load in {BEFORE: lambda: current, **candidates}.items():
            if each in tried:
                continue
            self.workers.console.say(f"  {name}: {each}")
            try:
                variant = load()
            except Mistakes as mistakes:  # such as a width that the snapshots do not give
                left_out += mistakes.lines
                continue
            tried[each] = self._score(variant, half=0)
            replace(record, under_way=tried).write(output_of(self.config))
        best = min(tried, key=lambda each: tried[each].value)
        known: dict[str, Any] = {"tried": tried, "left_out": tuple(left_out)}
        if best == BEFORE:
            return Stage(name, kept=False, why="not kept: nothing was better by the half that chooses", **known)
        found = self._compare(current, candidates[best]())
        verdict = "kept" if found.is_better else "not kept: the interval of the difference does not lie below 0"
        why = f"{best}: {verdict} ({self.config.metric} {found})"
        return Stage(name, kept=found.is_better, why=why, chosen=best, comparison=found, **known)

    def _again(self, stage: Stage, candidates: Candidates) -> Variant:
        """What a stage has chosen, perhaps in an earlier call."""
        if stage.chosen is None or stage.chosen not in candidates:
            place = f"output={output_of(self.config)}: {stage.chosen}"
            raise Mistakes(f"{place} was kept there and can no longer be made; give another output")
        return candidates[stage.chosen]()

    def _score(self, variant: Variant, half: int) -> Value:
        compute, _ = _METRICS[self.config.metric]
        found = compute(self._features_of(variant, half), self.halves[half].features(self.extractor))
        if found.warning and found.warning not in self._warned:
            self._warned.add(found.warning)
            self.workers.console.warn(found.warning)
        return Value.of(found)

    def _compare(self, before: Variant, after: Variant) -> Comparison:
        """By the half that has chosen nothing, with noise that has chosen nothing."""
        of_before, of_after = (self._score(variant, half=1) for variant in (before, after))
        real, (_, resample) = self.halves[1].features(self.extractor), _METRICS[self.config.metric]
        # The same generator draws the same images of both.
        first, second = (resample(self._features_of(each, 1), real, bootstrap.new_rng()) for each in (before, after))
        difference = of_after.value - of_before.value
        return Comparison(of_before, of_after, Value(difference, bootstrap.around(difference, second - first)))

    def _features_of(self, variant: Variant, half: int) -> Tensor:
        """Of the images that are compared with this half, float32 [N, D] on the CPU."""
        key = (*variant.identity(), half)
        if key not in self._features:
            images = self._images(variant, self.config.seed + half, self.config.num_images)
            self._features[key] = images.features(self.extractor)
        return self._features[key]

    def _images(self, variant: Variant, seed: int, count: int) -> SampledImages:
        config = self.config
        how = (self._engine(variant), self._recipe(variant, seed), count, config.batch_size)
        return SampledImages(*how, self.workers, DependsOn(versions={}), variant.model.values)

    def _engine(self, variant: Variant) -> Engine:
        compute = replace(PLAIN, mixed_precision=self.config.mixed_precision)
        return open_engine(variant.model, self.workers.device, compute)

    def _recipe(self, variant: Variant, seed: int) -> Recipe:
        steps = self.config.num_inference_steps
        return Recipe(seed, variant.sampler, steps, self.resolution, guidance=variant.guidance)

    def _leave(self, record: Record, original: Variant, final: Variant) -> Record:
        """Write the model, what goes with it, and at last the recipe."""
        output, guidance = output_of(self.config), final.guidance
        picture = self._before_after(original, final)
        for name, model in ((PIPELINE, final.model), (GUIDE, None if guidance is None else guidance.model)):
            if model is not None:
                save_pipeline(output / name, model.unet, model.noise_scheduler, model.step, model.weights, model.values)
        if final.sampler.name == FITTED:
            write_steps(output / STEPS, self._engine(final).fitted_steps(self._recipe(final, self.config.seed)))
        pictures.save(picture, output / PICTURE)
        sampler = {"name": final.sampler.name, **final.sampler.arguments}
        recipe = KeptRecipe(sampler, self.config.num_inference_steps, None if guidance is None else guidance.scale)
        overall = self._compare(original, final) if any(stage.kept for stage in record.stages) else None
        record = replace(record, overall=overall, recipe=recipe)
        write_atomic(output / CARD, card(record, self.config, output).encode())
        record.write(output)
        return record

    def _before_after(self, original: Variant, final: Variant) -> Image.Image:
        """Images before, above those after, from the same noise, which is that of no score."""
        rows = [self._images(each, self.config.seed + 2, _SHOWN_IMAGES).pixels().cpu() for each in (original, final)]
        return pictures.rows([pictures.shown(row, self.model.values) for row in rows])

    def _identity(self) -> dict[str, Any]:
        """What the scores depend on, as plain values."""
        config, sampler = self.config, self.config.sampler
        keys = ("stages", "widths", "scales", "samplers", "num_inference_steps", "metric", "num_images", "seed")
        chosen = {key: getattr(config, key) for key in (*keys, "mixed_precision")}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()}
        return plain | {
            "pipeline": self.model.digest,
            "sampler": {"name": sampler.name, **sampler.arguments},
            "extractor": [self.extractor.name, self.extractor.weights_hash],
            "held_out": [half.described.hash for half in self.halves],
        }

    def _announce(self) -> None:
        config, (first, second) = self.config, (len(half.images) for half in self.halves)
        made = f"{config.num_images:,} for each score: {config.sampler.name}, {config.num_inference_steps} steps"
        rows = {"model": self.model.label, "images": made}
        rows["against"] = f"{first:,} held-out images to choose by, {second:,} others to decide by"
        rows["device"] = device_name(self.workers.device)
        self.workers.console.table(rows)
