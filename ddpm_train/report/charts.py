"""The charts of a run and of its scores; a function returns None where there is nothing to show.

However long the run, a line has at most `BUCKETS` points: the smallest and the largest value of each bucket of steps
span a band, so that no spike is lost.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from ddpm_train.config.metrics import metric_label
from ddpm_train.report.evidence import Evidence, Floats, Series
from ddpm_train.report.formatting import count, duration, measured, number, tick
from ddpm_train.report.plots import COLOURS, CURVES, Chart, mark_points, new_axes, styled
from ddpm_train.report.stored import Floor, Score

BUCKETS = 300
SMOOTHED_SHARE = 0.02  # of the run: the width of the moving mean
BAND = 0.28  # the opacity of a band


class Buckets(NamedTuple):
    """A long series, shortened: of each bucket a step, the extremes, and the moving mean there; float64 [<= 300]."""

    steps: Floats
    low: Floats
    high: Floats
    mean: Floats


def shorten(series: Series) -> Buckets:
    """Minimum, maximum and moving mean (over `SMOOTHED_SHARE` of the run) in buckets of equally many records."""
    length = len(series)
    starts = np.linspace(0, length, min(length, BUCKETS), endpoint=False).astype(int)
    middles = (starts + np.append(starts[1:], length) - 1) // 2
    low, high = np.minimum.reduceat(series.values, starts), np.maximum.reduceat(series.values, starts)
    return Buckets(series.steps[middles], low, high, moving_mean(series.values)[middles])


def moving_mean(values: Floats) -> Floats:
    """Centred also at the beginning, where values fall fast, and therefore over fewer; one-sided at the end."""
    index = np.arange(len(values))
    half = max(1, round(SMOOTHED_SHARE * len(values) / 2))
    before = np.minimum(half, index)
    after = np.minimum(before, len(values) - 1 - index)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def loss(evidence: Evidence) -> Chart | None:
    training, held_out = evidence.series("loss"), evidence.held_out_loss
    if len(training) < 2:
        return None
    description = f"The training loss ends at {number(float(shorten(training).mean[-1]))} (moving mean)"
    if not len(held_out):
        return over_steps("Training loss", f"{description}.", training, "loss")
    description += f", the held-out loss at {number(held_out.last)}."
    chart = over_steps("Training and held-out loss", description, training, "loss")
    _draw_held_out(chart.axes, held_out, label="held-out")
    return chart


def held_out_loss(evidence: Evidence) -> Chart | None:
    """The held-out loss alone, on a scale of its own."""
    series = evidence.held_out_loss
    if len(series) < 2:
        return None
    lowest = int(np.argmin(series.values))
    description = f"Lowest at step {count(series.steps[lowest])}: {number(series.values[lowest])}."
    if lowest < len(series) - 1:
        description += f" At the end: {number(series.last)}."
    axes = new_axes("step", "held-out loss", log_y=series.values.min() > 0)
    _draw_held_out(axes, series)
    axes.set_xlim(0)
    return Chart("Held-out loss alone", description, axes)


@styled
def loss_by_timestep(curves: dict[str, dict[str, Any]]) -> Chart:
    """How well noise is predicted at each timestep.

    Args:
        curves: by what they are called, such as "step 1,400", the newest last: `edges` [N + 1] of the bins of timesteps
            and the mean `loss` [N] in each, None in a bin without an image. At most four are drawn.
    """
    names = [list(curves)[index] for index in spread(len(curves), len(CURVES))]
    losses = [np.array(curves[name]["loss"], dtype=float) for name in names]
    edges, hardest = curves[names[-1]]["edges"], int(np.nanargmax(losses[-1]))
    axes = new_axes("timestep t (noise grows)", "held-out loss", log_y=np.nanmin(losses) > 0)
    for place, (name, values) in enumerate(zip(reversed(names), reversed(losses), strict=True)):
        bins = curves[name]["edges"]
        axes.stairs(values, bins, baseline=None, color=CURVES[place], linewidth=1.5, label=name, zorder=3 - place / 10)
    axes.set_xlim(edges[0], edges[-1])
    description = (
        f"At {names[-1]} the loss is largest for t from {edges[hardest]} to {edges[hardest + 1]}: "
        f"{number(losses[-1][hardest])}."
    )
    return Chart("Held-out loss by timestep", description, axes)


def learned_by_timestep(floor: Floor) -> Chart:
    """The held-out loss in each part of the schedule, above what no model's is below, and beside the copier's."""
    parts = {name: np.array(values, dtype=float) for name, values in floor.by_timestep.items()}
    edges, loss, least, copier = parts["edges"], parts["loss"], parts["least"], parts["copier"]
    top = 2 * float(np.nanmax(loss))
    # What is left goes to 0 where there is little noise; the copier's loss grows beyond all bounds there.
    axes = new_axes("timestep t (noise grows)", "held-out loss", log_y=True)
    curves = {"this model": loss, "no model is below": least, "a copier of the training images": copier}
    for place, (name, values) in enumerate(curves.items()):
        axes.stairs(values.clip(top / 1e4, top), edges, baseline=None, color=CURVES[place], linewidth=1.5, label=name)
    axes.set_xlim(edges[0], edges[-1])
    widest = int(np.nanargmax(loss - least))
    description = (
        f"Most may be left to learn for t from {count(edges[widest])} to {count(edges[widest + 1])}: "
        f"{number(float((loss - least)[widest]))}. Where the copier is above the model, knowing the training images by "
        "heart is worse than what it has learned."
    )
    return Chart("What is left, by timestep", description, axes)


def scores_over_steps(evidence: Evidence) -> Iterator[Chart]:
    """A chart for each score that was measured more than once during training."""
    measured_at: dict[str, list[tuple[int, Score]]] = {}
    for evaluation in evidence.evaluations:
        for score in evaluation.scores:
            if score.metric != "held_out_loss":
                measured_at.setdefault(score.name, []).append((evaluation.step, score))
    yield from (_score_over_steps(points) for points in measured_at.values() if len(points) > 1)


def _score_over_steps(points: list[tuple[int, Score]]) -> Chart:
    steps = [step for step, _ in points]
    scores = [score for _, score in points]
    values = [score.value for score in scores]
    low, high = np.transpose([score.interval or [score.value, score.value] for score in scores])
    last, name = scores[-1], metric_label(scores[-1].metric)
    best = int(np.argmin(values) if last.lower_is_better else np.argmax(values))
    axes = new_axes("step", name, log_y=last.lower_is_better and low.min() > 0)
    label = f"value, with its {100 * last.confidence:.0f} % interval" if last.interval else None
    axes.fill_between(steps, low, high, color=CURVES[0], alpha=BAND)
    axes.plot(steps, values, color=CURVES[0], label=label)
    titles = [f"step {count(step)}: {measured(score.value, score.interval)}" for step, score in points]
    mark_points(axes, steps, values, titles, CURVES[0])
    axes.set_xlim(0)
    description = (
        f"Best at step {count(steps[best])}: {measured(values[best], scores[best].interval)}; "
        f"{'lower' if last.lower_is_better else 'higher'} is better."
    )
    return Chart(f"{name} over the run", description, axes)


def bound_by_timestep(evidence: Evidence) -> Chart | None:
    """At which timesteps the bits of the variational bound are spent."""
    terms = evidence.bound.get("by_timestep")
    if not terms or len(terms["timesteps"]) < 2:
        return None
    timesteps, bits = terms["timesteps"], np.array(terms["bits_per_dim"])
    description = f"The largest term is {number(bits.max())} bits per dimension, at t = {timesteps[np.argmax(bits)]}."
    axes = new_axes("timestep t (noise grows)", "bits per dimension", log_y=bits.min() > 0)
    axes.plot(timesteps, bits, color=CURVES[0])
    return Chart("Where the bits go", description, axes)


@styled
def quality_against_cost(cost: dict[str, Any]) -> Chart:
    """Each sampler's score at each number of steps, against the seconds that an image takes.

    Args:
        cost: as `scores.json` has it: the name of the `metric`, and `rows` of one score each.
    """
    rows, name = sorted(cost["rows"], key=lambda row: row["seconds_per_image"]), metric_label(cost["metric"])
    ends = [row.get("interval") or [row["value"], row["value"]] for row in rows]
    axes = new_axes("seconds for an image", name, log_x=True, log_y=np.min(ends) > 0)
    for place, sampler in enumerate(dict.fromkeys(row["sampler"] for row in cost["rows"])):
        _draw_sampler(axes, sampler, [row for row in rows if row["sampler"] == sampler], place)
    best = cost.get("fewest_within_5_percent")
    for row in rows:
        if best and all(row[key] == value for key, value in best.items()):
            axes.plot(row["seconds_per_image"], row["value"], "o", markersize=13, mfc="none", mec=COLOURS["quiet"])
    description = "Beside each point stands its number of steps"
    description += "; the ring is around the row that is marked below." if best else "."
    return Chart(f"{name} against the time for an image", description, axes)


def _draw_sampler(axes: Axes, sampler: str, rows: list[dict[str, Any]], place: int) -> None:
    colour = CURVES[place % len(CURVES)]
    seconds, values = ([row[key] for row in rows] for key in ("seconds_per_image", "value"))
    low, high = np.transpose([row.get("interval") or [row["value"], row["value"]] for row in rows])
    dashes, errors = ["-", "--", ":"][place // len(CURVES) % 3], [values - low, high - values]
    axes.errorbar(seconds, values, errors, color=colour, capsize=2, linestyle=dashes, label=sampler)
    titles = []
    for row in rows:
        steps, shown = row["num_inference_steps"], measured(row["value"], row.get("interval"))
        titles.append(f"{sampler}, {steps} steps: {shown}, {duration(row['seconds_per_image'])} an image")
        at = (row["seconds_per_image"], row["value"])
        axes.annotate(str(steps), at, xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour)
    mark_points(axes, seconds, values, titles, colour)


def speed(evidence: Evidence) -> Chart | None:
    rate = evidence.series("images_per_second")
    if len(rate) < 2:
        return None
    description = f"Half of the steps ran at {number(float(np.median(rate.values)))} images per second or faster."
    chart = over_steps("Images per second", description, rate, "images per second", log=False)
    chart.axes.set_ylim(0)
    return chart


def learning_rate(evidence: Evidence) -> Chart | None:
    rate = evidence.series("lr")
    if len(rate) < 2:
        return None
    description = f"It peaks at {tick(float(rate.values.max()))} and ends at {number(rate.last, 2)}."
    short, axes = shorten(rate), new_axes("step", "learning rate")
    axes.plot(short.steps, short.low, color=CURVES[0])
    axes.set_xlim(0)
    axes.set_ylim(0)
    return Chart("Learning rate", description, axes)


def gradient_norm(evidence: Evidence) -> Chart | None:
    norm, limit = evidence.series("grad_norm"), evidence.value("train", "max_grad_norm")
    if len(norm) < 2:
        return None
    if not limit:
        return over_steps("Gradient norm", "The norm before clipping.", norm, "norm")
    description = f"{100 * (norm.values > limit).mean():.0f} % of the steps were clipped to a norm of {tick(limit)}."
    chart = over_steps("Gradient norm", description, norm, "norm")
    low, high = chart.axes.get_ylim()
    if low <= limit <= high:
        chart.axes.axhline(limit, color=COLOURS["quiet"], linestyle=(0, (4, 4)), linewidth=1, label="clipped above")
    return chart


def over_steps(title: str, description: str, series: Series, y_label: str, *, log: bool = True) -> Chart:
    """A series over the run: its extremes as a band, its moving mean as a line."""
    short = shorten(series)
    axes = new_axes("step", y_label, log_y=log and series.values.min() > 0)
    axes.fill_between(short.steps, short.low, short.high, color=CURVES[0], alpha=BAND, linewidth=1, label="every step")
    axes.plot(short.steps, short.mean, color=CURVES[0], label="moving mean")
    axes.set_xlim(0)
    return Chart(title, description, axes)


def _draw_held_out(axes: Axes, series: Series, label: str | None = None) -> None:
    axes.plot(series.steps, series.values, color=CURVES[1], label=label)
    pairs = zip(series.steps, series.values, strict=True)
    titles = [f"step {count(step)}: held-out loss {number(value)}" for step, value in pairs]
    mark_points(axes, series.steps, series.values, titles, CURVES[1])


def spread(length: int, most: int) -> list[int]:
    """At most so many indices of a sequence, evenly, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, length - 1, min(length, most))})
