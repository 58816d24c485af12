"""Which samplers can sample a model: found out by running them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_train.config import samplers
from ddpm_train.sampling.loop import build_sampler, denoise, noised
from ddpm_train.sampling.schedule import Schedule

# Where a sampler may end beside x_0: some stop at the first timestep and leave its noise (0.01 to 0.03).
_TOLERANCE = 0.1
# By how much images may vary more than the data; few steps make them vary less, a sampler that diverges more.
_LARGEST_SPREAD = 1.5
_MEAN, _SPREAD = 0.5, 0.5


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
