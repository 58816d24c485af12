"""The variational bound on the likelihood, term by term, in bits per dimension.

    -log p(x_0) <= L_T + sum over t = 1 … T-1 of L_t + L_0

of Ho et al. 2020 (arXiv 2006.11239), eq. 5 and section 3.3, as Nichol & Dhariwal 2021 (arXiv 2102.09672) report it.
Timesteps count from 0 as in diffusers, so that L_t compares the two ways from timestep t to t-1 (the papers' L_{t-1}
has the same number), and L_0 decodes the image from timestep 0, the papers' x_1.
"""

import math

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ddpm_train.diffusion.noise import estimate_x_0


class BoundTerms:
    """The terms of the bound for one noise schedule; the model is the one that ancestral sampling samples from.

    The prediction gives x_0, clipped if the schedule says so (`clip_sample`, as in DDPMScheduler's own step; images lie
    in the range, so that it can only lower the bound), and x_0 the mean of q(x_{t-1} | x_t, x_0). The variance is the
    schedule's: the posterior's (`fixed_small`), beta (`fixed_large`), or one between the two that the model predicts
    (`learned_range`). At t = 0, where the posterior has none, that of t = 1 is used, as Ho et al. do.

    Everything is computed from `alphas_cumprod`, with which training noises, in double precision: the stored betas are
    rounded separately. Where it is 0, at the end of schedules of zero terminal SNR, every term is finite.

    Raises:
        ValueError: for what has no such bound: `variance_type=learned` (which diffusers' schedulers do not sample from
            either) and dynamic thresholding, whose clipping depends on the other pixels.
    """

    def __init__(self, noise_scheduler: DDPMScheduler, device: torch.device) -> None:
        config = noise_scheduler.config
        self.prediction_type: str = config.prediction_type
        self.variance_type: str = config.variance_type
        if self.variance_type == "learned" or config.thresholding:
            what = "thresholding" if config.thresholding else f"variance_type={self.variance_type}"
            raise ValueError(f"there is no bound with {what}")
        self.clip = config.clip_sample_range if config.clip_sample else math.inf
        kept = noise_scheduler.alphas_cumprod.cpu().double()
        kept_before = torch.cat((torch.ones(1).double(), kept[:-1]))
        beta = 1 - kept / kept_before
        posterior = beta * (1 - kept_before) / (1 - kept)  # eq. 7
        posterior[0] = posterior[1]
        large = torch.cat((posterior[:1], beta[1:]))
        self._last = float(kept[-1])

        def on_device(values: Tensor) -> Tensor:
            return values.float().to(device)[:, None, None, None]

        # Where there is no signal, epsilon says nothing of x_0; clamped, the estimate is a finite number.
        self._alpha, self._sigma = on_device(kept.sqrt().clamp(min=1e-12)), on_device((1 - kept).sqrt())
        self._gain = on_device(kept_before.sqrt() * beta / (1 - kept))  # of x_0 in the posterior's mean, eq. 7
        self._posterior = on_device(posterior.log())
        self._log_variance = on_device(large.log()) if self.variance_type.startswith("fixed_large") else self._posterior
        self._log_beta = on_device(beta.log())

    def prior(self, x_0: Tensor) -> Tensor:
        """L_T: how far the noised images are from pure noise.

        Args:
            x_0: float32 [B, C, H, W] in [-1, 1].

        Returns:
            Bits per dimension, float32 [B].
        """
        # The formula's 1 - 1 is left out: beside it the rest, which is tiny, would be lost to rounding.
        return _bits((self._last * x_0.square() + (-self._last - math.log1p(-self._last))) / 2)

    @torch.no_grad()
    def at(self, unet: nn.Module, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """L_t for one noised image each; its mean over the noise is the term.

        Args:
            unet: in eval mode.
            x_0: float32 [B, C, H, W]: k / 127.5 - 1 for k = 0 … 255.
            noise: standard normal, like `x_0`.
            timesteps: int64 [B] in [0, T).

        Returns:
            Bits per dimension, float32 [B].
        """
        alpha, sigma = self._alpha[timesteps], self._sigma[timesteps]
        x_t = alpha * x_0 + sigma * noise
        prediction = unet(x_t, timesteps).sample.float()
        log_variance = self._log_variance[timesteps]
        if self.variance_type == "learned_range":
            prediction, range_fraction = prediction.chunk(2, dim=1)  # eq. 15 of Nichol & Dhariwal, in [-1, 1]
            log_variance = torch.lerp(log_variance, self._log_beta[timesteps], (range_fraction + 1) / 2)
        estimate = estimate_x_0(self.prediction_type, x_t, prediction, alpha, sigma).clamp(-self.clip, self.clip)
        # Both means hold the same share of x_t, and at t = 0 none of it.
        difference = self._gain[timesteps] * (x_0 - estimate)
        log_ratio = self._posterior[timesteps] - log_variance
        divergence = (log_ratio.exp() - 1 - log_ratio + difference.square() * (-log_variance).exp()) / 2
        decoding = -discretized_log_likelihood(x_0, estimate, log_variance)
        return _bits(torch.where(timesteps[:, None, None, None] == 0, decoding, divergence))


def discretized_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of a Gaussian's mass on the 256th of [-1, 1] around each value, the outermost reaching to infinity (eq. 13).

    Args:
        x_0: float32: k / 127.5 - 1 for k = 0 … 255.
        mean, log_variance: float32, of a shape that broadcasts with it.

    Returns:
        float32, in nats; finite however far the value lies from the mean.
    """
    scale = (-log_variance / 2).exp()
    below = torch.where(x_0 < -0.999, -math.inf, (x_0 - mean - 1 / 255) * scale)
    above = torch.where(x_0 > 0.999, math.inf, (x_0 - mean + 1 / 255) * scale)
    # Mirrored into the lower tail, where log_ndtr keeps close values apart.
    mirrored = below + above > 0
    low, high = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(log_low - log_high))


def _bits(nats: Tensor) -> Tensor:
    """[B, C, H, W] in nats -> the mean over the dimensions in bits, [B]."""
    return nats.mean(dim=(1, 2, 3)) / math.log(2)
