"""What metrics are called, and what they say, in the words of the field."""

from ddpm_train.report.evidence import Score
from ddpm_train.report.formatting import count

_NAMES = {
    "kid": "KID",
    "fid": "FID",
    "precision": "Precision",
    "recall": "Recall",
    "isc": "Inception score",
    "bits_per_dim": "Bits per dimension",
    "held_out_loss": "Held-out loss",
    "copy_rate": "Copy rate",
}
_MEANINGS = {
    "kid": "How far the samples are from real images in feature space; 0 is as close as real images are to each other. "
    "Not biased by the number of images.",
    "fid": "How far the samples are from real images in feature space. Few images make it larger: compare only scores "
    "of the same number of images.",
    "precision": "The share of samples that look like real images.",
    "recall": "The share of real images that the samples cover: variety.",
    "isc": "How clearly the samples fall into a classifier's classes, and into how many.",
    "bits_per_dim": "An upper bound on the bits that a held-out image takes, per pixel and channel.",
    "held_out_loss": "The training objective on images that training never sees, always at the same noise.",
    "copy_rate": "The share of samples that are nearer to a training image than unseen real images usually are.",
}
_EXTRACTORS = {
    "inception": "Inception v3",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "dinov2": "DINOv2",
    "clip": "CLIP",
}


def name_of(score: str) -> str:
    """What a metric is called, also in the name of a score: "KID" of `kid_efficientnet_lite0_n2048`."""
    return next((name for metric, name in _NAMES.items() if score.startswith(metric)), score)


def meaning(score: Score) -> str:
    return _MEANINGS.get(score.metric, "")


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
