"""The report's charts; each is None where there is nothing to show in it."""

from collections.abc import Iterator

import numpy as np

from ddpm_train.report.charts import Axis, Chart, over_steps, shorten, span, step_axis, titles
from ddpm_train.report.evidence import Evidence, Floats, Score, Series, read_score
from ddpm_train.report.findings import held_out
from ddpm_train.report.names import metric_name, name_of
from ddpm_train.report.numerals import count, duration, measured, number, tick

MAX_CURVES = 4  # in one plot; style.css has as many colours


def loss(evidence: Evidence) -> Chart | None:
    training, unseen = evidence.series("loss"), held_out(evidence)
    if len(training) < 2:
        return None
    ends = f"The training loss ends at {number(float(shorten(training).smooth[-1]))} (moving mean)"
    ends += f", the held-out loss at {number(unseen.last)}." if len(unseen) else "."
    chart = over_steps("Training loss", ends, training, unit="loss", log=True, beside=unseen)
    chart.legend = [("raw", "every step"), ("curve-0", "moving mean")]
    if len(unseen):
        chart.title = "Training and held-out loss"
        chart.legend.append(("curve-1", "held-out"))
        chart.line("curve-1", unseen.steps, unseen.values)
        chart.points("curve-1", unseen.steps, unseen.values, titles(unseen, "held-out loss"))
    return chart


def held_out_loss(evidence: Evidence) -> Chart | None:
    """The held-out loss by itself, on a scale of its own."""
    unseen = held_out(evidence)
    if len(unseen) < 2:
        return None
    lowest = int(np.argmin(unseen.values))
    step, value = float(unseen.steps[lowest]), float(unseen.values[lowest])
    ends = f"Lowest at step {count(step)}: {number(value)}."
    if lowest < len(unseen) - 1:
        ends += f" At the end: {number(unseen.last)}."
    chart = Chart("Held-out loss by itself", ends, step_axis(unseen), span(unseen.values, log=True, label="loss"))
    chart.legend = [("curve-1", "held-out")]
    chart.line("curve-1", unseen.steps, unseen.values)
    chart.points("curve-1", unseen.steps, unseen.values, titles(unseen, "held-out loss"))
    return chart


def loss_by_timestep(evidence: Evidence) -> Chart | None:
    """How well noise is predicted where there is little of it (t = 0) and where there is nothing else."""
    found = [(one["step"], one["loss_by_timestep"]) for one in evidence.evaluations if one.get("loss_by_timestep")]
    if not found:
        return None
    chosen = [found[index] for index in spread(len(found), MAX_CURVES)]
    edges = np.array(chosen[-1][1]["edges"], dtype=float)
    curves = [np.array([np.nan if loss is None else loss for loss in part["loss"]], dtype=float) for _, part in chosen]
    hardest = int(np.nanargmax(curves[-1]))
    told = (
        f"At step {count(chosen[-1][0])} the loss is largest for t from {edges[hardest]:.0f} to "
        f"{edges[hardest + 1]:.0f}: {number(curves[-1][hardest])}."
    )
    finite = np.concatenate(curves)
    y = span(finite[np.isfinite(finite)], log=True, label="held-out loss")
    chart = Chart("Held-out loss by timestep", told, Axis(edges[0], edges[-1], label="timestep t (noise grows)"), y)
    for place, ((step, _), curve) in enumerate(zip(chosen, curves, strict=True)):
        kind = f"curve-{(len(chosen) - 1 - place)}"
        known = np.repeat(np.isfinite(curve), 2)
        chart.line(kind, np.repeat(edges, 2)[1:-1][known], np.repeat(curve, 2)[known])
        chart.legend.append((kind, f"step {count(step)}"))
    return chart


def scores_over_steps(evidence: Evidence) -> Iterator[Chart]:
    """A chart for each score that was measured more than once during training."""
    measured_at: dict[str, list[tuple[int, Score]]] = {}
    for found in evidence.evaluations:
        for stored in found.get("scores", []):
            if stored["metric"] != "held_out_loss":
                measured_at.setdefault(stored["name"], []).append((found["step"], read_score(stored)))
    for points in measured_at.values():
        if len(points) > 1:
            yield _score_over_steps(points)


def _score_over_steps(points: list[tuple[int, Score]]) -> Chart:
    steps = np.array([step for step, _ in points], dtype=float)
    values = np.array([score.value for _, score in points])
    ends: Floats = np.array([score.interval or [score.value, score.value] for _, score in points])
    last = points[-1][1]
    best = int(np.argmin(values) if last.lower_is_better else np.argmax(values))
    better = "lower" if last.lower_is_better else "higher"
    told = f"Best at step {count(steps[best])}: {measured(values[best], points[best][1].interval)}; {better} is better."
    chart = Chart(
        f"{metric_name(last)} over the run",
        told,
        step_axis(Series(steps, values)),
        span(values, ends, log=last.lower_is_better, label=metric_name(last)),
    )
    chart.area("curve-0", steps, ends[:, 0], ends[:, 1])
    chart.line("curve-0", steps, values)
    said = [f"step {count(step)}: {measured(score.value, score.interval)}" for step, score in points]
    chart.points("curve-0", steps, values, said)
    if last.interval:
        chart.legend = [("curve-0", f"value, with its {100 * last.confidence:.0f} % interval")]
    return chart


def bound_by_timestep(evidence: Evidence) -> Chart | None:
    """Which timesteps the bits of the variational bound are spent at."""
    terms = (evidence.bound or {}).get("by_timestep")
    if not terms or len(terms["timesteps"]) < 2:
        return None
    t, bits = np.array(terms["timesteps"], dtype=float), np.array(terms["bits_per_dim"], dtype=float)
    told = f"The largest term is {number(float(bits.max()))} bits per dimension, at t = {t[np.argmax(bits)]:.0f}."
    x = Axis(float(t.min()), float(t.max()), label="timestep t (noise grows)")
    chart = Chart("Where the bits go", told, x, span(bits, log=True, label="bits per dimension"))
    chart.line("curve-0", t, bits)
    return chart


def quality_against_cost(evidence: Evidence) -> Chart | None:
    """Each sampler's score at each number of steps, against what an image costs."""
    cost = evidence.cost
    if not cost or len(cost["rows"]) < 2:
        return None
    rows = cost["rows"]
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))[:MAX_CURVES]
    seconds = np.array([row["seconds_per_image"] for row in rows], dtype=float)
    values = np.array([row["value"] for row in rows], dtype=float)
    told = f"{len(rows)} combinations of sampler and number of steps; each point says which."
    x = span(seconds, log=True, label="seconds for an image")
    name = name_of(cost["metric"])
    chart = Chart(f"{name} against the time for an image", told, x, span(values, log=True, label=name))
    for place, sampler in enumerate(samplers):
        mine = sorted((row for row in rows if row["sampler"] == sampler), key=lambda row: row["seconds_per_image"])
        x_values, y_values = (np.array([row[key] for row in mine], float) for key in ("seconds_per_image", "value"))
        said = [
            f"{sampler}, {row['num_inference_steps']} steps: {measured(row['value'], row.get('interval'))}, "
            f"{duration(row['seconds_per_image'])} an image"
            for row in mine
        ]
        chart.line(f"curve-{place}", x_values, y_values)
        chart.points(f"curve-{place}", x_values, y_values, said)
        chart.legend.append((f"curve-{place}", sampler))
    return chart


def speed(evidence: Evidence) -> Chart | None:
    rate = evidence.series("images_per_second")
    if len(rate) < 2:
        return None
    told = f"Half of the steps ran at {number(float(np.median(rate.values)))} images per second or faster."
    return over_steps("Images per second", told, rate, unit="images per second", from_zero=True)


def learning_rate(evidence: Evidence) -> Chart | None:
    rate = evidence.series("lr")
    if len(rate) < 2:
        return None
    told = f"It peaks at {tick(float(rate.values.max()))} and ends at {number(rate.last, 2)}."
    chart = Chart("Learning rate", told, step_axis(rate), span(rate.values, from_zero=True, label="learning rate"))
    short = shorten(rate)
    chart.line("curve-0", short.steps, short.low)
    chart.legend = [("curve-0", "every step")]
    return chart


def gradient_norm(evidence: Evidence) -> Chart | None:
    norm = evidence.series("grad_norm")
    if len(norm) < 2:
        return None
    limit = evidence.value("train", "max_grad_norm")
    told = "The norm before clipping."
    if limit:
        told = (
            f"{100 * float((norm.values > limit).mean()):.0f} % of the steps were clipped to a norm of {tick(limit)}."
        )
    chart = over_steps("Gradient norm", told, norm, unit="norm", log=True)
    chart.legend = [("raw", "every step"), ("curve-0", "moving mean")]
    if limit:
        chart.rule("limit", limit, "clipped above")
    return chart


def spread(length: int, most: int) -> list[int]:
    """At most so many indices of a sequence, evenly, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, length - 1, min(length, most))})
