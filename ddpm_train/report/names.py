"""What metrics are called, and what they say, in the words of the field."""

from ddpm_train.config.metrics import METRICS
from ddpm_train.report.evidence import Score
from ddpm_train.report.numerals import count

_EXTRACTORS = {
    "inception": "Inception v3",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "dinov2": "DINOv2",
    "clip": "CLIP",
}


def name_of(score: str) -> str:
    """The metric's name in the name of a score: "KID" of `kid_efficientnet_lite0_n2048`."""
    return next((metric.label for name, metric in METRICS.items() if score.startswith(name)), score)


def metric_name(score: Score) -> str:
    return name_of(score.metric)


def meaning(score: Score) -> str:
    return METRICS[score.metric].meaning if score.metric in METRICS else ""


def extractor_name(extractor: str) -> str:
    return next((name for family, name in _EXTRACTORS.items() if extractor.startswith(family)), extractor)


def weights_name(weights: str) -> str:
    return {"ema": "averaged weights (EMA)", "unet": "raw weights"}.get(weights, weights)


def circumstances(score: Score) -> str:
    """What a score depends on, in one line: scores of different lines are not to be compared."""
    known = score.depends_on
    parts = []
    if known.get("num_images"):
        parts.append(f"{count(known['num_images'])} images")
    if known.get("extractor"):
        parts.append(f"{extractor_name(known['extractor'])} features")
    if known.get("sampler"):
        steps = known.get("num_inference_steps")
        parts.append(known["sampler"]["name"] + (f", {steps} steps" if steps else ""))
    if known.get("weights"):
        parts.append(weights_name(known["weights"]))
    if known.get("step") is not None:
        parts.append(f"at step {count(known['step'])}")
    reference = known.get("reference") or {}
    if reference.get("dataset"):
        split = f" ({reference['split']})" if reference.get("split") else ""
        parts.append(f"against {reference['dataset']}{split}")
    return " · ".join(parts)
