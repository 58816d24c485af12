"""Numbers and names as a person reads them."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ddpm_train.config.metrics import METRICS

if TYPE_CHECKING:  # a sweep needs `duration` alone
    from ddpm_train.report.stored import Score

_EXTRACTORS = {
    "inception": "Inception v3",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "dinov2": "DINOv2",
    "clip": "CLIP",
    "pixels": "pixel statistics",
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: float) -> str:
    """`89600` -> `89,600`."""
    return f"{value:,.0f}"


def number(value: float, digits: int = 3) -> str:
    """To so many significant digits: `0.0712`, `1,234`, `2.10 × 10⁻⁷`."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "not a number"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if -5 < int(exponent) < 7:
        return f"{value:,.{max(0, digits - 1 - int(exponent))}f}"
    return _times_ten_to(mantissa, int(exponent))


def _times_ten_to(mantissa: str, exponent: int) -> str:
    return f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPT)}"


def measured(value: float, interval: list[float] | None, *, percent: bool = False) -> str:
    """A measured value with its interval: `0.0123 (0.0115 to 0.0131)`, `0.40 % (0.10 to 0.90)`."""
    shown, ends = digits(value, interval, percent=percent)
    return f"{shown} ({ends})" if ends else shown


def digits(value: float, interval: list[float] | None, *, percent: bool = False) -> tuple[str, str]:
    """A measured value and its interval (empty if there is none), with the digits that the interval's width bears."""
    factor, unit = (100, " %") if percent else (1, "")
    value, ends = factor * value, [factor * end for end in interval or ()]
    if not ends:
        return number(value) + unit, ""
    width = ends[1] - ends[0]
    if not (math.isfinite(width) and width > 0):
        return number(value) + unit, f"{number(ends[0])} to {number(ends[1])}"
    decimals = max(0, 1 - math.floor(math.log10(width)))
    return f"{value:,.{decimals}f}{unit}", f"{ends[0]:,.{decimals}f} to {ends[1]:,.{decimals}f}"


def duration(seconds: float) -> str:
    """`35 ms`, `4.2 s`, `2 min 30 s`, `3 h 5 min`, `2 d 4 h`."""
    if seconds < 1:
        return f"{number(1000 * seconds, 2)} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    for size, name, part, part_name in units:
        if round(seconds / part) * part >= size:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {name} {rest} {part_name}" if rest else f"{whole} {name}"
    return f"{seconds:.0f} s"


def tick(value: float) -> str:
    """A short label for an axis: `0.05`, `1,400`, `20k`, `1.5M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (size > 1e3 and abs(value) >= size):
            return f"{value / size:.6g}{letter}"
    if value and abs(value) < 1e-4:
        mantissa, exponent = f"{value:.5e}".split("e")
        return _times_ten_to(f"{float(mantissa):g}", int(exponent))
    return f"{value:,.6g}"


def meaning(score: "Score") -> str:
    """What the number of a metric says; empty for a metric of an extension that is not loaded."""
    return METRICS[score.metric].meaning if score.metric in METRICS else ""


def extractor_name(extractor: str) -> str:
    return next((name for family, name in _EXTRACTORS.items() if extractor.startswith(family)), extractor)


def weights_name(weights: str) -> str:
    other = f"averaged weights ({weights})" if weights.startswith("ema@") else weights
    return {"ema": "averaged weights (EMA)", "unet": "raw weights"}.get(weights, other)


def guidance_text(depends_on: Mapping[str, Any]) -> str:
    """That another model guided, and how much; empty if none did."""
    guidance = depends_on.get("guidance")
    return f"autoguidance, scale {guidance.get('scale')}" if isinstance(guidance, dict) else ""


def circumstances(score: "Score") -> str:
    """What a score depends on, in one line: scores of different lines are not to be compared."""
    known = score.depends_on
    steps, sampler, reference = known.get("num_inference_steps"), known.get("sampler"), known.get("reference") or {}
    split = f" ({reference['split']})" if reference.get("split") else ""
    parts = [
        f"{count(score.num_images)} images" if score.num_images else "",
        f"{extractor_name(known['extractor'])} features" if known.get("extractor") else "",
        sampler["name"] + (f", {steps} steps" if steps else "") if sampler else "",
        guidance_text(known),
        weights_name(known.get("weights") or ""),
        f"at step {count(known['step'])}" if known.get("step") is not None else "",
        f"against {reference['dataset']}{split}" if reference.get("dataset") else "",
    ]
    return " · ".join(filter(None, parts))
