"""Plots of what was measured, as PNG files; drawn without a display."""

import io
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:  # which imports torch
    from ddpm_train.evaluation.held_out import LossByTimestep


def plot_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Empty axes in the style of the others; hand the figure to `to_png`."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def loss_by_timestep_png(by_timestep: "LossByTimestep", words: str) -> bytes:
    """The held-out loss over t, one level for each bin; on a logarithmic scale, since it spans orders of magnitude.

    Args:
        words: what was measured, such as "step 1,400".
    """
    figure, axes = plot_axes("timestep t", "held-out loss")
    loss = [float("nan") if value is None else value for value in by_timestep.loss]
    axes.stairs(loss, by_timestep.edges, baseline=None, linewidth=2)
    axes.set_yscale("log")
    axes.set_xlim(by_timestep.edges[0], by_timestep.edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(words)
    return to_png(figure)
