"""A sampler whose timesteps and coefficients are those of one model: see `fitting.py`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from ddpm_train.sampling.schedule import Schedule

# With more, the grid of the fit would be hardly finer than they are.
MOST_STEPS = 50


@dataclass(frozen=True)
class FittedSteps:
    """Where a model is called, and what is made of its predictions p_0, p_1, … there.

    Attributes:
        timesteps: falling, in [0, num_train_timesteps).
        coefficients: of step i, i + 2 numbers: x_{i+1} = c_0 noise + c_1 p_0 + … + c_{i+1} p_i. The last is x_0.
    """

    timesteps: tuple[int, ...]
    coefficients: tuple[tuple[float, ...], ...]

    @property
    def is_whole(self) -> bool:
        """Whether there are as many coefficients as the timesteps need."""
        return [len(row) for row in self.coefficients] == [number + 2 for number in range(len(self.timesteps))]


class Plan:
    """The same as it is made, one step after the other.

    A step is DDIM's (Song et al. 2021, equation 12 with sigma = 0) and a sum of the differences between neighbouring
    estimates of x_0, each with a weight. So it is exact for a network whose estimate does not change, whatever the
    weights are. Everything stands as its coefficients of the noise and the predictions, float64.

    Attributes:
        x_0: the estimates so far.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._timesteps: list[int] = []
        self._rows = [np.ones(1)]
        self.x_0: list[np.ndarray] = []

    @property
    def x_t(self) -> np.ndarray:
        return self._rows[-1]

    def call(self, timestep: int) -> None:
        """Call the network at x_t, which adds its prediction to what there is."""
        x_t, prediction = (torch.tensor(pair, dtype=torch.float64).view(2, 1) for pair in ([1.0, 0.0], [0.0, 1.0]))
        of_x_t, of_prediction = self._schedule.x_0(x_t, prediction, torch.tensor(timestep)).flatten().tolist()
        self._timesteps.append(timestep)
        self.x_0.append(np.append(of_x_t * self.x_t, of_prediction))

    def ddim(self, following: int | None) -> np.ndarray:
        """x at the following timestep, or None for x_0, without what the differences add."""
        of_x_t, of_x_0 = ddim_factors(self._schedule, self._timesteps[-1], following)
        return of_x_t * np.append(self.x_t, 0.0) + of_x_0 * self.x_0[-1]

    def differences(self) -> list[np.ndarray]:
        """Of each estimate to the one before it."""
        long = [np.pad(each, (0, len(self.x_0[-1]) - len(each))) for each in self.x_0]
        return [later - earlier for earlier, later in itertools.pairwise(long)]

    def step(self, following: int | None, weights: Sequence[float]) -> None:
        """Go there."""
        added = (weight * each for weight, each in zip(weights, self.differences(), strict=True))
        self._rows.append(sum(added, start=self.ddim(following)))

    def steps(self) -> FittedSteps:
        return FittedSteps(tuple(self._timesteps), tuple(tuple(row.tolist()) for row in self._rows[1:]))


def ddim_factors(schedule: Schedule, timestep: int, following: int | None) -> tuple[float, float]:
    """Of x_t and of the estimate of x_0 in DDIM's step to the following timestep, or None for x_0."""
    alpha, sigma = schedule.at(torch.tensor(timestep))
    next_alpha, next_sigma = (1.0, 0.0) if following is None else schedule.at(torch.tensor(following))
    return next_sigma / sigma, next_alpha - alpha * next_sigma / sigma


class FittedSampler(ConfigMixin):
    """The interface of diffusers' schedulers; without `steps` it does DDIM's at uniform timesteps."""

    config_name = "scheduler_config.json"
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._noise_scheduler = DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.alphas_cumprod = self._noise_scheduler.alphas_cumprod

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Those of DDIM.

        Raises:
            ValueError: there are too many.
        """
        trained = self._noise_scheduler.config.num_train_timesteps
        most = min(MOST_STEPS, trained // 2)
        if num_inference_steps > most:
            raise ValueError(f"it fits at most {most} steps")
        spaced = np.linspace(trained - 1, 0, num_inference_steps + 1).round().astype(int)[:-1]
        plan = Plan(Schedule(self._noise_scheduler))
        for number, (timestep, following) in enumerate(itertools.pairwise([*spaced.tolist(), None])):
            plan.call(timestep)
            plan.step(following, [0.0] * number)
        self.set_steps(plan.steps())

    def set_steps(self, steps: FittedSteps) -> None:
        """Those that were fitted."""
        self.num_inference_steps = len(steps.timesteps)
        self.timesteps = torch.tensor(steps.timesteps)
        self._coefficients = steps.coefficients
        self._known: list[Tensor] = []

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """As it is."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Any:
        """From x_t to the next, [B, C, H, W]; the steps must be done in their order."""
        self._known = [*(self._known or [sample]), model_output[:, : sample.shape[1]]]
        terms = zip(self._coefficients[len(self._known) - 2], self._known, strict=True)
        return SimpleNamespace(prev_sample=sum(weight * known for weight, known in terms))
