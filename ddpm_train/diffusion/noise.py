"""The noise schedule, and what each timestep's loss weighs."""

from dataclasses import asdict

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_train.config.losses import MSE, MinSNR
from ddpm_train.config.train import NoiseScheduler


def build_noise_scheduler(config: NoiseScheduler) -> DDPMScheduler:
    return DDPMScheduler(**asdict(config))


def signal_to_noise(noise_scheduler: DDPMScheduler) -> Tensor:
    """SNR(t) = alphas_cumprod / (1 - alphas_cumprod) for every training timestep, float32 [T]."""
    alphas_cumprod = noise_scheduler.alphas_cumprod
    return alphas_cumprod / (1 - alphas_cumprod)


def estimate_x_0(
    prediction_type: str, x_t: Tensor, prediction: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """The x_0 that a prediction amounts to, where x_t = alpha x_0 + sigma noise, alpha > 0; [B, C, H, W]."""
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":  # Salimans & Ho 2022, appendix D
        return alpha * x_t - sigma * prediction
    return (x_t - sigma * prediction) / alpha


def loss_weights(noise_scheduler: DDPMScheduler, loss: MSE | MinSNR) -> Tensor:
    """The weight of the squared error at each training timestep, float32 [T].

    min-SNR-gamma (Hang et al. 2023, section 3.4) weighs the error in x_0 by min(SNR, gamma). The same error in
    noise is larger by SNR and in v by SNR + 1, which the weight divides out.
    """
    snr = signal_to_noise(noise_scheduler)
    if isinstance(loss, MSE):
        return torch.ones_like(snr)
    clipped = snr.clamp(max=loss.gamma)
    divisor = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}
    return clipped / divisor[noise_scheduler.config.prediction_type]
