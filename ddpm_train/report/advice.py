"""What to do next, derived from what was found."""

from collections.abc import Iterator

from ddpm_train.config.metrics import metric_label
from ddpm_train.report import commands
from ddpm_train.report.evidence import Evidence
from ddpm_train.report.findings import main_score, small_learning_rate, trend
from ddpm_train.report.formatting import count, duration
from ddpm_train.runs.checkpoint import step_name
from ddpm_train.runs.folder import BEST, CHECKPOINTS

# What to do and why, and the command if it is one, else "".
Advice = tuple[str, str]


def advice(evidence: Evidence) -> Iterator[Advice]:
    """The most useful first."""
    if evidence.is_run:
        yield from _of_training(evidence)
        yield from _of_the_best(evidence)
    if evidence.is_run and (main_score(evidence) is None or not evidence.copying):
        yield "Score its images, and see whether it copies:", commands.evaluate(evidence)
    yield from _of_sampling(evidence)


def _of_training(evidence: Evidence) -> Iterator[Advice]:
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
        yield "Train it longer, for instance twice as long:", commands.resume(evidence, 2 * step)
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
    elif found.kind == "unknown" and evidence.value("evaluation", "name") != "none":
        text = (
            f"Next time measure along the way, with evaluation.every_steps={max(1, step // 10)}: "
            "only so one sees when a run stops getting better."
        )
    if text:
        yield text, ""


def _of_the_best(evidence: Evidence) -> Iterator[Advice]:
    """Where another step than the last was the best, and is kept."""
    best, checkpoints = evidence.result.get("best_step"), evidence.path / CHECKPOINTS
    if evidence.finished and best not in (None, evidence.step) and (checkpoints / step_name(best)).is_dir():
        label = metric_label(evidence.result["objective"])
        text = f"{label} was best at step {count(best)}, whose checkpoint is kept:"
        yield text, commands.sample(evidence, of=checkpoints / BEST)


def _of_sampling(evidence: Evidence) -> Iterator[Advice]:
    best = evidence.cost.get("fewest_within_5_percent")
    for row in evidence.cost.get("rows", []):
        sampler, steps, seconds = row["sampler"], row["num_inference_steps"], row["seconds_per_image"]
        if best and (sampler, steps) == (best["sampler"], best["num_inference_steps"]):
            text = (
                f"Sample in {count(steps)} steps of {sampler}, at {duration(seconds)} an image: no fewer come "
                "within 5 % of the score of the most steps."
            )
            yield text, commands.sample(evidence, sampler, steps) if evidence.is_run else ""
