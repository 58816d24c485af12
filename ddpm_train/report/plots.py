"""The one drawing engine: every chart is drawn by matplotlib, and saved as a PNG file or as SVG inside the page.

Importing this module takes a third of a second: import it only where something is drawn.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from ddpm_train.report.formatting import tick

# The light colours of the page, by name; an SVG refers to them by name, and so follows the page into dark and print.
_STYLE_SHEET = (Path(__file__).parent / "style.css").read_text("utf-8")
COLOURS = dict(re.findall(r"--([\w-]+): (#\w{6});", _STYLE_SHEET.partition("}")[0]))
CURVES = [COLOURS[f"curve-{place}"] for place in range(4)]
WIDTH, HEIGHT = 340, 215  # of a chart, in points: about the pixels that a phone has for it
MAX_POINTS = 100
_PNG_DPI = 170
# What surrounds the axes of a chart, in points: its margins, the labels of the axes and the space between these.
_SIDE, _ABOVE, _BELOW, _TICK_PAD, _LEGEND_PAD = 3, 19, 38, 4, 5
_DIGIT, _NARROW = 7.0, 3.5  # of a digit, and of a comma, in that size of the font
_FONT = "DejaVu Sans"  # comes with matplotlib, so that a chart looks the same everywhere
_LEGEND_CHARACTERS = 60  # that fit into one line, five of them for the line before a label
_STYLE = {
    "font.family": _FONT,
    "font.size": 11,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # names come from files and may hold a dollar
    "grid.color": COLOURS["hair"],
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), COLOURS["paper"]),
    **dict.fromkeys(("axes.titlecolor", "axes.labelcolor", "axes.edgecolor"), COLOURS["quiet"]),
    **dict.fromkeys(("xtick.color", "ytick.color"), COLOURS["quiet"]),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "legend.frameon"), False),
    **dict.fromkeys(("ytick.major.size", "ytick.minor.size", "xtick.minor.size"), 0),
    "axes.titlesize": 11,
    "axes.titlepad": 5,
    "axes.axisbelow": True,
    "figure.titlesize": 12,
    "figure.constrained_layout.h_pad": 0.07,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0.3,
    "legend.handlelength": 1.2,
    "legend.columnspacing": 1.4,
    "svg.fonttype": "none",  # text stays text
}
# What draws or saves is decorated with this, so that a user's own settings neither change nor are changed.
styled = style.context(_STYLE, after_reset=True)


@dataclass(frozen=True)
class Chart:
    """A drawn chart; `description` is the text below it, also for those who cannot see the chart."""

    title: str
    description: str
    axes: Axes

    @styled
    def picture(self) -> Image.Image:
        """On white paper, with the title in it."""
        figure = _add_legend(self.axes, above=False)
        figure.set_layout_engine("constrained")
        figure.suptitle(self.title, x=0.01, ha="left")
        return Image.open(io.BytesIO(to_png(figure)))

    @styled
    def svg(self, name: str) -> Markup:
        """What stands between `<svg viewBox="0 0 WIDTH HEIGHT">` and `</svg>`; the same bytes for the same chart.

        Args:
            name: of its own on the page, which keeps this chart's ids apart from those of others.
        """
        file = io.StringIO()
        with style.context({"svg.hashsalt": name}):
            figure = _add_legend(self.axes, above=True)
            _place(self.axes)
            for patch in (figure.patch, self.axes.patch):
                patch.set(facecolor="none", edgecolor="none")
            # Not by `savefig`, which draws everything twice.
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            FigureCanvasSVG(figure).print_svg(file, metadata=metadata)
        svg = re.search(r"<svg[^>]*>(.*)</svg>", file.getvalue(), re.DOTALL)
        assert svg is not None
        drawn = re.sub(r"<style.*?</style>|<!--.*?-->", "", svg[1], flags=re.DOTALL)
        drawn = re.sub(r'<g id="point ([^"]*)">', r"<g><title>\1</title>", drawn)
        drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
        drawn = re.sub(r"\s+", " ", drawn).replace(f"'{_FONT}'", "var(--font)")
        for colour, value in COLOURS.items():
            drawn = drawn.replace(value, f"var(--{colour})")
        return Markup(drawn)


def new_axes(x_label: str, y_label: str, *, log_x: bool = False, log_y: bool = False) -> Axes:
    """The axes of an empty chart."""
    axes = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=_PNG_DPI).add_subplot()
    label_axes(axes, f"{x_label} (logarithmic)" if log_x else x_label, f"{y_label} (logarithmic)" if log_y else y_label)
    for log, scale, axis in ((log_x, axes.set_xscale, axes.xaxis), (log_y, axes.set_yscale, axes.yaxis)):
        if log:
            scale("log")
        axis.set_major_locator(_LogLocator(numticks=7) if log else _round_numbers())
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter(lambda value, _: tick(value))
    return axes


def label_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Name them. The name of y is written horizontally, above the axis."""
    axes.set_title(y_label, loc="left")
    axes.set_xlabel(x_label, loc="right")
    axes.grid(axis="y")


def mark_points(axes: Axes, x: Iterable[float], y: Iterable[float], labels: list[str], colour: str) -> None:
    """Dots with a tooltip each, if there are few enough of them."""
    if len(labels) <= MAX_POINTS:
        for x_value, y_value, label in zip(x, y, labels, strict=True):
            axes.plot(x_value, y_value, "o", color=colour, markeredgecolor=COLOURS["paper"], gid=f"point {label}")


def to_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


class _LogLocator(ticker.LogLocator):
    """Round numbers within one decade, powers of ten and their multiples over more."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        decades = np.log10(vmax / vmin)
        if decades < 1:
            return _round_numbers().tick_values(vmin, vmax)
        self.set_params(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,))
        return super().tick_values(vmin, vmax)


def _round_numbers() -> ticker.Locator:
    return ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])


def _add_legend(axes: Axes, *, above: bool) -> Figure:
    """The figure of these axes, with a legend if anything has a label."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    _, labels = axes.get_legend_handles_labels()
    if labels and not figure.legends:
        columns = max(1, _LEGEND_CHARACTERS // (5 + max(map(len, labels))))
        figure.legend(loc="outside upper left" if above else "outside lower left", ncols=columns)
    return figure


def _place(axes: Axes) -> None:
    """Give the axes what labels and a legend leave of the figure, by how long these are.

    Matplotlib's own layouts measure every text, several times: that takes as long as to draw the chart.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    left = _SIDE + _TICK_PAD + max((_width(label) for _, label in _ticks(axes.yaxis)), default=0)
    right = float(_SIDE)
    for place, label in _ticks(axes.xaxis):  # one at the end is half beside it
        right = max(right, _SIDE + _width(label) / 2 - (1 - place) * (WIDTH - left - _SIDE))
    legends = sum(legend.get_window_extent().height * 72 / figure.dpi + _LEGEND_PAD for legend in figure.legends)
    size = (WIDTH - left - right, HEIGHT - _BELOW - _ABOVE - legends)
    axes.set_position((left / WIDTH, _BELOW / HEIGHT, size[0] / WIDTH, size[1] / HEIGHT))


def _ticks(axis: Axis) -> Iterator[tuple[float, str]]:
    """Where those stand that are seen, from 0 to 1 along the axis, and their labels."""
    locations = axis.get_majorticklocs()
    low, high, *scaled = axis.get_transform().transform(np.array([*axis.get_view_interval(), *locations]))
    for place, location in zip((np.array(scaled) - low) / (high - low), locations, strict=True):
        if -1e-6 < place < 1 + 1e-6:
            yield place, tick(location)


def _width(label: str) -> float:
    """In points, of a label of numbers."""
    return sum(_NARROW if character in ",. " else _DIGIT for character in label)
