"""A sweep in one picture: each parameter against the objective, and the samples of the best jobs side by side."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ddpm_train.cli.sweeps.jobs import Row, varied_keys
from ddpm_train.report.plots import CURVES, label_axes, styled, to_png
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import SAMPLES

_COLUMNS = 4
_MAX_PARAMETERS, _MAX_GRIDS, _MAX_TICKS = 8, 8, 5
_LOGARITHMIC_FROM = 10  # the largest value by the smallest


@styled
def sweep_png(rows: Sequence[Row], objective: str) -> bytes:
    """Draw the sweep as a PNG file.

    Args:
        rows: its jobs, best first.
        objective: the name of what they are compared by.
    """
    keys = varied_keys(rows)[:_MAX_PARAMETERS]
    grids = [(row, path) for row in rows if (path := _newest_grid(row.folder))][:_MAX_GRIDS]
    heights = [3.0] * _lines(len(keys)) + [3.6] * _lines(len(grids))
    columns = min(_COLUMNS, max(len(keys), len(grids), 1))
    figure = Figure(figsize=(3.6 * columns, max(3.0, sum(heights))), dpi=100, layout="constrained")
    if heights:
        places = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
        for axes in places.flat:
            axes.set_axis_off()
        for axes, key in zip(places.flat, keys, strict=False):
            axes.set_axis_on()
            _plot(axes, key, rows, objective)
        for axes, (row, path) in zip(places[_lines(len(keys)) :].flat, grids, strict=False):
            with Image.open(path) as grid:
                axes.imshow(grid.convert("RGB"), interpolation="nearest")
            number = "" if math.isnan(row.objective) else f"{row.objective:.4g}\n"
            axes.set_title(number + row.folder.name.replace(",", "\n"), fontsize=8)
    return to_png(figure)


def _lines(count: int) -> int:
    return math.ceil(count / _COLUMNS)


def _newest_grid(folder: Path) -> Path | None:
    return next(reversed(checkpoint.by_step(folder / SAMPLES, ".png").values()), None)


def _plot(axes: Axes, key: str, rows: Sequence[Row], objective: str) -> None:
    """The objective over one parameter: on a line where all its values are numbers, else by name."""
    known = [row for row in rows if key in row.record.choices and not math.isnan(row.objective)]
    texts = [row.record.choices[key] for row in known]
    heights = [row.objective for row in known]
    label_axes(axes, key, objective)
    axes.margins(x=0.15)
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        axes.scatter(texts, heights, color=CURVES[0])
        return
    axes.scatter(numbers, heights, color=CURVES[0])
    if numbers and min(numbers) > 0 and max(numbers) >= _LOGARITHMIC_FROM * min(numbers):
        axes.set_xscale("log")
    if len(set(numbers)) <= _MAX_TICKS:
        axes.set_xticks(numbers, texts)
        axes.minorticks_off()
