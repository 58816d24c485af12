"""How much of the images' variance lies in each of their frequencies, and what that says of the noise schedule."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ddpm_train.data.images import Images
from ddpm_train.diffusion.objective import to_model_range

_MOST_VALUES = 2**24  # numbers in the images that are looked at
_MOST_OF_SHIFTS = 2**22  # likewise: three shares of all variance need less than the variance of each component


def power_spectrum(images: Images) -> Tensor:
    """The variances of the components of the images around their mean, float64 [H W C], 1 for white noise.

    Components are cosine waves (the DCT, which comes close to the principal components of natural images: Ahmed et al.
    1974), and the principal components of the channels at each frequency.
    """
    return _variances(_some(images, _MOST_VALUES))


def log_snr_shifts(images: Images, base: int) -> tuple[float, ...]:
    """By how much less log SNR a quarter, a half and three quarters of the images' variance stay visible, when each
    image is seen at its size and not averaged down to a shorter side of `base` pixels.

    Visible is what the best linear denoiser (Wiener's filter) keeps: SNR v / (1 + SNR v) of a component of variance v.
    Where all variance is coarser than the pixels of the small images, the three are Hoogeboom et al.'s 2 ln(base / r).
    """
    x_0 = _some(images, _MOST_OF_SHIFTS)
    scale = base / min(x_0.shape[2:])
    size = [max(1, round(scale * side)) for side in x_0.shape[2:]]
    large, small = (_variances(each) for each in (x_0, adaptive_avg_pool2d(x_0, size)))
    return tuple(_log_snr(large, share) - _log_snr(small, share) for share in (0.25, 0.5, 0.75))


def _log_snr(variances: Tensor, share: float) -> float:
    """At which log SNR this share of the variance is visible."""
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        visible = variances * (middle + variances.log()).sigmoid()
        low, high = (low, middle) if visible.nansum() > share * variances.sum() else (middle, high)
    return low


def _some(images: Images, most_values: int) -> Tensor:
    """Images of so many numbers, evenly chosen, float64 [N, C, H, W] in [-1, 1]."""
    count = min(len(images), max(2, most_values // math.prod((images.decoder.channels, *images.resolution))))
    return to_model_range(images.load(np.linspace(0, len(images) - 1, count).round().astype(int))).double()


def _variances(x_0: Tensor) -> Tensor:
    waves = _cosines(x_0.shape[2]) @ (x_0 - x_0.mean(dim=0)) @ _cosines(x_0.shape[3]).T
    covariance = torch.einsum("nchw,ndhw->hwcd", waves, waves) / max(1, len(x_0) - 1)
    return torch.linalg.eigvalsh(covariance).clamp(min=0).flatten()


def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II of vectors of a size, float64 [size, size]."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * place[:, None] * (place + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
