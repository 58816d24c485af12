"""FID, KID, precision and recall, Inception score: torch-fidelity's own functions, on features.

The settings are those of torch-fidelity's command line: KID is the mean over 100 subsets of 1,000 images, precision and
recall take the third neighbour, the Inception score ten splits. Where a set has fewer than 1,000 images, KID's subsets
hold half of the smaller set.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ddpm_train.evaluation import bootstrap
from ddpm_train.evaluation.measure import ImageInputs, Result
from ddpm_train.evaluation.scores import Measured

_KID_SUBSETS, _KID_SUBSET_SIZE = 100, 1000
_ISC_SPLITS = 10
_PRC_BATCH = 10_000


def fid(inputs: ImageInputs) -> Iterator[Result]:
    yield "fid", fid_between(inputs.generated, inputs.reference)


def fid_between(generated: Tensor, real: Tensor) -> Measured:
    """Of two sets of features, float32 [N, D] and [M, D] on the CPU."""
    dimension = generated.shape[1]
    statistics = (fid_features_to_statistics(features) for features in (generated, real))
    value = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    warning = (
        f"{len(generated)} images against {len(real)} are too few for a covariance of {dimension} features: "
        "this FID is mostly bias; take more images, or metrics=kid"
    )
    singular = min(len(generated), len(real)) <= dimension
    interval = bootstrap.around(value, bootstrap.fid(generated, real, bootstrap.new_rng()))
    return Measured(value, interval=interval, warning=warning if singular else None)


def kid(inputs: ImageInputs) -> Iterator[Result]:
    yield "kid", kid_between(inputs.generated, inputs.reference)


def kid_between(generated: Tensor, real: Tensor) -> Measured:
    """Of two sets of features, float32 [N, D] and [M, D] on the CPU."""
    fewer = min(len(generated), len(real))
    size = _KID_SUBSET_SIZE if fewer >= _KID_SUBSET_SIZE else fewer // 2
    settings = {"kid_subsets": _KID_SUBSETS, "kid_subset_size": size, "rng_seed": bootstrap.SEED}
    found = kid_features_to_metric(generated, real, **settings, verbose=False)
    value = found[KEY_METRIC_KID_MEAN]
    interval = bootstrap.around(value, bootstrap.kid(generated, real, bootstrap.new_rng()))
    return Measured(value, found[KEY_METRIC_KID_STD], interval)


def precision(inputs: ImageInputs) -> Iterator[Result]:
    yield "precision", _share(inputs.once(_precision_and_recall)[KEY_METRIC_PRECISION], len(inputs.generated))


def recall(inputs: ImageInputs) -> Iterator[Result]:
    yield "recall", _share(inputs.once(_precision_and_recall)[KEY_METRIC_RECALL], len(inputs.reference))


def inception_score(inputs: ImageInputs) -> Iterator[Result]:
    logits = inputs.extractor.logits(inputs.generated)
    found = isc_features_to_metric(logits, splits=_ISC_SPLITS, shuffle=True, rng_seed=bootstrap.SEED)
    count = len(logits)
    shuffled = np.random.RandomState(bootstrap.SEED).permutation(count)  # as torch-fidelity splits
    splits = [shuffled[i * count // _ISC_SPLITS : (i + 1) * count // _ISC_SPLITS] for i in range(_ISC_SPLITS)]
    value = found[KEY_METRIC_ISC_MEAN]
    interval = bootstrap.around(value, bootstrap.inception_score(logits, splits, bootstrap.new_rng()))
    yield "isc", Measured(value, found[KEY_METRIC_ISC_STD], interval)


def _precision_and_recall(inputs: ImageInputs) -> dict[str, float]:
    generated, real = inputs.generated, inputs.reference
    in_parts = max(len(generated), len(real)) > _PRC_BATCH  # all distances at once would take gigabytes
    return prc_features_to_metric(generated, real, prc_batch_size=_PRC_BATCH, save_cpu_ram=in_parts, verbose=False)


def _share(value: float, count: int) -> Measured:
    return Measured(value, interval=bootstrap.share(value, round(value * count), count, bootstrap.new_rng()))
