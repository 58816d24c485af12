"""Confidence intervals: how far a score might be off if other images had been drawn, of the model and of the data.

All are 95 % intervals from 500 seeded resamples of the images, without computing any image or feature anew:

- FID and KID: the images of both sets are resampled. KID resamples exactly: a resample gives each image a weight, and
  the U-statistic of weighted images is a quadratic form in kernel matrices that are computed once (without pairs of an
  image with itself; of more than `MOST_IMAGES` images so many are taken). A resampled FID would need a matrix square
  root each time, so FID is linearised: each image's influence on it is known in closed form, and the resampled
  influences are summed.
- The Inception score resamples exactly, within its splits.
- Shares (precision, recall, the copy rate): the share's own uncertainty, Beta(k + 1/2, n - k + 1/2) (Jeffreys), which
  has a width even at 0 and 1. The neighbourhoods of precision and recall stay as they are.

The interval says where the *expected score at this number of images* lies: few images make FID larger, which an
interval cannot correct. It does not cover another seed of the training or another extractor. FID's is first order,
which is too rough where FID carries a warning. Between sets that cannot be told apart both are too wide, since the
statistics are degenerate there: on halves of Fashion-MNIST and CIFAR-10 KID's was 1.3 to 2 times, and FID's 1.7 to 3
times, as wide as the scores of other halves spread.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddpm_train.evaluation.scores import CONFIDENCE

RESAMPLES = 500
# Kernel matrices grow with the square of the images: 2 x 5,000 take seconds.
MOST_IMAGES = 5_000
SEED = 2020  # torch-fidelity's
_CHUNK = 2048


def new_rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def weights(rng: np.random.Generator, count: int) -> Tensor:
    """How often each of `count` images is drawn in each resample, float64 [count, RESAMPLES]."""
    return torch.from_numpy(rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).T).double()


def around(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """The interval of a score, from resamples whose own mean may be biased."""
    return ends(value, value + resampled - resampled.mean())


def ends(value: float, drawn: np.ndarray) -> tuple[float, float]:
    """The quantiles of what was drawn, and never less than the value itself: Jeffreys' leave out a share of 0 or 1."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return min(float(low), value), max(float(high), value)


def share(value: float, hits: int | np.ndarray, count: int, rng: np.random.Generator) -> tuple[float, float]:
    """The interval of a share of images; `hits` may differ between resamples, int64 [RESAMPLES]."""
    return ends(value, rng.beta(hits + 0.5, count - hits + 0.5, size=RESAMPLES))


def mean(values: Tensor, rng: np.random.Generator) -> tuple[float, float]:
    """The interval of a mean over images, from float64 [N]."""
    return ends(float(values.mean()), (weights(rng, len(values)).T @ values / len(values)).numpy())


def kid(generated: Tensor, real: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Resampled KID: MMD^2 with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018), unbiased; float64 [RESAMPLES].

    Args:
        generated, real: features, float32 [N, D] and [M, D].
    """
    x, y = (_some(features, rng) for features in (generated, real))
    u, v = weights(rng, len(x)), weights(rng, len(y))
    # A mean is divided by the sum of the weights of its pairs; within a set those are w_i w_j for i != j.
    within = [_kernel_sum(z, z, w, w) / (len(z) ** 2 - (w**2).sum(dim=0)) for z, w in ((x, u), (y, v))]
    between = _kernel_sum(x, y, u, v) / (len(x) * len(y))
    return (within[0] + within[1] - 2 * between).numpy()


def fid(generated: Tensor, real: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Resampled, linearised FID, less FID itself; float64 [RESAMPLES].

    The derivative of |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) by S1 is 1 - T, where T = S2^(1/2) (S2^(1/2) S1
    S2^(1/2))^(-1/2) S2^(1/2) is the optimal transport map from the one Gaussian to the other; by S2 it is 1 - T^(-1).

    Args:
        generated, real: features, float32 [N, D] and [M, D].
    """
    x, y = generated.double(), real.double()
    difference = x.mean(dim=0) - y.mean(dim=0)
    s1, s2 = torch.cov(x.T), torch.cov(y.T)
    root, inverse_root = _roots(s2)
    middle_root, inverse_middle_root = _roots(root @ s1 @ root)
    there, back = root @ inverse_middle_root @ root, inverse_root @ middle_root @ inverse_root
    resampled = torch.zeros(RESAMPLES, dtype=torch.float64)
    for features, transport, sign in ((x, there, 1), (y, back, -1)):
        mean, parts = features.mean(dim=0), []
        for rows in features.split(_CHUNK):
            centred = rows - mean
            transported = ((centred @ transport) * centred).sum(dim=1)
            parts.append(2 * centred @ (sign * difference) + centred.square().sum(dim=1) - transported)
        influence = torch.cat(parts)  # of each image, up to a constant, float64 [N]
        resampled += weights(rng, len(features)).T @ (influence - influence.mean()) / len(features)
    return resampled.numpy()


def inception_score(logits: Tensor, splits: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Resampled Inception scores (Salimans et al. 2016), float64 [RESAMPLES].

    Args:
        logits: float32 [N, classes].
        splits: which images are in each split; the score is the mean over them.
    """
    scores = torch.zeros(RESAMPLES, dtype=torch.float64)
    for split in splits:
        of_split = logits[split].double()
        p, log_p = of_split.softmax(dim=1), of_split.log_softmax(dim=1)
        w = weights(rng, len(split)).T / len(split)
        q = w @ p
        scores += (w @ (p * log_p).sum(dim=1) - torch.special.xlogy(q, q).sum(dim=1)).exp() / len(splits)
    return scores.numpy()


def _some(features: Tensor, rng: np.random.Generator) -> Tensor:
    if len(features) <= MOST_IMAGES:
        return features.double()
    return features[rng.choice(len(features), MOST_IMAGES, replace=False)].double()


def _kernel_sum(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The sum of u_i v_j kernel(x_i, y_j), float64 [RESAMPLES]; within one set without the pairs i = j."""
    total = torch.zeros(u.shape[1], dtype=torch.float64)
    for start in range(0, len(x), _CHUNK):
        rows = slice(start, start + _CHUNK)
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        if x is y:
            kernel[:, start:].fill_diagonal_(0)
        total += (u[rows] * (kernel @ v)).sum(dim=0)
    return total


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The root of a symmetric, positive matrix and its inverse; a direction in which it is zero is zero in both."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    usable = values > values[-1] * len(matrix) * torch.finfo(matrix.dtype).eps
    roots = torch.where(usable, values, 1).sqrt()
    return (vectors * (usable * roots)) @ vectors.T, (vectors * (usable / roots)) @ vectors.T
