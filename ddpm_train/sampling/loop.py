"""From noise to images, with any diffusers scheduler: the loop of the diffusers documentation."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ddpm_train.config import samplers
from ddpm_train.sampling.guidance import GuidedUNet, network_at
from ddpm_train.sampling.schedule import embedded

# Takes a step's number, timestep, model input (x_t, variance-preserving) and prediction.
Observer = Callable[[int, Tensor, Tensor, Tensor], None]


def ignore(number: int, timestep: Tensor, x_t: Tensor, prediction: Tensor) -> None:
    """The observer that observes nothing."""


def build_sampler(name: str, noise_scheduler: Any, arguments: Mapping[str, Any] | None = None) -> Any:
    """The diffusers scheduler of that name, on the model's own noise schedule and prediction type.

    Args:
        noise_scheduler: the diffusers scheduler of the model.
        arguments: of the constructor or of `step`; see `step_arguments` for the latter.

    Raises:
        ValueError, NotImplementedError, ImportError: from diffusers, about the arguments.
    """
    constructor, _ = samplers.arguments(name)
    # Named, since `from_config` leaves out what stands at DDPMScheduler's default, and the classes' defaults differ:
    # Heun's linear schedule would end at 0.012 where DDPM's ends at 0.02.
    own = {key: noise_scheduler.config[key] for key in samplers.OF_THE_MODEL if key in constructor}
    given = {key: value for key, value in (arguments or {}).items() if key in constructor}
    return samplers.SAMPLERS[name].load().from_config(noise_scheduler.config, **own, **given)


def step_arguments(sampler: Any, arguments: Mapping[str, Any], generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """What the sampler's `step` takes of its arguments, such as DDIM's eta, and the generators if it draws noise."""
    taken = inspect.signature(sampler.step).parameters
    return {key: value for key, value in {**arguments, "generator": generators}.items() if key in taken}


def image_seed(seed: int, index: int) -> int:
    """The seed of image `index`'s own torch.Generator, in [0, 2**32).

    torch's CPU generator keeps 32 bits of a seed. The golden-ratio multiple spreads the runs' seeds over them, so
    that images of neighbouring seeds do not coincide.
    """
    return (2654435761 * seed + index) % 2**32


def image_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """A generator for each image, on the CPU, so that every device draws the same numbers."""
    return [torch.Generator().manual_seed(image_seed(seed, index)) for index in indices]


@torch.no_grad()
def denoise(
    unet: UNet2DModel | GuidedUNet,
    sampler: Any,
    x_t: Tensor,
    generators: list[torch.Generator],
    *,
    start: int = 0,
    arguments: Mapping[str, Any],
    observe: Observer = ignore,
) -> Tensor:
    """Run the sampler's timesteps from `start` on; float32 x_0, [B, C, H, W], unclipped.

    Nothing in the loop waits for the device: the sampler's timesteps stay on the CPU, where it needs them, and the
    UNet is given copies that are on its device already.

    Args:
        unet: in eval mode. In bfloat16 it is given x_t rounded, while x_t and the sampler stay in float32.
        sampler: a diffusers scheduler whose timesteps are set.
        x_t: float32 [B, C, H, W] at timestep number `start`, scaled as the sampler has it.
        generators: one for each image, for samplers that draw noise at each step.
        arguments: all arguments of the sampler, see `step_arguments`.
        observe: called at each step, between the prediction and the step itself; it may raise to end the loop.
    """
    dtype = unet.dtype
    taken = step_arguments(sampler, arguments, generators)
    if hasattr(sampler, "noise_sampler_seed"):  # DPMSolverSDE draws from a Brownian tree for each image
        sampler.noise_sampler_seed = [generator.initial_seed() for generator in generators]
    timesteps = sampler.timesteps[start:]
    on_device = embedded(unet, timesteps).to(x_t.device)
    for number, timestep in enumerate(timesteps):
        model_input = sampler.scale_model_input(x_t, timestep)
        network = network_at(unet, timestep)
        prediction = network(model_input.to(dtype), on_device[number]).sample.float()
        observe(number, timestep, model_input, prediction)
        x_t = sampler.step(prediction, timestep, x_t, **taken).prev_sample
    return x_t


def first_step(sampler: Any, strength: float) -> int:
    """The number of the timestep from which `strength` of the steps remain, as diffusers' image-to-image counts."""
    steps: int = sampler.num_inference_steps
    return max(steps - int(steps * strength), 0) * sampler.order


def noised(sampler: Any, x_0: Tensor, noise: Tensor, strength: float) -> tuple[Tensor, int]:
    """A picture noised so far that `strength` of the steps remain (SDEdit, Meng et al. 2022), and the first of them.

    Args:
        sampler: its timesteps must be set.
        x_0: float32 [1 or B, C, H, W] in [-1, 1].
        noise: [B, C, H, W].
        strength: in (0, 1].
    """
    start = first_step(sampler, strength)
    if hasattr(sampler, "set_begin_index"):
        sampler.set_begin_index(start)
    return sampler.add_noise(x_0.expand_as(noise), noise, sampler.timesteps[start : start + 1]), start
