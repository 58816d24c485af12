"""What the noise schedule says of each timestep."""

from diffusers import DDPMScheduler
from torch import Tensor


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
