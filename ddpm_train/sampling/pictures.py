"""Grids, strips, animations and labelled tables of images."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from ddpm_train.config.pixels import PixelValues
from ddpm_train.diffusion.pixels import shown
from ddpm_train.sampling.output import to_picture
from ddpm_train.sampling.visualizations import Compared
from ddpm_train.system.files import write_atomic

_GAP = 2
_LABEL_HEIGHT = 16
_MILLISECONDS = 120
_HOLD_FRAMES = 8  # an animation stands still at its end for a moment
_MIN_TILE_SIDE = 64  # smaller tiles are enlarged without smoothing, so that a person can see them


def rows(images: Sequence[Tensor]) -> Image.Image:
    """Rows of equally many images, each uint8 [N, C, H, W], as one picture."""
    return image_grid(torch.cat(list(images)), columns=len(images[0]))


def strip(frames: Tensor) -> Image.Image:
    """For each image of a trajectory two rows, x_t and the estimate of x_0, from noise on the left to the result."""
    return rows([frames[:, kind, image] for image in range(frames.shape[2]) for kind in (0, 1)])


def animate(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an animation that runs for ever; GIF or WebP (lossless) by the name's ending."""
    shown = [*frames, *[frames[-1]] * _HOLD_FRAMES]
    kind = path.suffix.removeprefix(".")
    options = {"lossless": True} if kind == "webp" else {"disposal": 2}
    if kind == "webp":
        shown = [frame.convert("RGBA" if frame.mode == "RGBA" else "RGB") for frame in shown]
    file = io.BytesIO()
    shown[0].save(file, format=kind, save_all=True, append_images=shown[1:], duration=_MILLISECONDS, loop=0, **options)
    write_atomic(path, file.getvalue())


def trajectory_frames(frames: Tensor) -> list[Image.Image]:
    """x_t on the left, the estimate of x_0 on the right; see `visualizations.trajectory`."""
    return [Image.fromarray(np.hstack([np.asarray(image_grid(images)) for images in both])) for both in frames]


def interpolation_frames(walks: Sequence[Tensor]) -> list[Image.Image]:
    """Frame by frame, all walks in one grid; a walk is uint8 [F, C, H, W]."""
    return [image_grid(torch.stack(frames)) for frames in zip(*walks, strict=True)]


def comparison_table(results: Sequence[Compared], values: PixelValues | None) -> Image.Image:
    """A row for each sampler, a column for each number of steps, and in each cell all images under their label."""
    names = list(dict.fromkeys(result.sampler for result in results))
    columns = list(dict.fromkeys(result.num_inference_steps for result in results))
    grids = [image_grid(shown(result.images, values)).convert("RGB") for result in results]
    distances = ("" if result.distance is None else f"  d={result.distance:.1f}" for result in results)
    labels = [f"{one.sampler} {one.num_inference_steps}{d}" for one, d in zip(results, distances, strict=True)]
    font = ImageFont.load_default()
    width = max(max(grid.width for grid in grids), *(math.ceil(font.getlength(label)) + 2 * _GAP for label in labels))
    height = grids[0].height + _LABEL_HEIGHT
    canvas = Image.new("RGB", (width * len(columns), height * len(names)), "white")
    draw = ImageDraw.Draw(canvas)
    for result, grid, label in zip(results, grids, labels, strict=True):
        left = columns.index(result.num_inference_steps) * width
        top = names.index(result.sampler) * height
        draw.text((left + _GAP, top + _GAP), label, fill="black", font=font)
        canvas.paste(grid, (left, top + _LABEL_HEIGHT))
    return canvas


def save(picture: Image.Image, path: Path) -> None:
    write_atomic(path, to_png(picture))


def to_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return file.getvalue()


def image_grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """uint8 [N, C, H, W] -> one picture, row by row, nearly square unless `columns` are given; C is 1, 3 or 4."""
    factor = max(1, math.ceil(_MIN_TILE_SIDE / max(images.shape[2:])))
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    grid = make_grid(enlarged, nrow=columns or math.ceil(math.sqrt(len(images))), padding=2, pad_value=255)
    return to_picture(grid[: images.shape[1]].permute(1, 2, 0).numpy())  # `make_grid` makes three channels of one
