"""Looks at how images come about: what the loop saw, a walk between two seeds, samplers side by side."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm_train.config.parts import Sampler, SamplerName
from ddpm_train.sampling.engine import Engine
from ddpm_train.sampling.loop import image_generators, to_uint8
from ddpm_train.sampling.recipe import Recipe, compared, sampler_mistakes
from ddpm_train.sampling.sampler_check import Schedule, is_stochastic

# The result of many steps that others are compared with; also a multiple of the most that were asked for.
_REFERENCE_STEPS = 200
_REFERENCE_SAMPLERS: tuple[SamplerName, ...] = ("dpm_solver", "ddim")
_FRAMES = 10

Step = Callable[[], None]


@dataclass(frozen=True)
class Frame:
    """One look into the loop: both uint8 [B, C, H, W] on the CPU."""

    timestep: float
    x_t: Tensor
    x_0: Tensor


@torch.no_grad()
def trajectory(
    engine: Engine,
    recipe: Recipe,
    indices: Sequence[int],
    every_steps: int | None = None,
    before_step: Step = lambda: None,
) -> list[Frame]:
    """x_t and the current estimate of x_0, each `every_steps` calls of the UNet, and the result (timestep 0) last."""
    schedule = Schedule(engine.model.noise_scheduler)
    every = every_steps or max(1, round(engine.num_steps(recipe) / _FRAMES))
    seen: list[tuple[float, Tensor, Tensor]] = []

    def observe(number: int, timestep: Tensor, x_t: Tensor, prediction: Tensor) -> None:
        if number % every == 0:
            seen.append((float(timestep), to_uint8(x_t), to_uint8(schedule.x_0(x_t, prediction, timestep))))

    final = engine.images(recipe, indices, before_step=before_step, observe=observe)
    frames = [(timestep, x_t[: len(indices)], x_0[: len(indices)]) for timestep, x_t, x_0 in seen]
    return [Frame(timestep, x_t.cpu(), x_0.cpu()) for timestep, x_t, x_0 in [*frames, (0.0, final, final)]]


def slerp(fraction: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Along the great circle from `a` to `b` (Shoemake 1985): between two draws of noise it keeps the norm of noise.

    Args:
        fraction: [F], in [0, 1].
        a, b: of one shape.

    Returns:
        [F, *shape]; equal to `a` at 0 and to `b` at 1.
    """
    cosine = (a.flatten() @ b.flatten() / (a.norm() * b.norm())).clamp(-1, 1)
    angle = torch.arccos(cosine)
    spread = [-1] + [1] * a.ndim
    weights = [torch.sin(part * angle).view(spread) / torch.sin(angle) for part in (1 - fraction, fraction)]
    return weights[0] * a + weights[1] * b


@torch.no_grad()
def interpolation(
    engine: Engine,
    recipe: Recipe,
    other_seed: int,
    index: int,
    frames: Sequence[int],
    num_frames: int,
    before_step: Step = lambda: None,
) -> Tensor:
    """Frames of the walk from image `index` of the recipe's seed to that of `other_seed`, uint8 [F, C, H, W].

    Where the sampler draws noise on its way, all frames draw the same.
    """  # fmt: skip
    ends = [engine.noise(recipe, image_generators(seed, [index]))[0] for seed in (recipe.seed, other_seed)]
    fractions = torch.tensor([frame / (num_frames - 1) for frame in frames], device=ends[0].device)
    generators = [generator for _ in frames for generator in image_generators(recipe.seed, [index])]
    engine.noise(recipe, generators)  # what image `index` has drawn before its first step
    noise = slerp(fractions, *ends)
    # To the bit what both seeds make: the sine of the angle rounds.
    noise[fractions == 0], noise[fractions == 1] = ends[0], ends[1]
    return to_uint8(engine.denoised(recipe, noise, generators, before_step=before_step)).cpu()


@dataclass(frozen=True)
class Compared:
    """One sampler at one number of steps.

    Attributes:
        images: uint8 [B, C, H, W].
        model_calls: how often the UNet was called for each image.
        seconds: for all images.
        distance: root mean square difference to the many-step result, in levels of 0 … 255; None for a sampler that
            draws noise on its way and so goes elsewhere.
    """

    sampler: str
    num_inference_steps: int
    images: Tensor
    model_calls: int
    seconds: float
    distance: float | None


def comparison(
    engine: Engine,
    recipe: Recipe,
    samplers: Sequence[SamplerName],
    steps: Sequence[int],
    indices: Sequence[int],
    before_step: Step = lambda: None,
) -> tuple[list[Compared], str]:
    """Every sampler at every number of steps from the same noise, and in words what they are compared with."""
    recipes = [
        replace(recipe, sampler=compared(recipe.sampler, name), num_inference_steps=count)
        for name in samplers
        for count in steps
    ]
    reference = _reference(engine, recipe, max(steps))
    towards = engine.images(reference, indices, before_step=before_step).float()
    results = []
    for wanted in recipes:
        name = wanted.sampler.name
        started = time.perf_counter()
        images = engine.images(wanted, indices, before_step=before_step).cpu()
        seconds = time.perf_counter() - started
        distance = (images.float() - towards.cpu()).square().mean().sqrt().item()
        stochastic = is_stochastic(name, wanted.sampler.arguments)
        results.append(
            Compared(
                name,
                wanted.num_inference_steps,
                images,
                engine.num_steps(wanted),
                seconds,
                None if stochastic else distance,
            )
        )
    return results, f"{reference.sampler.name} at {reference.num_inference_steps} steps"


def _reference(engine: Engine, recipe: Recipe, most_steps: int) -> Recipe:
    """The first deterministic sampler that can, at many steps."""
    trained = engine.model.noise_scheduler.config.num_train_timesteps
    steps = min(max(_REFERENCE_STEPS, 2 * most_steps), trained)
    candidates = [Sampler(name) for name in _REFERENCE_SAMPLERS]
    able = (sampler for sampler in candidates if not list(sampler_mistakes(engine.model, sampler, steps)))
    return replace(recipe, sampler=next(able, candidates[-1]), num_inference_steps=steps)
