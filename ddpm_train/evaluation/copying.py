"""Whether samples copy training images: how near they come to them, against how near unseen real images come."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm_train.diffusion.pixels import shown, to_uint8
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.measure import ImageInputs, Result
from ddpm_train.evaluation.scores import Measured
from ddpm_train.sampling import pictures

# As near to a training image as the nearest held-out images, this share of them, or nearer: counts as a copy.
QUANTILE = 0.01
# Features of one picture that were computed in different batches differ by rounding: by less than this share of the
# features' spread.
_ROUNDING = 1e-4
_CHUNK = 2048
_NUM_SHOWN, _NUM_NEIGHBOURS = 16, 5
# A fast distance that rounds finds candidates; an exact one finds the nearest among them.
_SPARE_CANDIDATES = 4


@dataclass(frozen=True)
class Copying:
    """How near the samples come to the training images.

    Attributes:
        copy_rate: the share of samples that are as near to a training image as the nearest `QUANTILE` of the held-out
            images, or nearer; a model that has learned the distribution and not its examples comes out at
            `held_out_rate`. Held-out images that are training images as well do not count.
        interval: of the copy rate; covers the choice of samples and of held-out images.
        held_out_rate: the same share of the held-out images themselves.
        threshold: the distance from which on a sample does not count.
        num_unseen, num_left_out: how many held-out images gave it, and how many are training images as well.
        cautions: why it cannot be trusted.
        closest: the samples that are nearest to a training image, nearest first, int64 [K].
        neighbours: their nearest training images, int64 [K, n].
        distances: from each sample to its nearest training image, float32 [N].
    """

    copy_rate: float
    interval: tuple[float, float]
    held_out_rate: float
    threshold: float
    num_unseen: int
    num_left_out: int
    cautions: tuple[str, ...]
    closest: Tensor
    neighbours: Tensor
    distances: Tensor

    @property
    def warning(self) -> str | None:
        """What to say beside the rate."""
        text = (
            f"{self.num_left_out} of {self.num_left_out + self.num_unseen} held-out images are training images as well "
            "and were left out; the held-out loss still counts them"
        )
        return "; ".join([text, *self.cautions] if self.num_left_out else self.cautions) or None


def copy_rate(inputs: ImageInputs) -> Iterator[Result]:
    """The row of `METRICS`, with a picture of the samples that come nearest."""
    assert inputs.training_images is not None  # the row names them among its needs
    found = measure_copying(inputs.generated, inputs.training, inputs.held_out)
    samples = inputs.images.load(found.closest.tolist())
    neighbours = [inputs.training_images.load(numbers.tolist()) for numbers in found.neighbours]
    yield "copy_rate", Measured(found.copy_rate, interval=found.interval, warning=found.warning)
    rates = {"copy_rate": found.copy_rate, "interval": list(found.interval), "held_out_rate": found.held_out_rate}
    made_of = {"extractor": inputs.extractor.name, "num_images": len(found.distances), "picture": "nearest.png"}
    rests_on = {
        "step": inputs.images.depends_on.step,
        "threshold": found.threshold,
        "quantile": QUANTILE,
        "nearest_distance": float(found.distances.min()),
        "held_out_images": found.num_unseen,
        "left_out": found.num_left_out,
        "training_images": len(inputs.training),
        "cautions": list(found.cautions),
    }
    yield "copying", rates | made_of | rests_on
    # A row for each sample: the sample, a gap, its nearest training images from the nearest on.
    values = inputs.training_images.values
    samples, *neighbours = (shown(to_uint8(each), values) for each in (samples, *neighbours))
    gap = torch.full_like(samples[:1], 255)
    rows = [torch.cat((sample[None], gap, own)) for sample, own in zip(samples, neighbours, strict=True)]
    yield "nearest", pictures.rows(rows)


def measure_copying(generated: Tensor, training: Tensor, held_out: Tensor) -> Copying:
    """Compare distances in feature space.

    Args:
        generated, training, held_out: features, float32 [N, D], [M, D] and [H, D] on the CPU.
    """
    rng = bootstrap.new_rng()
    to_training, neighbours = nearest(generated, training, min(_NUM_NEIGHBOURS, len(training)))
    of_samples = to_training[:, 0].numpy()
    of_held_out = nearest(held_out, training, 1)[0][:, 0].numpy()
    the_same = _ROUNDING * float(training.std(dim=0, correction=0).norm())
    unseen = of_held_out[of_held_out > the_same]
    # Where every held-out image is a training image, only a sample that is one, too, can be told to be a copy.
    usual = unseen if len(unseen) else np.array([the_same], dtype=np.float32)
    threshold = np.quantile(usual, QUANTILE)
    resampled = np.quantile(rng.choice(usual, (bootstrap.RESAMPLES, len(usual))), QUANTILE, axis=1)
    hits = np.array([(of_samples <= each).sum() for each in resampled])
    closest = torch.from_numpy(np.argsort(of_samples, kind="stable")[:_NUM_SHOWN].copy())
    rate = float((of_samples <= threshold).mean())
    return Copying(
        copy_rate=rate,
        interval=bootstrap.share(rate, hits, len(of_samples), rng),
        held_out_rate=float((usual <= threshold).mean()),
        threshold=float(threshold),
        num_unseen=len(unseen),
        num_left_out=len(held_out) - len(unseen),
        cautions=tuple(_cautions(len(generated), len(unseen))),
        closest=closest,
        neighbours=neighbours[closest],
        distances=to_training[:, 0],
    )


def _cautions(num_samples: int, num_unseen: int) -> Iterator[str]:
    if num_unseen * QUANTILE < 1:
        rare = f"1 in {1 / QUANTILE:.0f} of them"
        yield f"{num_unseen} held-out images are too few to find how near {rare} comes; hold out more"
    if num_samples * QUANTILE < 1:
        yield f"{num_samples} samples are too few to measure a rate of 1 in {1 / QUANTILE:.0f}; make more"


def nearest(features: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest `count` of `among` for each row: distances float32 and numbers int64, both [N, count]."""
    distances, numbers = [], []
    for rows in features.split(_CHUNK):
        candidates = torch.cdist(rows, among).topk(min(count + _SPARE_CANDIDATES, len(among)), largest=False).indices
        exact = torch.stack([(among[own] - row).norm(dim=1) for row, own in zip(rows, candidates, strict=True)])
        ordered = exact.sort(dim=1, stable=True)
        distances.append(ordered.values[:, :count])
        numbers.append(candidates.gather(1, ordered.indices[:, :count]))
    return torch.cat(distances), torch.cat(numbers)
