"""What the noise schedule says of each timestep, and which noise an image is given."""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

# Noise is rounded to 2^-12 before distances are compared.
_ROUNDED_BITS = 12


def signal_to_noise(noise_scheduler: DDPMScheduler) -> Tensor:
    """SNR(t) = alphas_cumprod / (1 - alphas_cumprod) for every training timestep, float32 [T]."""
    alphas_cumprod = noise_scheduler.alphas_cumprod
    return alphas_cumprod / (1 - alphas_cumprod)


def estimate_x_0(
    prediction_type: str, x_t: Tensor, prediction: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """The x_0 that follows from a prediction, where x_t = alpha x_0 + sigma noise, alpha > 0; [B, C, H, W]."""
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":  # Salimans & Ho 2022, appendix D
        return alpha * x_t - sigma * prediction
    return (x_t - sigma * prediction) / alpha


def nearest(candidates: Tensor, images: Tensor) -> Tensor:
    """Of the noises drawn for an image the one whose distance to it is least (Li et al. 2025, arXiv 2505.18521).

    Distances are compared in whole numbers: a sum of those is the same in any order, so that a choice does not depend
    on what else is in the batch.

    Args:
        candidates: float32 [B, K, C, H, W].
        images: uint8 [B, C, H, W], or float32 in [-1, 1].

    Returns:
        float32 [B, C, H, W].
    """
    noise = (candidates * 2**_ROUNDED_BITS).round().long()
    # x_0 and noise, in units of 2^-12 / 255
    if images.dtype == torch.uint8:
        x_0 = (2 * images.long() - 255) << _ROUNDED_BITS
    else:
        x_0 = (images * (255 << _ROUNDED_BITS)).round().long()
    distances = (noise * (255 * noise - 2 * x_0[:, None])).flatten(2).sum(dim=2)  # |noise - x_0|^2 but for |x_0|^2
    return candidates[torch.arange(len(images), device=images.device), distances.argmin(dim=1)]
