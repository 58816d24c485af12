"""What to do next with a run, at the top of its report: go on, stop or get more images, and the commands."""

from collections.abc import Iterator, Sequence

from ddpm_train.config.metrics import FEWEST_IMAGES, metric_label
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.report import commands
from ddpm_train.report.certificate import shows_copies
from ddpm_train.report.evidence import Evidence
from ddpm_train.report.findings import Finding, main_score, small_learning_rate, trend
from ddpm_train.report.formatting import count, duration
from ddpm_train.runs.checkpoint import step_name
from ddpm_train.runs.folder import BEST, CHECKPOINTS
from ddpm_train.runs.length import longer
from ddpm_train.system.console import counted


def verdict(evidence: Evidence) -> Finding:
    """Whether to go on with a run, to stop or to get more images."""
    answer, why = _verdict(evidence)
    return Finding("What to do now?", answer, [why])


def _verdict(evidence: Evidence) -> tuple[str, str]:
    kind, forecast, held_out = trend(evidence.held_out_loss).kind, evidence.forecast, evidence.held_out_images
    if not evidence.finished:
        return "Let it go on", "It has not come to its last step yet."
    if evidence.copying and shows_copies(evidence.copying):
        return "Stop, and get more images", "Some of its samples are copies of training images."
    if evidence.is_noise:
        return "Go on", "It was trained too briefly to judge it."
    if held_out is not None and held_out < FEWEST_IMAGES:
        return "Get more images", f"{counted(held_out, 'held-out image')} cannot tell whether more steps help."
    if kind == "rose":
        return "Stop, and get more images", "It got worse, since it has begun to learn its training images by heart."
    ahead = 2 if kind == "falling" else 1  # times the steps that it has
    if forecast is not None and forecast.step <= ahead * (evidence.step or 0):
        return "Get more images", f"Copying of training images may begin at {forecast}. More images put that off."
    answers = {
        "falling": ("Go on", "It was still getting better at the end."),
        "level": ("Stop", "More steps of this run bring little. More images, or a larger model, may do better."),
        "unknown": ("Not known", "The held-out loss at several steps would say whether more steps help."),
    }
    return answers[kind]


def advice(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What to do and why, and the command if it is one, else ""; the most useful first."""
    if evidence.is_run:
        yield from _training_advice(evidence)
        yield from _best_advice(evidence)
    held_out = evidence.held_out_images
    can_show_copies = held_out is None or held_out >= FEWEST_IMAGES
    if evidence.is_run and (main_score(evidence) is None or (can_show_copies and not evidence.copying)):
        yield "Score its images, and see whether it copies:", commands.evaluate(evidence)
    yield from _sampling_advice(evidence)


def _training_advice(evidence: Evidence) -> Iterator[tuple[str, str]]:
    step, found = evidence.step, trend(evidence.held_out_loss)
    if step is None:
        return
    if not evidence.finished:
        max_steps = evidence.value("train", "max_steps")
        end = f" of {count(max_steps)}" if max_steps else ""
        yield (
            f"It stands at step {count(step)}{end}. The same command goes on, as does this:",
            commands.resume(evidence),
        )
    elif found.kind == "falling":
        yield from _longer(evidence, step)
    text = ""
    if found.kind == "level" and small_learning_rate(evidence):
        text = (
            "A new run with more steps, and so a longer learning rate schedule, or with a larger model may do better; "
            "a few more steps of this one will not."
        )
    elif found.kind == "level":
        text = "More steps will bring little at these settings; a larger model or more images may do better."
    elif found.kind == "rose":
        text = (
            "It has begun to learn its training images by heart. More images, dataset.random_flip=true (where a "
            "mirrored image is a plausible one), model.dropout=0.1 or fewer steps may do better."
        )
    elif found.kind == "unknown" and evidence.finished and evidence.value("evaluation", "name") != "none":
        why = "Whether more steps help is not known: that needs the held-out loss at several steps. Measure it, and "
        yield from _longer(evidence, step, why, [f"evaluation.every_steps={max(1, step // 10)}"])
    if text:
        yield text, ""


def _longer(evidence: Evidence, step: int, why: str = "", also: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    try:
        overrides, jumps = longer(evidence.path, evidence.config, step)
    except Mistakes:  # its config is another program's, or damaged
        return
    text = f"{why}{'t' if why else 'T'}rain it longer, for instance twice as long"
    yield f"{text} ({jumps}):" if jumps else f"{text}:", commands.resume(evidence, [*overrides, *also])


def _best_advice(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Where another step than the last was the best, and is kept."""
    best, checkpoints = evidence.result.get("best_step"), evidence.path / CHECKPOINTS
    if evidence.finished and best not in (None, evidence.step) and (checkpoints / step_name(best)).is_dir():
        label = metric_label(evidence.result["objective"])
        text = f"{label} was best at step {count(best)}, whose checkpoint is kept:"
        yield text, commands.sample(evidence, of=checkpoints / BEST)


def _sampling_advice(evidence: Evidence) -> Iterator[tuple[str, str]]:
    best = evidence.cost.get("fewest_within_5_percent")
    for row in evidence.cost.get("rows", []):
        sampler, steps, seconds = row["sampler"], row["num_inference_steps"], row["seconds_per_image"]
        if best and (sampler, steps) == (best["sampler"], best["num_inference_steps"]):
            text = (
                f"Sample in {count(steps)} steps of {sampler}, at {duration(seconds)} an image: no fewer come "
                "within 5 % of the score of the most steps."
            )
            yield text, commands.sample(evidence, sampler, steps) if evidence.is_run else ""
