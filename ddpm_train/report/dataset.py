"""The page of `ddpm-data`, from plain values and small pictures. Its order is in `dataset.html.jinja`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from ddpm_train.report.formatting import count, number
from ddpm_train.report.page import inline_picture, templates
from ddpm_train.report.plots import COLOURS, CURVES, HEIGHT, WIDTH, Chart, new_axes, styled
from ddpm_train.system.console import counted

FAR = 3.5  # from which on a robust score is that of an outlier; Iglewicz and Hoaglin (1993)
_TILE_SIDE = 112  # pixels
_MOST_KINDS = 6  # of files and of channels, in the table
_MOST_CHARTS = 16  # of channels

T = TypeVar("T")


@dataclass(frozen=True)
class Outlier:
    """An image whose brightness or chroma lies far from the others'."""

    name: str
    value: float
    score: float  # see `robust_scores`


@dataclass(frozen=True)
class Distribution:
    """Of one number of each image."""

    least: float
    median: float
    most: float
    counts: list[int]
    edges: list[float]  # of the bins that `counts` are of
    num_outliers: int
    outliers: list[Outlier]  # the most extreme


@dataclass(frozen=True)
class Channel:
    """The numbers of one channel of all arrays, in their own units."""

    least: float
    most: float
    mean: float
    std: float
    clipped: float  # the share of them that lies beyond the range
    counts: list[int]
    edges: list[float]  # of the bins that `counts` are of, from the low end of the range to its high end


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that are equal, or look alike."""

    num_images: int
    num_groups: int
    num_held_out: int  # held-out images of a group that also has training images
    groups: list[list[str]]  # names, of the first groups


@dataclass(frozen=True)
class Advice:
    text: str
    keys: str  # to be added to the command; "" where only a person can choose them


@dataclass(frozen=True)
class ScheduleShift:
    """By how much log SNR may fall until a share of the images' variance is as visible as at 32 pixels a side."""

    half: float  # of the variance
    quarter: float
    three_quarters: float
    of_pixels: float  # what Hoogeboom et al. (2023) take, from the number of pixels alone


@dataclass(frozen=True)
class Facts:
    """What `data.json` holds."""

    dataset: str
    resolution: tuple[int, int]  # (height, width)
    channels: int
    num_images: int  # that can be read
    num_train: int
    num_held_out: int
    kinds: dict[str, int]  # format and mode, such as "JPEG RGB": how many files
    sizes: dict[str, int]  # height x width of the most frequent: how many files
    num_sizes: int
    num_files: int  # whose headers were looked at
    num_upscaled: int  # files that are smaller than the resolution
    shorter_side: Distribution | None  # of the files, in pixels
    broken: list[tuple[str, str]]  # name and reason
    too_many_broken: bool  # more than dataset.max_broken_fraction: training would not begin
    left_out: list[str]
    notes: dict[str, str]  # what the config's keys have come to, by a word for each
    doubts: list[str]  # about which images are held out
    equal: Duplicates
    alike: Duplicates  # groups in which not all are equal
    brightness: Distribution
    chroma: Distribution | None  # None: they are arrays
    numbers: list[Channel]  # of each channel of arrays
    mean: list[float]  # of each channel of the training images, in [-1, 1]
    std: list[float]
    schedule_shift: ScheduleShift | None  # None: there is nothing to suggest
    advice: list[Advice]


@dataclass(frozen=True)
class Shown:
    """Pictures side by side, with what stands below them."""

    caption: str
    pictures: list[Image.Image]


@dataclass(frozen=True)
class Overview:
    facts: Facts
    transform: list[Shown]  # the original, and what the model sees
    alike: list[Shown]  # two images of a group
    outliers: list[Shown]


def rows(facts: Facts) -> Iterator[tuple[str, str]]:
    """The facts as a short table."""
    yield (
        "images",
        f"{count(facts.num_images)}: {count(facts.num_train)} to train on, {count(facts.num_held_out)} held out",
    )
    yield "files", "; ".join(f"{count(files)} {kind}" for kind, files in _first(list(facts.kinds.items())))
    if facts.shorter_side:
        side, common = facts.shorter_side, next(iter(facts.sizes.items()))
        sizes = f"{counted(facts.num_sizes, 'size')}, most often {common[0]} ({count(common[1])})"
        yield "sizes", f"{sizes}; shorter side {count(side.least)} to {count(side.most)} pixels"
    share = f" ({number(100 * facts.num_upscaled / facts.num_files, 2)} %)" if facts.num_upscaled else ""
    height, width = facts.resolution
    yield "upscaled", f"{count(facts.num_upscaled)} of {counted(facts.num_files, 'file')}{share} to {height}x{width}"
    stops = "; more than dataset.max_broken_fraction, so ddpm-train would not begin" if facts.too_many_broken else ""
    yield "broken", f"{count(len(facts.broken))}{stops}"
    yield from (("", f"{name}: {reason}") for name, reason in _first(facts.broken))
    yield from (("left out", line.removeprefix("left out: ")) for line in facts.left_out)
    yield from facts.notes.items()
    yield from (("held out", line) for line in facts.doubts)
    yield "equal", _duplicates(facts.equal)
    yield "alike", _duplicates(facts.alike)
    yield "brightness", _distribution(facts.brightness)
    if facts.chroma:
        yield "chroma", _distribution(facts.chroma)
    yield from ((f"channel {place}", _numbers(channel)) for place, channel in enumerate(_first(facts.numbers)))
    yield "mean", ", ".join(f"{value:.3f}" for value in facts.mean) + " in [-1, 1], of each channel"
    yield "spread", ", ".join(f"{value:.3f}" for value in facts.std) + " (standard deviation)"
    if shift := facts.schedule_shift:
        ends = sorted((shift.quarter, shift.three_quarters))
        yield (
            "schedule",
            f"to try: noise_scheduler.log_snr_shift={shift.half:.1f} (by these images {ends[0]:.1f} to {ends[1]:.1f}, "
            f"by the number of pixels {shift.of_pixels:.1f}); no training has tested it here",
        )


def _first(items: list[T]) -> list[T]:
    return items[:_MOST_KINDS]


def _duplicates(found: Duplicates) -> str:
    if not found.num_groups:
        return "none"
    across = f"; {count(found.num_held_out)} of them held out, with others in the training images"
    return f"{counted(found.num_images, 'image')} in {counted(found.num_groups, 'group')}{across}"


def _distribution(found: Distribution) -> str:
    names = ", ".join(outlier.name for outlier in found.outliers[:3])
    far = f"{counted(found.num_outliers, 'image')} far from it ({names})" if names else "no image far from it"
    return f"median {number(found.median)}; {far}"


def _numbers(channel: Channel) -> str:
    clipped = f"; {number(100 * channel.clipped, 2)} % beyond the range" if channel.clipped else ""
    return (
        f"{number(channel.least)} to {number(channel.most)}, mean {number(channel.mean)}, "
        f"spread {number(channel.std)}{clipped}"
    )


def render(overview: Overview) -> str:
    """The page as HTML. Everything that comes from the dataset is escaped."""
    sheets = {
        name: [(shown.caption, [inline_picture(_tile(each), _TILE_SIDE) for each in shown.pictures]) for shown in sheet]
        for name, sheet in (
            ("transform", overview.transform),
            ("alike", overview.alike),
            ("outliers", overview.outliers),
        )
    }
    return (
        templates()
        .get_template("dataset.html.jinja")
        .render(
            facts=overview.facts,
            rows=[row for row in rows(overview.facts) if row[0]],
            sheets=sheets,
            charts={"distributions": _charts(overview.facts)},
            view_box=f"0 0 {WIDTH} {HEIGHT}",
            far=FAR,
        )
    )


def _tile(picture: Image.Image) -> Image.Image:
    """Small ones are enlarged without smoothing, so that a person can see them."""
    factor = max(1, _TILE_SIDE // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


@styled
def _charts(facts: Facts) -> list[Chart]:
    charts = [_chart("Brightness", "mean of all channels, 0 to 1" if facts.numbers else "mean luma", facts.brightness)]
    if facts.chroma:
        charts.append(_chart("Colourfulness", "mean chroma; 0 is grey", facts.chroma))
    if facts.shorter_side:
        charts.append(_chart("Shorter side", "pixels", facts.shorter_side))
        charts[-1].axes.axvline(min(facts.resolution), color=COLOURS["quiet"], linestyle=(0, (4, 4)), linewidth=1)
    for place, channel in enumerate(facts.numbers[:_MOST_CHARTS]):
        axes = _histogram("in the units of the files", "pixels", channel)
        charts.append(Chart(f"Channel {place}", f"{_numbers(channel)}.", axes))
    return charts


def _chart(title: str, x_label: str, found: Distribution) -> Chart:
    description = f"Half of the images lie below {number(found.median)}."
    return Chart(title, description, _histogram(x_label, "images", found))


def _histogram(x_label: str, y_label: str, found: Distribution | Channel) -> Axes:
    axes = new_axes(x_label, y_label)
    axes.stairs(np.array(found.counts), found.edges, fill=True, color=CURVES[0], alpha=0.6)
    axes.set_ylim(0)
    return axes
