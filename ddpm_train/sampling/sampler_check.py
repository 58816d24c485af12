"""Which samplers can sample a model: found out by running them."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_train.config import samplers
from ddpm_train.diffusion.noise import estimate_x_0
from ddpm_train.sampling.loop import build_sampler, denoise, noised

# Where a sampler may end beside x_0: some stop at the first timestep and leave its noise (0.01 to 0.03).
_TOLERANCE = 0.1
# By how much images may vary more than the data; few steps make them vary less, a sampler that diverges more.
_LARGEST_SPREAD = 1.5
_MEAN, _SPREAD = 0.5, 0.5


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


@dataclass(frozen=True)
class _Perfect:
    """A UNet that has learned data of a known normal distribution perfectly: it predicts E[x_0 | x_t]."""

    schedule: Schedule
    mean: float
    spread: float
    learned_variance: bool = False
    dtype = torch.float32

    def __call__(self, x_t: Tensor, timestep: Tensor) -> Any:
        alpha, sigma = self.schedule.at(timestep)
        gain = alpha * self.spread**2 / max(alpha**2 * self.spread**2 + sigma**2, 1e-24)
        prediction = self.schedule.prediction(x_t, self.mean + gain * (x_t - alpha * self.mean), timestep)
        outputs = (prediction, torch.zeros_like(prediction)) if self.learned_variance else (prediction,)
        return SimpleNamespace(sample=torch.cat(outputs, dim=1))


def refusal(
    name: str,
    noise_scheduler: Any,
    num_inference_steps: int,
    arguments: Mapping[str, Any],
    *,
    learned_variance: bool,
    strength: float | None = None,
) -> str | None:
    """Why this sampler cannot sample this model, or None.

    With a model that knows the one image there is, it must end at that; with one that knows normally distributed
    data, its images must not vary much more than the data.

    Args:
        strength: begin with a noised picture and not with noise; see `sampling.noised`.
    """
    constructor, _ = samplers.arguments(name)
    if noise_scheduler.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in constructor:
        return "it does not know schedules of zero terminal SNR"
    generators = [torch.Generator().manual_seed(index) for index in range(2)]

    def run(mean: float, spread: float) -> Tensor:
        sampler = build_sampler(name, noise_scheduler, arguments)
        sampler.set_timesteps(num_inference_steps)
        noise, other = (torch.cat([torch.randn(1, 3, 8, 8, generator=each) for each in generators]) for _ in range(2))
        x_t, start = noise * sampler.init_noise_sigma, 0
        if strength is not None:
            if getattr(sampler, "prk_timesteps", None) is not None and len(sampler.prk_timesteps):
                raise ValueError("its Runge-Kutta steps begin with noise; sampler.skip_prk_steps=true leaves them out")
            x_t, start = noised(sampler, mean + spread * other, noise, strength)
        unet = _Perfect(Schedule(noise_scheduler), mean, spread, learned_variance)
        return denoise(unet, sampler, x_t, generators, start=start, arguments=arguments)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            miss = (run(_MEAN, 0.0) - _MEAN).abs().max()
            spread = run(0.0, _SPREAD).std() / _SPREAD
    except Exception as error:  # diffusers' schedulers refuse by many kinds, some by an index that is out of range
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    if not bool(miss.isfinite()):
        return "with a perfect model its images are not numbers"
    if bool(miss > _TOLERANCE):
        return f"with a perfect model it misses x_0 by {float(miss):.2g}"
    if not bool(spread <= _LARGEST_SPREAD):
        return f"it diverges: with a perfect model its images vary {float(spread):.3g} times as much as the data"
    return None


def is_stochastic(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the sampler draws noise on its way, so that its images do not follow from the initial noise alone."""
    noise_scheduler = DDPMScheduler(prediction_type="v_prediction")  # any schedule will do
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    sampler = build_sampler(name, noise_scheduler, arguments)
    if hasattr(sampler, "noise_sampler_seed"):  # which draws from Brownian motion of its own
        return True
    sampler.set_timesteps(10)
    perfect = _Perfect(Schedule(noise_scheduler), _MEAN, 0.0)
    noise = torch.full((1, 1, 2, 2), _MEAN) * sampler.init_noise_sigma
    denoise(perfect, sampler, noise, [generator], arguments=arguments)
    return not torch.equal(before, generator.get_state())
