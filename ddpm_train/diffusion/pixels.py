"""Between the pixels of a source and what a model sees of them. Imports no diffusers: workers import this module."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ddpm_train.config.pixels import PixelValues

# The curves of astropy.visualization, of u in [0, 1]: LogStretch(1000) and AsinhStretch(0.1).
_LOG, _ASINH = 1000.0, 0.1


def to_model(values: PixelValues, images: Tensor) -> Tensor:
    """Pixels of the source, [B, C, H, W], of any of `DTYPES` -> float32 in [-1, 1]."""
    if images.dtype == torch.uint16:  # of which few operations exist
        images = images.view(torch.int16).int() & 0xFFFF
    low, high = (torch.tensor(each, device=images.device)[:, None, None] for each in (values.low, values.high))
    share = ((images.float() - low) / (high - low)).clamp(0, 1)
    if values.stretch == "log":
        share = torch.log1p(_LOG * share) / math.log1p(_LOG)
    elif values.stretch == "asinh":
        share = torch.asinh(share / _ASINH) / math.asinh(1 / _ASINH)
    return 2 * share - 1


def to_physical(values: PixelValues, x_0: Tensor) -> np.ndarray:
    """The inverse: float [B, C, H, W], clipped to [-1, 1] -> the source's units and dtype, on the CPU.

    Whole numbers of 8 and 16 bits come back as they were; float32 as far as float32 can tell them apart in a range as
    wide as from `low` to `high`.
    """
    share = (x_0.double().cpu().numpy() / 2 + 0.5).clip(0, 1)
    if values.stretch == "log":
        share = np.expm1(share * math.log1p(_LOG)) / _LOG
    elif values.stretch == "asinh":
        share = np.sinh(share * math.asinh(1 / _ASINH)) * _ASINH
    low, high = (np.array(each)[:, None, None] for each in (values.low, values.high))
    physical = low + share * (high - low)
    dtype = np.dtype(values.dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        physical = np.rint(physical).clip(limits.min, limits.max)
    return physical.astype(dtype)


def to_uint8(x_0: Tensor) -> Tensor:
    """[-1, 1] -> uint8 in [0, 255], rounded as DDPMPipeline does; uint8 stays as it is."""
    return x_0 if x_0.dtype == torch.uint8 else ((x_0 / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def shown(images: Tensor, values: PixelValues | None) -> Tensor:
    """What a person can look at, uint8 [..., 1, 3 or 4, H, W]: of arrays of other channels than 1 or 3 all bands, side
    by side in grey, from the top left to the bottom right.

    Args:
        images: uint8 [..., C, H, W].
        values: what the numbers mean; None: they are pictures, which may be transparent.
    """
    channels = images.shape[-3]
    if values is None or channels in (1, 3):
        return images
    columns = math.ceil(math.sqrt(channels))
    missing = -channels % columns
    bands = functional.pad(images, (0, 0, 0, 0, 0, missing)).unflatten(-3, (-1, columns))  # [..., rows, columns, H, W]
    return bands.transpose(-3, -2).flatten(-2).flatten(-3, -2).unsqueeze(-3)
