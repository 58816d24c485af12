"""Whether a model copies its training images, as far as that was measured: a block of the report and of the model
card, the same in both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_train.report.formatting import count, extractor_name, guidance_text, measured, number
from ddpm_train.report.stored import Score


@dataclass(frozen=True)
class Certificate:
    """
    Attributes:
        answer: in a few words.
        rows: what it rests on, a name and a value each.
        score: the copy rate, as it was stored; None: it is not there any more.
    """

    answer: str
    rows: list[tuple[str, str]]
    score: Score | None


def certificate(copying: Mapping[str, Any], scores: Sequence[Score]) -> Certificate | None:
    """What a measured copy rate says, and what it rests on; None: it was not measured.

    Args:
        copying: as `evaluation/copying.py` stores it. Older files know less.
        scores: all that are stored.
    """
    if not copying:
        return None
    same = (each for each in scores if each.metric == "copy_rate" and each.value == copying["copy_rate"])
    score = next(same, None)
    cautions = copying.get("cautions", [score.warning] if score and score.warning else [])
    answer = "Too uncertain to tell" if cautions else "No sign of it"
    if shows_copies(copying):
        answer = "Yes, some of them"
    return Certificate(answer, [*_rows(copying, score), *(("Caution", f"{each}.") for each in cautions)], score)


def shows_copies(copying: Mapping[str, Any]) -> bool:
    """Whether the whole interval of the copy rate lies above the rate of unseen real images."""
    return bool(copying["interval"][0] > copying["held_out_rate"])


def _rows(copying: Mapping[str, Any], score: Score | None) -> Iterator[tuple[str, str]]:
    extractor = extractor_name(copying["extractor"])
    rate = measured(copying["copy_rate"], copying["interval"], percent=True)
    yield "Copy rate", f"{rate} of {count(copying['num_images'])} samples"
    yield "The same of unseen real images", f"{number(100 * copying['held_out_rate'], 2)} %"
    if "threshold" in copying:
        quantile = number(100 * copying["quantile"], 2)
        yield (
            "Threshold",
            f"a distance of {number(copying['threshold'])} to the nearest training image, in {extractor} features: "
            f"the nearest {quantile} % of unseen real images come as near",
        )
        yield "Nearest pair", f"a sample at a distance of {number(copying['nearest_distance'])} from its training image"
        left_out = copying["left_out"]
        others = f"; {count(left_out)} more are training images as well and do not count" if left_out else ""
        yield (
            "Rests on",
            f"{count(copying['held_out_images'])} held-out images{others}; {count(copying['training_images'])} "
            "training images",
        )
    on = score.depends_on if score is not None else {}
    if sampler := on.get("sampler"):  # no more than that: whoever reads the card need not know where the images lie
        made = f"{sampler['name']}, {on.get('num_inference_steps')} steps"
        yield "Samples by", ", ".join(filter(None, (made, guidance_text(on))))
