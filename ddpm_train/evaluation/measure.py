"""Metrics -> scores, in a run and in ddpm-evaluate alike.

A metric is computed by the function in its row of `METRICS`. It yields names, each with a number (a float, or a
`Measured` that says how sure it is), a picture, or a mapping that is stored as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor

from ddpm_train.config.metrics import METRICS, names_needing, score_name
from ddpm_train.config.registry import resolve
from ddpm_train.data.images import Images
from ddpm_train.diffusion.objective import Objective
from ddpm_train.evaluation.image_sets import ImageSet
from ddpm_train.evaluation.real_images import RealImages
from ddpm_train.evaluation.scores import DependsOn, Measured, Score
from ddpm_train.evaluation.workers import Workers
from ddpm_train.system.ranks import on_main

if TYPE_CHECKING:  # of an extra
    from ddpm_train.evaluation.features import Extractor

T = TypeVar("T")
Result = tuple[str, "float | Measured | Score | Image.Image | Mapping[str, Any]"]


@dataclass
class ImageInputs:
    """What a metric of images is computed from, on the main process alone.

    Attributes:
        images: what is scored.
        generated: their features, float32 [N, D] on the CPU.
        reference: those of the real images to compare with, [M, D].
        training_images, training, held_out: the training images, their features, and those of the held-out images,
            for a metric that says it needs them; else None, and empty.
    """

    images: ImageSet
    extractor: "Extractor"
    generated: Tensor
    reference: Tensor
    training_images: Images | None
    training: Tensor
    held_out: Tensor
    _computed: dict[Callable[..., Any], Any] = field(default_factory=dict)

    def once(self, compute: Callable[["ImageInputs"], T]) -> T:
        """`compute(self)`, computed once for all metrics that ask for it."""
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return self._computed[compute]


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What a metric of the model is computed from. All processes compute it together, by `workers.fill`.

    Attributes:
        unet: float32, in eval mode, on its device.
        title: what the model is called in pictures.
        objective: the loss that it was trained with.
        held_out: the images that training never sees, which scores name as their reference.
        timestep_bins: parts of the schedule to tell the loss in; None: none.
        bound_timesteps: of bits_per_dim, for each image; None: all.
    """

    unet: UNet2DModel
    noise_scheduler: DDPMScheduler
    title: str
    objective: Objective
    held_out: RealImages
    seed: int
    batch_size: int
    timestep_bins: int | None
    bound_timesteps: int | None = None
    workers: Workers


def measure_images(
    metrics: Sequence[str],
    images: ImageSet,
    extractor: "Extractor",
    *,
    reference: RealImages,
    training: RealImages,
    held_out: RealImages | None,
) -> Iterator[Result]:
    """Metrics that compare images with real ones; equal on every process, and for any number of them.

    Raises:
        Stopped: all processes, when one of them was asked to stop.
    """
    sees_training, sees_held_out = (names_needing(need, metrics) for need in ("training_images", "held_out_images"))
    nothing = torch.zeros(0, extractor.dimension)
    assert held_out is not None or not sees_held_out  # the checks see to it
    inputs = ImageInputs(
        images=images,
        extractor=extractor,
        reference=reference.features(extractor),
        generated=images.features(extractor),
        training_images=training.images if sees_training else None,
        training=training.features(extractor) if sees_training else nothing,
        held_out=held_out.features(extractor) if held_out and sees_held_out else nothing,
    )

    known = replace(
        images.depends_on,
        num_images=len(inputs.generated),
        extractor=extractor.name,
        versions=images.depends_on.versions | {"extractor_weights": extractor.weights_hash},
    )

    def compute() -> list[Result]:
        results: list[Result] = []
        for name in metrics:
            real = training if name in sees_training else reference
            found = resolve(METRICS[name].compute)(inputs)
            results += _scored(name, found, replace(known, reference=real.described), extractor.warning)
        return results

    yield from on_main(compute)


def measure_model(metrics: Sequence[str], inputs: ModelInputs, depends_on: DependsOn) -> Iterator[Result]:
    """Metrics of the model itself. All processes do this together.

    Raises:
        Stopped: all processes, when one of them was asked to stop.
    """
    real = inputs.held_out
    depends_on = replace(depends_on, num_images=len(real.images), reference=real.described)
    for name in metrics:
        yield from _scored(name, resolve(METRICS[name].compute)(inputs), depends_on)


def _scored(name: str, results: Iterable[Result], known: DependsOn, caution: str | None = None) -> Iterator[Result]:
    """The results, with the metric's own number made a score."""
    for key, value in results:
        if key != name or isinstance(value, Image.Image | Mapping | Score):
            yield key, value
            continue
        measured = value if isinstance(value, Measured) else Measured(float(value))
        score = Score(
            name=score_name(name, known.extractor or "", known.num_images or 0),
            metric=name,
            value=measured.value,
            standard_deviation=measured.standard_deviation,
            interval=measured.interval,
            lower_is_better=METRICS[name].lower_is_better,
            warning="; ".join(filter(None, (measured.warning, caution))) or None,
            depends_on=known if measured.seed is None else replace(known, seed=measured.seed),
        )
        yield score.name, score


@dataclass
class Found:
    """What was measured, by kind.

    Attributes:
        numbers: every number by its name, those of the scores too.
        details: mappings, to be stored as they are.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    details: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def collect(results: Iterable[Result]) -> Found:
    """Take in all results."""
    found = Found()
    for name, value in results:
        if isinstance(value, Score):
            found.scores.append(value)
            found.numbers[name] = value.value
        elif isinstance(value, Image.Image):
            found.pictures[name] = value
        elif isinstance(value, Mapping):
            found.details[name] = value
        else:
            found.numbers[name] = value.value if isinstance(value, Measured) else float(value)
    return found
