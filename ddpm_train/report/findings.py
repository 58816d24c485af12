"""The answers at the top of the report, derived from the numbers by `RULES`.

What was not measured is said to be not measured; nothing is guessed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ddpm_train.config.metrics import FEWEST_IMAGES, metric_label, names_of_features_alone
from ddpm_train.config.train import FEWEST_IMAGES_SEEN, FEWEST_STEPS
from ddpm_train.report.evidence import Evidence, Series
from ddpm_train.report.formatting import count, digits, extractor_name, measured, number
from ddpm_train.report.stored import Floor, Score
from ddpm_train.runs.clock import BEGINS, EARLIEST, FARTHEST, LATEST

# A loss that changes by less than this has levelled off.
LEVEL = 0.01
# The stretch at the end of the run over which that is judged.
LAST_SHARE = 0.25
# Below this share of its peak it is the learning rate that makes a loss level off.
SMALL_LR = 0.1

RULES = (
    "“What to do now” follows from the other answers: copies, or a loss that got worse, say “stop”; a loss that still "
    "falls says “go on”; copying that is forecast before twice the steps says “get more images”.",
    f"“Got worse again”: the last held-out loss is more than {100 * LEVEL:.0f} % above the lowest.",
    f"“Still getting better”: otherwise, it fell by at least {100 * LEVEL:.0f} % since the evaluation nearest to "
    f"{100 * (1 - LAST_SHARE):.0f} % of the steps.",
    "“Levelled off”: neither. With a single evaluation the answer is not known.",
    "The score at the top is the KID, or else the FID, of the newest step over the most images.",
    f"“Noise”: fewer than {FEWEST_STEPS:,} steps, or fewer than {FEWEST_IMAGES_SEEN:,} images seen.",
    f"“Too few images to tell”: fewer than {FEWEST_IMAGES} held-out images for the loss, or a score whose interval "
    "is wider than itself.",
    "“Too uncertain to tell”: too few samples or held-out images for the copy rate, and its interval is not above the "
    "rate of unseen real images.",
    "“At least … % learned”: how far the held-out loss has come from that of a model that knows only the mean and the "
    "spread of the images towards a bound that no model's expected loss is below: the loss that the best possible "
    "denoiser of the training images has on these themselves (Karras et al. 2022, appendix B).",
    "“Copying is forecast”: the held-out loss by the training loss, at little noise (signal-to-noise ratios of 40 to "
    f"400), grows above 1 as a power of the steps, and copying is taken to begin where it is {number(BEGINS)}.",
    f"“No copying is in sight”: that ratio does not grow, or comes to {number(EARLIEST)} only after {FARTHEST} times "
    "as many steps.",
    "“Yes, some of them”: the whole interval of the samples' rate lies above the rate of unseen real images.",
)


@dataclass(frozen=True)
class Finding:
    """A question that a person has, the answer in a few words, and the sentences it rests on."""

    question: str
    answer: str
    details: list[str]


@dataclass(frozen=True)
class Trend:
    """How the held-out loss moved at the end of the run."""

    kind: str  # "falling", "level", "rose" or "unknown"
    since: int = 0  # the step from which it is judged; of "rose", the step of the lowest loss
    change: float = 0.0  # relative, from there to the end; above 0 it rose


def findings(evidence: Evidence) -> list[Finding]:
    of_training = [did_it_stop(evidence)] if evidence.is_run else []
    of_learning = [how_much_is_learned(evidence.floor, evidence.series("learned"))] if evidence.floor else []
    return [how_good(evidence), *of_learning, *of_training, does_it_copy(evidence)]


def trend(series: Series) -> Trend:
    if len(series) < 2:
        return Trend("unknown")
    lowest = int(np.argmin(series.values))
    rise = series.last / float(series.values[lowest]) - 1
    if rise > LEVEL:
        return Trend("rose", int(series.steps[lowest]), rise)
    since = int(np.argmin(np.abs(series.steps[:-1] - (1 - LAST_SHARE) * series.steps[-1])))
    change = series.last / float(series.values[since]) - 1
    return Trend("falling" if change <= -LEVEL else "level", int(series.steps[since]), change)


def main_score(evidence: Evidence) -> Score | None:
    """The one at the top of the page; the scores come newest step first, then most samples first."""
    order = ("kid", *(name for name in names_of_features_alone() if name != "kid"))
    images = [score for score in evidence.scores if score.metric in order]
    return min(images, key=lambda score: order.index(score.metric), default=None)


def how_good(evidence: Evidence) -> Finding:
    loss, score = evidence.held_out_loss, main_score(evidence)
    details = []
    if score is not None:
        value, ends = digits(score.value, score.interval)
        unsure = score.interval and score.interval[1] - score.interval[0] > abs(score.value)
        answer = f"{metric_label(score.metric)} {value}{_after(score.step)}{', too few images to tell' * bool(unsure)}"
        better = "Lower is better, 0 is perfect" if score.lower_is_better else "Higher is better"
        interval = f"; {100 * score.confidence:.0f} % interval {ends}" if ends else ""
        over = f", over {count(score.num_images)} samples" if score.num_images else ""
        extractor = str(score.depends_on.get("extractor") or "")
        features = f", in features of {extractor_name(extractor)}" if extractor else ""
        details.append(f"{better}{interval}{over}{features}.")
        details += _yardstick(evidence, score)
        details += _caution(score)
    elif len(loss):
        answer = f"Held-out loss {number(loss.last)}{_after(loss.steps[-1])}"
        details.append("It says how well noise is predicted; how the images look has not been scored.")
    else:
        answer = "Not measured"
        details.append("Neither the held-out loss nor a score of the images is known.")
    if evidence.is_noise:
        answer = f"Noise: it was trained too briefly. {answer}"
    details += _amount(evidence)
    if len(loss):
        first = f"; at step {count(loss.steps[0])} it was {number(loss.values[0])}" if len(loss) > 1 else ""
        held_out = f"{count(evidence.held_out_images)} images" if evidence.held_out_images else "images"
        last = f"At step {count(loss.steps[-1])} the loss on {held_out} that training never sees is {number(loss.last)}"
        details.append(f"{last}{first}.")
    details += [
        f"An unseen image takes at most {measured(bits.value, bits.interval)} bits per dimension."
        for bits in evidence.scores
        if bits.metric == "bits_per_dim"
    ]
    return Finding("How good is it?", answer, details)


def _yardstick(evidence: Evidence, score: Score) -> list[str]:
    """What to compare the score with: the same of real images."""
    real = evidence.yardstick
    if not real or (real["metric"], real["extractor"]) != (score.metric, score.depends_on.get("extractor")):
        return []
    shown = measured(real["value"], real["interval"])
    return [f"The {count(real['num_images'])} real images that training never sees score {shown}."]


def _amount(evidence: Evidence) -> list[str]:
    """How much it was trained."""
    seen, images = evidence.images_seen, evidence.training_images
    if seen is None or not images:
        return []
    return [f"It has seen {count(seen)} images: each of the {count(images)} about {number(seen / images, 2)} times."]


def _after(step: float) -> str:
    return f" after {count(step)} steps" if step else ""


def _caution(score: Score) -> list[str]:
    return [f"Caution: {score.warning.rstrip('.')}."] if score.warning else []


def did_it_stop(evidence: Evidence) -> Finding:
    loss = evidence.held_out_loss
    found = trend(loss)
    amount, since = f"{100 * abs(found.change):.1f} %", f"since step {count(found.since)}"
    still = "at the end" if evidence.finished else "so far"
    answers = {
        "unknown": ("Not known", f"was {'measured only once' if len(loss) else 'not measured'}."),
        "rose": (
            "Yes, and it got worse again",
            f"was lowest at step {count(found.since)} and has risen by {amount} since.",
        ),
        "falling": (f"No: still getting better {still}", f"fell by {amount} {since}."),
        "level": ("Yes, it has levelled off", f"changed by only {amount} {since}."),
    }
    answer, movement = answers[found.kind]
    details = [f"The held-out loss {movement}"]
    if len(loss) and (held_out := evidence.held_out_images) and held_out < FEWEST_IMAGES:
        answer = "Too few images to tell"
        details.append(f"It is measured on {held_out} images only; dataset.validation_fraction holds out more.")
    if found.kind == "level" and small_learning_rate(evidence):
        details.append("Towards the end the learning rate had nearly run out, which levels any loss.")
    if evidence.finished and evidence.result.get("stopped_early"):
        patience = evidence.value("train", "patience")
        why = f"train.patience={patience} evaluations in a row were no better"
        if evidence.result.get("stopped_before_copying"):
            why = "it may begin to copy training images before it is evaluated again (train.stop_before_copying=true)"
        details.append(f"The run ended early: {why}.")
    return Finding("Did it stop getting better?", answer, details)


def how_much_is_learned(floor: Floor, learned: Series) -> Finding:
    """Args:
    floor: of the last evaluation.
    learned: the share after each evaluation.
    """
    share, ends = digits(floor.learned, floor.interval, percent=True)
    loss, least, naive, copier = map(number, (floor.loss, floor.least, floor.naive, floor.copier))
    answer = f"At least {100 * floor.learned:.0f} % of what can be learned"
    told = f"So at least {share} of what lies between is learned (interval {ends})."
    if floor.learned <= 0:
        answer, told = "Nothing yet", "So this model has learned nothing yet that such a model does not know."
    details = [
        f"The held-out loss is {loss}. No model can have less than {least}: so much is left even to one that knows "
        f"{count(floor.num_images)} training images by heart and sees these. One that knows only their mean and "
        f"their spread has {naive}. {told}",
        f"Learning them by heart is not the way: on the held-out images such a copier would have {copier}.",
    ]
    if (then := share_at_twice_the_steps(learned)) is not None:
        gain = 100 * (then - learned.last)
        details.append(f"At this pace, {count(learned.steps[-1])} more steps add about {number(gain, 2)} %.")
    return Finding("How much has it learned?", answer, details)


def share_at_twice_the_steps(learned: Series) -> float | None:
    """Where the share would be if what is left falls as a power of the number of steps, as in the run's second half.

    Such laws hold for losses above what nobody can remove (Henighan et al. 2020, arXiv 2010.14701, for images, too).
    None if there was no evaluation near the half of the steps, or nothing has been gained since.
    """
    if len(learned) < 2:
        return None
    last = learned.steps[-1]
    half = int(np.argmin(np.abs(learned.steps - last / 2)))
    left, before = 1 - learned.last, 1 - float(learned.values[half])
    if not (last / 4 <= learned.steps[half] <= 3 * last / 4 and 0 < left < before):
        return None
    power = np.log(before / left) / np.log(last / learned.steps[half])
    return float(1 - left / 2.0**power)


def when_will_it_copy(evidence: Evidence) -> Iterator[str]:
    """How far the losses on training and on held-out images have parted, and what follows from it."""
    found = evidence.evaluations[-1].memorisation if evidence.evaluations else None
    if found is None:
        return
    ratio, ends = digits(found.ratio, found.interval)
    yield (
        f"At little noise the loss on held-out images is {ratio} times that on training images (interval {ends}). In "
        f"experiments copying began at {number(EARLIEST)} to {number(LATEST)} times."
    )
    if found.forecast is not None:
        yield (
            f"As it grows now, it comes to that at {found.forecast}. That time grows with the number of images "
            "(Bonnaire et al. 2025): with twice as many, copying begins at about twice the step."
        )
    else:
        yield "It does not grow, or so slowly that no copying is in sight."


def small_learning_rate(evidence: Evidence) -> bool:
    rate = evidence.series("lr")
    return bool(len(rate)) and rate.last < SMALL_LR * float(rate.values.max())


def does_it_copy(evidence: Evidence) -> Finding:
    question, copying = "Does it copy its training images?", evidence.copying
    coming = list(when_will_it_copy(evidence))
    if evidence.certificate is None:
        answer = "Not measured"
        if (forecast := evidence.forecast) is not None:
            when = "may have begun" if forecast.step <= (evidence.step or 0) else "is forecast to begin"
            answer = f"Not measured; copying {when} at {forecast}"
        elif coming:
            answer = "Not measured; no copying is in sight"
        few = evidence.held_out_images
        why = f" That needs at least {FEWEST_IMAGES} held-out images, and there are {few}."
        text = "Its samples have not been compared with the training images."
        return Finding(question, answer, [text + why * (few is not None and few < FEWEST_IMAGES), *coming])
    interval, usual = copying["interval"], copying["held_out_rate"]
    value, ends = digits(copying["copy_rate"], interval, percent=True)
    details = [
        f"{value} of {count(copying['num_images'])} samples (interval {ends}) are nearer to a training image than all "
        f"but {number(100 * usual, 2)} % of unseen real images are."
    ]
    score = evidence.certificate.score
    details += _caution(score) if score else []
    details += ["The nearest pairs, and what this rests on, stand below.", *coming]
    return Finding(question, evidence.certificate.answer, details)
