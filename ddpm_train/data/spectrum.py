"""How much of the images' variance lies in each of their frequencies."""

import math

import numpy as np
import torch
from torch import Tensor

from ddpm_train.data.images import Images
from ddpm_train.diffusion.objective import to_model_range

_MOST_VALUES = 2**24  # numbers in the images that are looked at


def power_spectrum(images: Images) -> Tensor:
    """The variances of the components of the images around their mean, float64 [H W C], 1 for white noise.

    Components are cosine waves (the DCT, which comes close to the principal components of natural images: Ahmed et al.
    1974), and the principal components of the channels at each frequency.
    """
    shape = (images.decoder.channels, *images.resolution)
    count = min(len(images), max(2, _MOST_VALUES // math.prod(shape)))
    x_0 = to_model_range(images.load(np.linspace(0, len(images) - 1, count).round().astype(int))).double()
    waves = _cosines(shape[1]) @ (x_0 - x_0.mean(dim=0)) @ _cosines(shape[2]).T
    covariance = torch.einsum("nchw,ndhw->hwcd", waves, waves) / max(1, count - 1)
    return torch.linalg.eigvalsh(covariance).clamp(min=0).flatten()


def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II of vectors of a size, float64 [size, size]."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * place[:, None] * (place + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
