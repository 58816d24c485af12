"""Fitted steps: few calls of a network that come as near as they can to its many-step result.

A multistep sampler makes the next x of the present one and of the network's estimates of x_0 so far; its coefficients
follow from assumptions about any network. Here least squares finds them for this one, on its own trajectories (BNS,
Shaul et al. 2024, arXiv 2403.01329, and S4S, arXiv 2502.17423, learn them by gradients). It takes one run of many
steps:

1. At a grid of timesteps the run gives x and the estimate of x_0 of each image. The Gram matrix of all of them tells
   how far each step between two of them misses, without a further call.
2. The timesteps begin uniform, and are moved along the grid as long as the sum of squared misses falls. (GITS, arXiv
   2405.11326, likewise chooses them from trajectories, for Euler's steps.)
3. The few steps are taken, and at each the weights are fitted once more to where the network really stands: it must
   come back to the trajectory, and not only stay on it.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.sampling.fitted_sampler import FittedSteps, Plan, ddim_factors
from ddpm_train.sampling.schedule import Schedule
from ddpm_train.system.files import cache_folder, write_atomic

# A network, of x_t [B, C, H, W] and a timestep, a scalar on the CPU; float32 [B, C, H, W].
Predict = Callable[[Tensor, Tensor], Tensor]

FIT_IMAGES = 32
FIT_SEED = 2405_11326  # of no image that anybody asks for
GRID_STEPS = 100
_FORMAT = 1  # of what is fitted, and how
_MOST_NUMBERS = 1 << 16  # of the images at one timestep, that are compared
_FIRST_MOVE = 8  # along the grid
_RIDGE = 1e-6  # of the mean square: estimates at neighbouring timesteps are nearly the same


class Trajectory:
    """What a run of many steps leaves: x and the estimates of x_0 at its timesteps, and its result.

    Only every n-th number of large images is kept.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.timesteps: list[int] = []
        self.x: list[Tensor] = []  # float64 [N] each; the result is the last
        self._x_0: list[Tensor] = []

    def observe(self, number: int, timestep: Tensor, x_t: Tensor, prediction: Tensor) -> None:
        """An `Observer` of the loop."""
        self.timesteps.append(int(timestep))
        self.x.append(some(x_t))
        self._x_0.append(some(self.schedule.x_0(x_t, prediction, timestep)))

    def ends_at(self, x_0: Tensor) -> None:
        """The result, [B, C, H, W]."""
        self.x.append(some(x_0))

    def timestep(self, place: int) -> int | None:
        """At a place in the grid; None at its end."""
        return self.timesteps[place] if place < len(self.timesteps) else None

    def gram(self) -> Tensor:
        """Mean products of x at all G places, the result, and the estimates of x_0, float64 [2 G + 1, 2 G + 1]."""
        rows = torch.stack([*self.x, *self._x_0])
        return rows @ rows.T / rows.shape[1]


def some(images: Tensor) -> Tensor:
    """float64 [N], the same places of all images of a shape."""
    return images.flatten()[:: -(-images.numel() // _MOST_NUMBERS)].double().cpu()


def fit_steps(trajectory: Trajectory, noise: Tensor, predict: Predict, num_inference_steps: int) -> FittedSteps:
    """The steps that come nearest to the end of a trajectory, from the noise with which it began."""
    plan = Plan(trajectory.schedule)
    known, x_t = [noise], noise

    def total(row: np.ndarray) -> Tensor:
        return sum(float(weight) * each for weight, each in zip(row, known, strict=True))

    for place, following in _pairs(_choose_places(trajectory, num_inference_steps), len(trajectory.timesteps)):
        timestep = trajectory.timesteps[place]
        plan.call(timestep)
        known.append(predict(x_t, torch.tensor(timestep)))
        missed = trajectory.x[following] - some(total(plan.ddim(trajectory.timestep(following))))
        weights: list[float] = []
        if differences := [some(total(each)) for each in plan.differences()]:
            given = torch.stack(differences)
            weights = _least_squares(given @ given.T, given @ missed).tolist()
        plan.step(trajectory.timestep(following), weights)
        x_t = total(plan.x_t)
    return plan.steps()


def _choose_places(trajectory: Trajectory, count: int) -> list[int]:
    """Places in the grid, of which the first is its first."""
    grid, gram = len(trajectory.timesteps), trajectory.gram()
    places = [round(grid * number / count) for number in range(count)]
    least, move = _error(trajectory, gram, places), _FIRST_MOVE
    while move:
        moved = False
        for number, by in itertools.product(range(1, count), (-move, move)):
            tried = [*places[:number], places[number] + by, *places[number + 1 :]]
            if any(here >= there for here, there in _pairs(tried, grid)):
                continue
            if (error := _error(trajectory, gram, tried)) < least:
                places, least, moved = tried, error, True
        if not moved:
            move //= 2
    return places


def _pairs(places: Sequence[int], grid: int) -> list[tuple[int, int]]:
    """Each place, and the one that follows it."""
    return list(itertools.pairwise([*places, grid]))


def _error(trajectory: Trajectory, gram: Tensor, places: Sequence[int]) -> float:
    """The sum over the steps of the mean square by which each misses the trajectory, if it begins on it."""
    error, grid = 0.0, len(trajectory.timesteps)
    for number, (place, following) in enumerate(_pairs(places, grid)):
        estimates = [grid + 1 + earlier for earlier in places[: number + 1]]
        products = gram[[following, place, *estimates]][:, [following, place, *estimates]]
        of_x_t, of_x_0 = ddim_factors(trajectory.schedule, trajectory.timesteps[place], trajectory.timestep(following))
        # Rows of coefficients: what DDIM's step misses, and the differences.
        rows = torch.zeros(number + 1, number + 3, dtype=torch.float64)
        rows[0, 0], rows[0, 1], rows[0, -1] = 1.0, -of_x_t, -of_x_0
        for later in range(1, number + 1):
            rows[later, later + 1 : later + 3] = torch.tensor([-1.0, 1.0])
        of_rows = rows @ products @ rows.T
        given, missed = of_rows[1:, 1:], of_rows[1:, 0]
        weights = _least_squares(given, missed)
        error += float(of_rows[0, 0] + weights @ (given @ weights - 2 * missed))
    return error if math.isfinite(error) else math.inf


def _least_squares(products: Tensor, with_wanted: Tensor) -> Tensor:
    """Of normal equations, with a little less trust in what they cannot tell apart."""
    diagonal = products.diagonal()
    return torch.linalg.solve(products + torch.diag(_RIDGE * diagonal + torch.finfo(diagonal.dtype).tiny), with_wanted)


def kept_at(identity: dict[str, Any]) -> Path:
    """Where the steps of this model are kept, by all that they depend on.

    Raises:
        Mistakes: see `cache_folder`.
    """
    key = json.dumps({"format": _FORMAT, **identity}, sort_keys=True)
    return cache_folder(None) / "fitted" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def read_steps(path: Path) -> FittedSteps | None:
    """None if the file is not there, or not whole."""
    try:
        steps = read_json(path, FittedSteps)
    except (OSError, BadFile):
        return None
    return steps if steps.is_whole else None


def write_steps(path: Path, steps: FittedSteps) -> None:
    """A disk that is full only makes the next call fit them again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(steps)).encode())
    except OSError:
        return
