"""The noise schedule, and the noise that a run trains with."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from ddpm_train.config.parts import NonNegative, Positive, Real, Section
from ddpm_train.config.registry import Registry

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

# What computes the variance that each timestep adds, [T] numbers in (0, 1); None: DDPMScheduler knows it by this name.
BETA_SCHEDULES: "Registry[Callable[[NoiseScheduler], Sequence[float]] | None]" = Registry(
    "noise schedule", dict.fromkeys(("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
)


@dataclass(frozen=True)
class Noise(Section):
    """The noise that a run trains with. Its losses on held-out images are measured with plain noise all the same.

    Attributes:
        perturbation: x_t is made with noise + perturbation xi, where xi is normal, and the target stays that of the
            noise alone (gamma of Ning et al. 2023, arXiv 2301.11706).
        nearest_of: of so many noises an image has the one that lies nearest to it (Li et al. 2025, arXiv 2505.18521).
    """

    perturbation: Annotated[Real, Ge(0), Le(1)] = 0.0
    nearest_of: Annotated[Positive, Le(64)] = 1


PLAIN_NOISE = Noise()


@dataclass(frozen=True)
class NoiseScheduler(Section):
    """DDPMScheduler's arguments, and one more.

    Attributes:
        log_snr_shift: is added to log SNR at every timestep. Hoogeboom et al. 2023 (arXiv 2301.11093, eq. 10) take
            2 ln(b / r) for images of r pixels a side and a schedule that was made for b.
    """

    num_train_timesteps: Annotated[Positive, Le(10_000)]
    beta_start: Annotated[Real, Gt(0), Lt(1)]
    beta_end: Annotated[Real, Gt(0), Lt(1)]
    beta_schedule: Annotated[str, BETA_SCHEDULES]
    trained_betas: tuple[Annotated[Real, Gt(0), Lt(1)], ...] | None
    variance_type: Literal[
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
    ]
    clip_sample: bool
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    thresholding: bool
    dynamic_thresholding_ratio: Annotated[Real, Gt(0), Le(1)]
    clip_sample_range: Annotated[Real, Gt(0)]
    sample_max_value: Annotated[Real, Gt(0)]
    timestep_spacing: Literal["linspace", "leading", "trailing"]
    steps_offset: NonNegative
    rescale_betas_zero_snr: bool
    # Further up or down, float32 has no room for the schedule's ends.
    log_snr_shift: Annotated[Real, Ge(-10), Le(2)] = 0.0

    def mistakes(self) -> Iterator[str]:
        if self.variance_type.startswith("learned"):
            yield (
                f"noise_scheduler.variance_type={self.variance_type}: there is no loss for a learned variance; "
                "use fixed_small or fixed_large"
            )
        if self.beta_start > self.beta_end:
            yield f"noise_scheduler.beta_start={self.beta_start}: above beta_end={self.beta_end}; swap them"
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            yield (
                f"noise_scheduler.trained_betas: {len(self.trained_betas)} values for "
                f"num_train_timesteps={self.num_train_timesteps}; give as many"
            )

    def build(self) -> "DDPMScheduler":
        """diffusers' scheduler. The betas of an extension, and shifted ones, stand in it as numbers, which diffusers
        reads alone."""
        from diffusers import DDPMScheduler

        arguments = asdict(self)
        del arguments["log_snr_shift"]
        compute_betas = BETA_SCHEDULES[self.beta_schedule]
        if compute_betas is not None:
            arguments["trained_betas"] = [float(beta) for beta in compute_betas(self)]
        scheduler = DDPMScheduler(**arguments)
        if not self.log_snr_shift:
            return scheduler
        return DDPMScheduler(**arguments | {"trained_betas": _shifted(scheduler.betas.tolist(), self.log_snr_shift)})


def _shifted(betas: Sequence[float], log_snr_shift: float) -> list[float]:
    """The betas of the same schedule with SNR(t) exp(log_snr_shift)."""
    kept, last, shifted = 1.0, 1.0, []
    for beta in betas:
        kept *= 1 - beta
        signal = kept * math.exp(log_snr_shift)
        now = signal / (signal + 1 - kept)
        shifted.append(1 - now / last)
        last = now
    return shifted
