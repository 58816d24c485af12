"""Charts: numbers -> the geometry that `chart.html.jinja` draws as inline SVG.

A chart is as wide as the page lets it be, and its text always has the page's size: everything is placed in percent of
the plot. Lines are paths in a square of 1,000 x 1,000 units that the browser stretches; their strokes are not.
However long the run, a line has at most `BUCKETS` points: within each bucket of steps the smallest and the largest
value span a band, so that no spike is lost.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from ddpm_train.report.evidence import NOTHING, Floats, Series
from ddpm_train.report.numerals import number, tick

BUCKETS = 300
MAX_DOTS = 100
SMOOTHED_SHARE = 0.02  # of the run: the width of the moving mean
_UNITS = 1000
_MAX_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, placed in percent of the plot's length."""

    low: float
    high: float
    log: bool = False
    label: str = ""

    def place(self, values: Floats) -> Floats:
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return 100 * (values - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Where a label stands, in percent, and what it says."""
        values = _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)
        return [(round(float(self.place(np.array(value))), 2), tick(value)) for value in values]


@dataclass(frozen=True)
class Dot:
    """A measured point, in percent, with what it says when one points at it."""

    x: float
    y: float
    title: str
    kind: str


@dataclass
class Chart:
    """What a chart shows. `kind` names a class in style.css, which gives marks their colour in light, dark and print.

    Attributes:
        title: a short name; description: the same for somebody who cannot see it.
        areas, lines: (kind, SVG path in units); dots: single values.
        rules: (kind, y in percent, label): horizontal lines to compare with.
        legend: (kind, words).
    """

    title: str
    description: str
    x: Axis
    y: Axis
    areas: list[tuple[str, str]] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    rules: list[tuple[str, float, str]] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)

    def line(self, kind: str, x: Floats, y: Floats) -> None:
        self.lines.append((kind, _path(self.x.place(x), self.y.place(y))))

    def area(self, kind: str, x: Floats, low: Floats, high: Floats) -> None:
        around = np.concatenate([self.x.place(x), self.x.place(x[::-1])])
        edge = np.concatenate([self.y.place(high), self.y.place(low[::-1])])
        self.areas.append((kind, _path(around, edge) + "Z"))

    def points(self, kind: str, x: Floats, y: Floats, titles: list[str]) -> None:
        """Dots that say what they are, while one can tell them apart."""
        if len(titles) > MAX_DOTS:
            return
        places = zip(self.x.place(x), self.y.place(y), titles, strict=True)
        self.dots += [Dot(round(float(px), 2), round(100 - float(py), 2), title, kind) for px, py, title in places]

    def rule(self, kind: str, value: float, label: str) -> None:
        if self.y.low <= value <= self.y.high:
            self.rules.append((kind, round(100 - float(self.y.place(np.array(value))), 2), label))


def span(*values: Floats, log: bool = False, label: str = "", from_zero: bool = False) -> Axis:
    """An axis that holds all the values, with a little air; logarithmic only if all are positive."""
    joined = np.concatenate([np.ravel(part) for part in values])
    low, high = float(joined.min()), float(joined.max())
    if log and low > 0:
        air = (high / low) ** 0.05 if high > low else 1.1
        return Axis(low / air, high * air, True, label)
    if from_zero and low >= 0:
        return Axis(0.0, 1.05 * high or 1.0, False, label)
    air = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - air, high + air, False, label)


def step_axis(*series: Series) -> Axis:
    """From 0 to the last step of any of them."""
    return Axis(0.0, max([1.0, *(float(one.steps[-1]) for one in series if len(one))]), label="step")


@dataclass(frozen=True)
class Buckets:
    """A long series in short: where buckets lie, the extremes in each, and the moving mean there; float64 [<= 300]."""

    steps: Floats
    low: Floats
    high: Floats
    smooth: Floats


def shorten(series: Series) -> Buckets:
    """Minimum, maximum and moving mean (over `SMOOTHED_SHARE` of the run) in equal ranges of steps."""
    steps, values = series.steps, series.values
    width = max(1.0, (steps[-1] - steps[0] + 1) / BUCKETS)
    starts = np.flatnonzero(np.diff((steps - steps[0]) // width, prepend=-1))
    middles = (starts + np.append(starts[1:], len(steps)) - 1) // 2
    return Buckets(
        steps[middles],
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
        moving_mean(values)[middles],
    )


def moving_mean(values: Floats) -> Floats:
    """Centred also at the beginning, where values fall fast, and therefore over fewer; one-sided at the end."""
    index = np.arange(len(values))
    half = max(1, round(SMOOTHED_SHARE * len(values) / 2))
    before = np.minimum(half, index)
    after = np.minimum(before, len(values) - 1 - index)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def over_steps(
    title: str,
    description: str,
    series: Series,
    *,
    unit: str,
    log: bool = False,
    from_zero: bool = False,
    beside: Series = NOTHING,
) -> Chart:
    """A series over the run: its extremes as a band, its moving mean as a line. Leaves room for another `beside` it."""
    short = shorten(series)
    y = span(short.low, short.high, beside.values, log=log, from_zero=from_zero, label=unit)
    chart = Chart(title, description, step_axis(series, beside), y)
    if len(short.steps) < len(series):
        chart.area("raw", short.steps, short.low, short.high)
    else:
        chart.line("raw", series.steps, series.values)
    chart.line("curve-0", short.steps, short.smooth)
    return chart


def titles(series: Series, name: str) -> list[str]:
    return [
        f"step {step:,.0f}: {name} {number(value)}" for step, value in zip(series.steps, series.values, strict=True)
    ]


def _path(x: Floats, y: Floats) -> str:
    """An SVG path through points given in percent, y upwards."""
    units = np.stack([x, 100 - y], axis=-1) * (_UNITS / 100)
    return "M" + "L".join(f"{px:.1f} {py:.1f}".replace(".0", "") for px, py in units)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / (_MAX_TICKS - 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten where there are enough of them, else with 2 and 5, else round numbers between."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 2, 5)):
        values = [factor * 10.0**exponent for exponent in range(first, last + 1) for factor in factors]
        values = [float(f"{value:.6g}") for value in values if low <= value <= high]
        if len(values) >= 3:
            return values[:: math.ceil(len(values) / (_MAX_TICKS + 1))]
    return _linear_ticks(low, high)
