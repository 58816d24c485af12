"""What a timestep means: to the noise schedule, and to a UNet."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_train.diffusion.noise import estimate_x_0


class Schedule:
    """alpha and sigma of x_t = alpha x_0 + sigma noise at any timestep, whole or (Karras sigmas) between two."""

    def __init__(self, noise_scheduler: Any) -> None:
        self.prediction_type: str = noise_scheduler.config.prediction_type
        self._alphas_cumprod = noise_scheduler.alphas_cumprod.cpu().double()
        # Between whole timesteps the logarithm of sigma / alpha is linear, as the samplers have it.
        variance = self._alphas_cumprod.clamp(min=2**-48)
        self._log_ratio = ((1 - variance) / variance).log() / 2

    def at(self, timestep: Tensor) -> tuple[float, float]:
        """(alpha, sigma) at a timestep, a scalar on the CPU."""
        time = min(max(float(timestep), 0.0), len(self._alphas_cumprod) - 1.0)
        low = math.floor(time)
        if low == time:
            alpha_squared = float(self._alphas_cumprod[low])
        else:
            ratio = torch.lerp(self._log_ratio[low], self._log_ratio[low + 1], time - low)
            alpha_squared = 1 / (1 + math.exp(2 * float(ratio)))
        return math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared)

    def x_0(self, x_t: Tensor, prediction: Tensor, timestep: Tensor) -> Tensor:
        """The estimate of x_0 that a prediction amounts to; of a learned variance, the half that is not it."""
        alpha, sigma = self.at(timestep)
        return estimate_x_0(self.prediction_type, x_t, prediction[:, : x_t.shape[1]], max(alpha, 1e-12), sigma)

    def prediction(self, x_t: Tensor, x_0: Tensor, timestep: Tensor) -> Tensor:
        """What a model that knows x_0 would predict; the inverse of `x_0`."""
        alpha, sigma = self.at(timestep)
        if self.prediction_type == "sample":
            return x_0
        noise = (x_t - alpha * x_0) / sigma
        return alpha * noise - sigma * x_0 if self.prediction_type == "v_prediction" else noise


def embedded(unet: Any, timesteps: Tensor) -> Tensor:
    """Timesteps as the UNet takes them: a learned embedding has a row for each whole one, and the nearest counts.

    Some samplers have them in float64, which Apple's GPUs do not know.
    """
    if isinstance(getattr(unet, "time_proj", None), nn.Embedding):
        return timesteps.round().long()
    return timesteps.float() if timesteps.is_floating_point() else timesteps
