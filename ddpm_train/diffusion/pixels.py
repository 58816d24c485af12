"""Between the pixels of a source and what a model sees of them. Imports no diffusers: workers import this module."""

import math

import numpy as np
import torch
from torch import Tensor

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
