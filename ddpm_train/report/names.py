"""What metrics are called, and what they say, in the words of the field."""

from ddpm_train.config.metrics import METRICS
from ddpm_train.report.evidence import Score
from ddpm_train.report.formatting import count

_EXTRACTORS = {
    "inception": "Inception v3",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "dinov2": "DINOv2",
    "clip": "CLIP",
}


def meaning(score: Score) -> str:
    return METRICS[score.metric].meaning if score.metric in METRICS else ""


def extractor_name(extractor: str) -> str:
    return next((name for family, name in _EXTRACTORS.items() if extractor.startswith(family)), extractor)


def weights_name(weights: str) -> str:
    return {"ema": "averaged weights (EMA)", "unet": "raw weights"}.get(weights, weights)


def circumstances(score: Score) -> str:
    """What a score depends on, in one line: scores of different lines are not to be compared."""
    known = score.depends_on
    steps, sampler, reference = known.get("num_inference_steps"), known.get("sampler"), known.get("reference") or {}
    split = f" ({reference['split']})" if reference.get("split") else ""
    parts = [
        f"{count(score.num_images)} images" if score.num_images else "",
        f"{extractor_name(known['extractor'])} features" if known.get("extractor") else "",
        sampler["name"] + (f", {steps} steps" if steps else "") if sampler else "",
        weights_name(known.get("weights") or ""),
        f"at step {count(known['step'])}" if known.get("step") is not None else "",
        f"against {reference['dataset']}{split}" if reference.get("dataset") else "",
    ]
    return " · ".join(filter(None, parts))
