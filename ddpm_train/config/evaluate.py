"""The keys of `ddpm-evaluate`, typed; the values stand in `conf/evaluate.yaml`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.ema import Weights, Width
from ddpm_train.config.guidance import GuidanceChoice
from ddpm_train.config.idle import idle_mistakes
from ddpm_train.config.metrics import FEWEST_IMAGES, METRICS, FeatureMetricName, MetricName
from ddpm_train.config.mistakes import as_written
from ddpm_train.config.parts import (
    ExtractorChoice,
    FilePath,
    ImageCount,
    Positive,
    Required,
    SamplerChoice,
    Section,
    Seed,
)
from ddpm_train.config.sample import Compare
from ddpm_train.config.schema import Schema


@dataclass(frozen=True)
class CostChoice(Compare):
    """Which samplers and step counts to score, and by what; empty: none."""

    metric: FeatureMetricName


@dataclass(frozen=True)
class WidthChoice(Section):
    """Which widths of a run's average to score, and by what; empty: none."""

    widths: tuple[Width, ...]
    metric: MetricName
    pipeline: FilePath | None  # where the best one is written; None: nowhere


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """All keys of `ddpm-evaluate`."""

    pipeline: Annotated[FilePath, Required]  # what ddpm-sample loads, or a folder of images
    revision: str | None  # of the Hub repository
    weights: Weights
    metrics: tuple[MetricName, ...]
    extractor: ExtractorChoice
    reference: Literal["train", "held_out"]  # which of the dataset's images to compare with
    num_reference_images: Positive | None  # None: all
    num_images: ImageCount  # of the model; of a folder: all
    batch_size: Positive
    seed: Seed
    sampler: SamplerChoice
    num_inference_steps: Positive
    bound_timesteps: Positive | None  # of bits_per_dim, for each image; None: all
    cost: CostChoice
    ema: WidthChoice
    guidance: GuidanceChoice
    output: FilePath | None  # None: `evaluation` in the run's folder, or here
    mixed_precision: Literal["auto", "no", "bf16"]
    compile: bool
    dataset: Dataset | None = None  # None: the run's own
    extensions: tuple[str, ...] = ()  # modules to import, which add choices of the user's own

    @property
    def measures_cost(self) -> bool:
        return bool(self.cost.samplers)

    @property
    def model_metrics(self) -> tuple[str, ...]:
        """The chosen ones, and that of the widths if there are any: those measured with the chosen sampler."""
        return (*self.metrics, self.ema.metric) if self.ema.widths else self.metrics

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """These, and that of the cost if it is measured."""
        return (*self.model_metrics, self.cost.metric) if self.measures_cost else self.model_metrics


def cross_field_mistakes(config: EvaluateConfig) -> Iterator[str]:
    """What single keys cannot show: a line for each combination that cannot work."""
    yield from config.sampler.mistakes()
    yield from config.guidance.mistakes()
    if config.dataset is not None:
        yield from config.dataset.mistakes()
    if "bits_per_dim" not in config.model_metrics:
        yield from idle_mistakes(config, "evaluate", [("bound_timesteps", "without bits_per_dim among metrics")])
    cost = config.cost
    if bool(cost.samplers) != bool(cost.steps):
        missing = "steps=[5,10,25,100]" if cost.samplers else "samplers=[ddim,dpm_solver]"
        given = f"cost.samplers={as_written(cost.samplers)} cost.steps={as_written(cost.steps)}"
        yield f"{given}: needs both lists; add cost.{missing}"
    yield from _width_mistakes(config)
    if not config.model_metrics and not config.measures_cost:
        yield "metrics=[]: nothing to measure; give metrics, ema.widths, or cost.samplers and cost.steps"
    for key in ("num_images", "num_reference_images"):
        count = getattr(config, key)
        if count is not None and count < FEWEST_IMAGES:
            yield f"{key}={count}: too few for a score; use at least {FEWEST_IMAGES}"


def _width_mistakes(config: EvaluateConfig) -> Iterator[str]:
    """What keeps the widths from being judged by images that training never sees."""
    chosen = config.ema
    if not chosen.widths:
        if chosen.pipeline is not None:
            yield f"ema.pipeline={chosen.pipeline}: does nothing without ema.widths=[0.05,0.1]; leave it out"
        return
    needs = METRICS[chosen.metric].needs
    if "training_images" in needs:
        yield f"ema.metric={chosen.metric}: compares with the training images, and would choose by them; use another"
    elif "features" in needs and config.reference != "held_out":
        yield f"ema.metric={chosen.metric}: would choose by the training images; add reference=held_out"


EVALUATION = Schema(EvaluateConfig, cross_field_mistakes)
