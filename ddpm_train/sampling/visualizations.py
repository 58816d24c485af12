"""What shows how images come about: the loop's own course, a walk between two seeds, samplers side by side."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm_train.config.parts import Sampler
from ddpm_train.config.sample import SampleConfig
from ddpm_train.diffusion.pixels import to_uint8
from ddpm_train.sampling.engine import Engine, in_batches
from ddpm_train.sampling.loop import Observer, ignore, image_generators
from ddpm_train.sampling.recipe import Recipe, compared
from ddpm_train.sampling.sampler_check import is_stochastic, refusal
from ddpm_train.sampling.schedule import Schedule

# The result of many steps that others are compared with; also a multiple of the most that were asked for.
_REFERENCE_STEPS = 200
_REFERENCE_SAMPLERS = ("dpm_solver", "ddim")
_FRAMES = 10


@torch.no_grad()
def trajectory(engine: Engine, recipe: Recipe, config: SampleConfig, observe: Observer = ignore) -> Tensor:
    """x_t and the current estimate of x_0, every few calls of the UNet, and twice the result last.

    Returns:
        uint8 [F, 2, B, C, H, W] on the CPU, x_t first.
    """
    schedule = Schedule(engine.noise_scheduler)
    every = config.trajectory_every_steps or max(1, round(engine.num_steps(recipe) / _FRAMES))

    def frames(batch: Sequence[int]) -> Tensor:
        seen: list[Tensor] = []

        def keep(number: int, timestep: Tensor, x_t: Tensor, prediction: Tensor) -> None:
            observe(number, timestep, x_t, prediction)
            if number % every == 0:
                seen.append(to_uint8(torch.stack((x_t, schedule.x_0(x_t, prediction, timestep)))))

        final = engine.images(recipe, batch, observe=keep)
        seen.append(torch.stack((final, final)))
        return torch.stack([both[:, : len(batch)] for both in seen]).cpu()  # a compiled network may have made more

    parts = in_batches(range(config.num_images), frames, config.batch_size, engine.device)
    return torch.cat([part for _, part in parts], dim=2)


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
    engine: Engine, recipe: Recipe, config: SampleConfig, index: int, observe: Observer = ignore
) -> Tensor:
    """The frames of a walk from image `index` of one seed to that of the other, uint8 [F, C, H, W] on the CPU.

    Where the sampler draws noise on its way, all frames draw the same.
    """
    last = config.interpolate_frames - 1
    ends = [engine.noise(recipe, image_generators(seed, [index]))[0] for seed in (recipe.seed, config.walks_to)]

    def frames(batch: Sequence[int]) -> Tensor:
        fractions = torch.tensor([frame / last for frame in batch], device=engine.device)
        generators = [generator for _ in batch for generator in image_generators(recipe.seed, [index])]
        engine.noise(recipe, generators)  # what image `index` has drawn before its first step
        noise = slerp(fractions, *ends)
        # To the bit what both seeds make: the sine of the angle rounds.
        noise[fractions == 0], noise[fractions == 1] = ends[0], ends[1]
        return to_uint8(engine.denoised(recipe, noise, generators, observe=observe)).cpu()

    return torch.cat([part for _, part in in_batches(range(last + 1), frames, config.batch_size, engine.device)])


@dataclass(frozen=True)
class Compared:
    """One sampler at one number of steps.

    Attributes:
        images: uint8 [B, C, H, W].
        model_calls: how often the UNet, or its guide, was called for each image.
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


def comparison(engine: Engine, recipe: Recipe, config: SampleConfig) -> tuple[list[Compared], str]:
    """Every sampler at every number of steps from the same noise, and the name of what they are compared with."""
    indices = range(config.num_images)
    reference = _reference(engine, recipe, max(config.compare.steps))
    many_steps = engine.images(reference, indices).float().cpu()
    results = []
    for name in config.compare.samplers:
        sampler = compared(recipe.sampler, name)
        stochastic = is_stochastic(name, sampler.arguments)
        for count in config.compare.steps:
            tried = replace(recipe, sampler=sampler, num_inference_steps=count)
            calls = engine.num_calls(tried)  # also fits steps that are to be fitted, which is no part of sampling
            started = time.perf_counter()
            images = engine.images(tried, indices).cpu()
            seconds = time.perf_counter() - started
            distance = None if stochastic else (images.float() - many_steps).square().mean().sqrt().item()
            results.append(Compared(name, count, images, calls, seconds, distance))
    return results, f"{reference.sampler.name} at {reference.num_inference_steps} steps"


def _reference(engine: Engine, recipe: Recipe, most_steps: int) -> Recipe:
    """The first deterministic sampler that can, at many steps."""
    schedule, learned = engine.noise_scheduler, engine.learned_variance
    steps = min(max(_REFERENCE_STEPS, 2 * most_steps), schedule.config.num_train_timesteps)
    able = (name for name in _REFERENCE_SAMPLERS if not refusal(name, schedule, steps, {}, learned_variance=learned))
    name = next(able, _REFERENCE_SAMPLERS[-1])
    return replace(recipe, sampler=Sampler(name), num_inference_steps=steps)
