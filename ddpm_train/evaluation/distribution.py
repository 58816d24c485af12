"""FID, KID, precision and recall, Inception score: torch-fidelity's own functions, on features.

The settings are those of torch-fidelity's command line: KID is the mean over 100 subsets of 1,000 images, precision and
recall take the third neighbour, the Inception score ten splits. Where a set has fewer than 1,000 images, KID's subsets
hold half of the smaller set.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ddpm_train.config.metrics import LOWER_IS_BETTER, score_name
from ddpm_train.config.parts import Sampler
from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.features import BATCH_IMAGES, Extractor
from ddpm_train.evaluation.reference import ReferenceFeatures
from ddpm_train.evaluation.scores import DependsOn, Reference, Score
from ddpm_train.evaluation.shards import fill_sharded
from ddpm_train.runs.environment import versions
from ddpm_train.sampling.loop import build_sampler, sample, step_arguments
from ddpm_train.system.ranks import on_main
from ddpm_train.system.signals import StopRequest

_KID_SUBSETS, _KID_SUBSET_SIZE = 100, 1000
_ISC_SPLITS = 10
_PRC_BATCH = 10_000
_SEED = 2020  # torch-fidelity's, for subsets and splits; and of the resampling


def distribution_scores(
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler,
    *,
    sampler: Sampler,
    num_inference_steps: int,
    seed: int,
    num_images: int,
    batch_size: int,
    extractor: Extractor,
    reference: ReferenceFeatures,
    metrics: Sequence[str],
    weights: str,
    step: int,
    accelerator: Accelerator,
    stop: StopRequest,
) -> list[Score]:
    """Sample images 0 … num_images-1 of `seed` and score them; the same on every process, and for any number of them.

    Args:
        metrics: of `measures.DISTRIBUTION_METRICS`.
        weights: which of the model's weights `unet` holds: "ema" or "unet".

    Raises:
        Stopped: all processes, when one of them was asked to stop.
    """
    scheduler = build_sampler(sampler.name, noise_scheduler, sampler.arguments)
    scheduler.set_timesteps(num_inference_steps)

    def make(indices: Sequence[int], before_step: Callable[[], None]) -> Tensor:
        return sample(
            unet,
            scheduler,
            indices,
            seed=seed,
            num_inference_steps=num_inference_steps,
            step_arguments=step_arguments(sampler.name, sampler.arguments),
            before_step=before_step,
        )

    features = sampled_features(
        make,
        num_images,
        batch_size=batch_size,
        polls_per_batch=len(scheduler.timesteps),
        extractor=extractor,
        accelerator=accelerator,
        stop=stop,
    )
    depends_on = DependsOn(
        step=step,
        weights=weights,
        sampler={"name": sampler.name, **sampler.arguments},
        num_inference_steps=num_inference_steps,
        seed=seed,
        versions=versions(),
    )
    return on_main(lambda: score_features(features, extractor, reference, metrics, depends_on))


def sampled_features(
    make: Callable[[Sequence[int], Callable[[], None]], Tensor],
    num_images: int,
    *,
    batch_size: int,
    polls_per_batch: int,
    extractor: Extractor,
    accelerator: Accelerator,
    stop: StopRequest,
) -> Tensor:
    """Features of images 0 … num_images-1, float32 [N, D] on the CPU; the images are not kept.

    Each process makes whole groups of `BATCH_IMAGES`, so that an image meets the same others in the extractor however
    many processes there are and whatever the batch of the sampler is.

    Args:
        make: takes indices and a function to call `polls_per_batch` times; returns uint8 [B, C, H, W].
        batch_size: the most indices that `make` is given at once.
    """
    size = batch_size if batch_size < BATCH_IMAGES else batch_size // BATCH_IMAGES * BATCH_IMAGES
    shard_size = max(size, BATCH_IMAGES)
    polls_per_shard = polls_per_batch * -(-shard_size // size)

    def compute(items: range, poll: Callable[[], None]) -> Tensor:
        polls = 0

        def counted() -> None:
            nonlocal polls
            poll()
            polls += 1

        images = torch.cat([make(items[start : start + size], counted) for start in range(0, len(items), size)])
        features = extractor(images)
        while polls < polls_per_shard:  # the last shard may be a small one
            counted()
        return features

    results = torch.zeros(num_images, extractor.dimension, device=extractor.device)
    return fill_sharded(
        results, compute, shard_size, polls_per_batch=polls_per_shard, accelerator=accelerator, stop=stop
    ).cpu()


def score_features(
    generated: Tensor, extractor: Extractor, reference: ReferenceFeatures, metrics: Sequence[str], depends_on: DependsOn
) -> list[Score]:
    """Compare two sets of features.

    Args:
        generated: float32 [N, D] on the CPU.
        reference: with its features, which only the main process has.
        depends_on: what is known of the images; the rest is filled in here.
    """
    depends_on = about(depends_on, len(generated), extractor, reference.described)
    real = reference.features
    neighbours = _precision_and_recall(generated, real) if {"precision", "recall"} & set(metrics) else {}
    scores = []
    for metric in metrics:
        deviation, warning = None, None
        rng = np.random.default_rng(_SEED)
        if metric == "fid":
            value, interval = _fid(generated, real, rng)
            warning = _fid_warning(len(generated), len(real), extractor.dimension)
        elif metric == "kid":
            value, deviation, interval = _kid(generated, real, rng)
        elif metric == "isc":
            value, deviation, interval = _inception_score(extractor.logits(generated), rng)
        else:
            value = neighbours[metric]
            count = len(generated if metric == "precision" else real)
            interval = bootstrap.share(round(value * count), count, rng)
        scores.append(
            Score(
                name=score_name(metric, extractor.name, len(generated)),
                metric=metric,
                value=value,
                standard_deviation=deviation,
                interval=interval,
                lower_is_better=LOWER_IS_BETTER[metric],
                warning="; ".join(filter(None, (warning, extractor.warning))) or None,
                depends_on=depends_on,
            )
        )
    return scores


def about(known: DependsOn, num_images: int, extractor: Extractor, reference: Reference) -> DependsOn:
    """What is known of the images, and what they were compared with and by."""
    return replace(
        known,
        num_images=num_images,
        extractor=extractor.name,
        reference=reference,
        versions=known.versions | {"extractor_weights": extractor.weights_hash},
    )


def _fid(generated: Tensor, real: Tensor, rng: np.random.Generator) -> tuple[float, tuple[float, float]]:
    statistics = (fid_features_to_statistics(features) for features in (generated, real))
    value = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    return value, bootstrap.around(value, bootstrap.fid(generated, real, rng))


def _fid_warning(num_generated: int, num_real: int, dimension: int) -> str | None:
    if min(num_generated, num_real) > dimension:
        return None
    return (
        f"{num_generated} images against {num_real}, and {dimension} features: a covariance of fewer images than "
        "features is singular, and this FID is mostly its bias; take more images, or KID"
    )


def _kid(generated: Tensor, real: Tensor, rng: np.random.Generator) -> tuple[float, float, tuple[float, float]]:
    fewer = min(len(generated), len(real))
    found = kid_features_to_metric(
        generated,
        real,
        kid_subsets=_KID_SUBSETS,
        kid_subset_size=_KID_SUBSET_SIZE if fewer >= _KID_SUBSET_SIZE else fewer // 2,
        rng_seed=_SEED,
        verbose=False,
    )
    value = found[KEY_METRIC_KID_MEAN]
    return value, found[KEY_METRIC_KID_STD], bootstrap.around(value, bootstrap.kid(generated, real, rng))


def _inception_score(logits: Tensor, rng: np.random.Generator) -> tuple[float, float, tuple[float, float]]:
    found = isc_features_to_metric(logits, splits=_ISC_SPLITS, shuffle=True, rng_seed=_SEED)
    count = len(logits)
    shuffled = np.random.RandomState(_SEED).permutation(count)  # as torch-fidelity splits
    splits = [shuffled[i * count // _ISC_SPLITS : (i + 1) * count // _ISC_SPLITS] for i in range(_ISC_SPLITS)]
    value = found[KEY_METRIC_ISC_MEAN]
    interval = bootstrap.around(value, bootstrap.inception_score(logits, splits, rng))
    return value, found[KEY_METRIC_ISC_STD], interval


def _precision_and_recall(generated: Tensor, real: Tensor) -> dict[str, float]:
    found = prc_features_to_metric(
        generated,
        real,
        prc_batch_size=_PRC_BATCH,
        save_cpu_ram=max(len(generated), len(real)) > _PRC_BATCH,  # all distances at once would take gigabytes
        verbose=False,
    )
    return {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL]}
