"""The one way from a network to images, in a run and after it: batch after batch."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from diffusers import UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.pixels import PixelValues
from ddpm_train.config.samplers import FITTED
from ddpm_train.diffusion.pixels import to_physical, to_uint8
from ddpm_train.models.load import Model
from ddpm_train.sampling import fitting
from ddpm_train.sampling.fitted_sampler import FittedSteps
from ddpm_train.sampling.guidance import GuidedUNet, network_at
from ddpm_train.sampling.inpainting import inpaint, visits
from ddpm_train.sampling.loop import (
    Observer,
    build_sampler,
    denoise,
    first_step,
    ignore,
    image_generators,
    noised,
)
from ddpm_train.sampling.recipe import Recipe
from ddpm_train.sampling.sampler_check import refusal
from ddpm_train.sampling.schedule import Schedule, embedded
from ddpm_train.system.compute import PLAIN, Compute, Stopwatch, choose, multiplies_in_bf16, out_of_memory

T = TypeVar("T")
# The batch that `auto` begins with. A CPU gains nothing from a larger one, and does not say when its memory runs out.
_LARGEST_BATCH, _LARGEST_BATCH_ON_CPU = 1024, 64
# To measure what is fastest takes longer than fewer denoising steps than these.
_WORTH_MEASURING_STEPS = 20
# A CPU is measured with few images: it works through them one by one, and a trial must not cost what it saves.
_TRIAL_IMAGES_ON_CPU = 4


class Engine:
    """Makes batches of images with one network.

    Args:
        unet: on its device, in eval mode, laid out and compiled as `compute` says; `open_engine` sees to that. Its
            weights may be bfloat16, while x_t and the sampler stay in float32. A compiled UNet works for one batch
            size: smaller batches are filled up to that of the first.
        noise_scheduler: the diffusers scheduler with which it was trained.
        digest: of the model; by it fitted steps are kept. None: they are fitted anew.
    """

    def __init__(
        self, unet: UNet2DModel, noise_scheduler: Any, compute: Compute = PLAIN, digest: str | None = None
    ) -> None:
        self.unet = unet
        self.noise_scheduler = noise_scheduler
        self.compute = compute
        self._digest = digest
        self._fitted: dict[Path, FittedSteps] = {}
        self._compiled_batch = 0
        self._guides: dict[str, UNet2DModel] = {}  # by the model's hash, as the UNet is laid out

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def learned_variance(self) -> bool:
        return bool(self.unet.config.out_channels == 2 * self.unet.config.in_channels)

    def noise(self, recipe: Recipe, generators: list[torch.Generator]) -> Tensor:
        """float32 [B, C, H, W], the first numbers of the images' generators."""
        shape = (len(generators), self.unet.config.in_channels, *recipe.resolution)
        return randn_tensor(shape, generator=generators, device=self.device, dtype=torch.float32)

    def images(self, recipe: Recipe, indices: Sequence[int], *, observe: Observer = ignore) -> Tensor:
        """Images `indices` of the recipe, uint8 [B, C, H, W] on the device."""
        return to_uint8(self.x_0(recipe, indices, observe=observe))

    def pixels(
        self, recipe: Recipe, indices: Sequence[int], values: PixelValues | None, *, observe: Observer = ignore
    ) -> np.ndarray:
        """The same as they are stored, [B, H, W, C]: uint8, or in the units and the type of arrays.

        Args:
            values: see `Model`.
        """
        x_0 = self.x_0(recipe, indices, observe=observe)
        return np.moveaxis(to_uint8(x_0).cpu().numpy() if values is None else to_physical(values, x_0), 1, -1)

    def x_0(self, recipe: Recipe, indices: Sequence[int], *, observe: Observer = ignore) -> Tensor:
        """The same as the model has them, float32 [B, C, H, W], -1 to 1 but unclipped."""
        count = len(indices)
        if self.compute.compile:
            # Another batch size would be compiled anew.
            indices = [*indices, *[indices[-1]] * (self._compiled_batch - count)]
        generators = image_generators(recipe.seed, indices)
        x_0 = self.denoised(recipe, self.noise(recipe, generators), generators, observe=observe)
        self._compiled_batch = len(indices)
        return x_0[:count]

    def denoised(
        self, recipe: Recipe, noise: Tensor, generators: list[torch.Generator], *, observe: Observer = ignore
    ) -> Tensor:
        """x_0 from this noise (with the recipe's picture in it, if it has one), float32 [B, C, H, W]."""
        sampler, arguments = self._sampler(recipe), recipe.sampler.arguments
        network = self._network(recipe)
        with self.compute.attention_kernels():
            if recipe.inpainting is not None:
                assert recipe.picture is not None
                given = (recipe.picture, recipe.inpainting, noise, generators)
                return inpaint(network, sampler, *given, arguments=arguments, observe=observe)
            x_t, start = noise * sampler.init_noise_sigma, 0
            if recipe.picture is not None:
                x_t, start = noised(sampler, recipe.picture.to(self.device), noise, recipe.strength)
            return denoise(network, sampler, x_t, generators, start=start, arguments=arguments, observe=observe)

    def call(self, x_t: Tensor) -> Tensor:
        """One call of the UNet, at timestep 0: what a step costs."""
        with torch.no_grad(), self.compute.attention_kernels():
            timestep = embedded(self.unet, torch.zeros((), device=self.device))
            return self.unet(x_t.to(self.unet.dtype), timestep).sample.float()

    def num_steps(self, recipe: Recipe) -> int:
        """How often the loop calls the UNet for a batch, and tells the observer."""
        sampler = self._sampler(recipe, fitted=False)
        if recipe.inpainting is not None:
            jumps = visits(len(sampler.timesteps), recipe.inpainting.jump_steps, recipe.inpainting.repeats)
            return sum(there < here for here, there in jumps)
        start = 0 if recipe.picture is None else first_step(sampler, recipe.strength)
        return len(sampler.timesteps) - start

    def num_calls(self, recipe: Recipe) -> int:
        """How often a batch calls a network: the UNet at each step, and a guide in its interval."""
        network, timesteps = self._network(recipe), self._sampler(recipe).timesteps
        return sum(2 if isinstance(network_at(network, timestep), GuidedUNet) else 1 for timestep in timesteps)

    def _network(self, recipe: Recipe) -> UNet2DModel | GuidedUNet:
        guidance = recipe.guidance
        if guidance is None:
            return self.unet
        guide = self._guides.get(guidance.model.digest)
        if guide is None:
            guide = self._guides[guidance.model.digest] = _prepared(guidance.model.unet, self.device, self.compute)
        return GuidedUNet(self.unet, guide, guidance, Schedule(self.noise_scheduler))

    def _sampler(self, recipe: Recipe, *, fitted: bool = True) -> Any:
        """Args: fitted: whether it must be those timesteps, and not only so many."""
        sampler = build_sampler(recipe.sampler.name, self.noise_scheduler, recipe.sampler.arguments)
        sampler.set_timesteps(recipe.num_inference_steps)
        if fitted and recipe.sampler.name == FITTED:
            sampler.set_steps(self.fitted_steps(recipe))
        return sampler

    @torch.no_grad()
    def fitted_steps(self, recipe: Recipe, say: Callable[[str], None] = lambda line: None) -> FittedSteps:
        """Those of this model, its guidance and so many steps, whatever the seed: kept, or fitted now.

        Args:
            say: is told what takes time.
        """
        guidance = None if recipe.guidance is None else recipe.guidance.identity()
        computed = {"precision": str(self.compute), "resolution": list(recipe.resolution)}
        count = recipe.num_inference_steps
        place = fitting.kept_at({"model": self._digest, "guidance": guidance, "steps": count, **computed})
        steps = self._fitted.get(place) or (fitting.read_steps(place) if self._digest else None)
        if steps is None:
            say(
                f"fitting {count} steps to this model: the network is called {fitting.GRID_STEPS + count} times with "
                f"{fitting.FIT_IMAGES} images"
            )
            steps = self._fit(recipe)
            if self._digest:
                fitting.write_steps(place, steps)
        self._fitted[place] = steps
        return steps

    def _fit(self, recipe: Recipe) -> FittedSteps:
        network, trajectory = self._network(recipe), fitting.Trajectory(Schedule(self.noise_scheduler))
        generators = image_generators(fitting.FIT_SEED, range(fitting.FIT_IMAGES))
        noise = self.noise(recipe, generators)
        sampler = self._many_steps()

        def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
            called = network_at(network, timestep)
            prediction = called(x_t.to(network.dtype), embedded(network, timestep).to(x_t.device)).sample.float()
            return prediction[:, : x_t.shape[1]]

        with self.compute.attention_kernels():
            trajectory.ends_at(denoise(network, sampler, noise, generators, arguments={}, observe=trajectory.observe))
            return fitting.fit_steps(trajectory, noise, predict, recipe.num_inference_steps)

    def _many_steps(self) -> Any:
        """A sampler that draws no noise, at many steps."""
        steps = min(fitting.GRID_STEPS, self.noise_scheduler.config.num_train_timesteps)
        able = not refusal("dpm_solver", self.noise_scheduler, steps, {}, learned_variance=self.learned_variance)
        sampler = build_sampler("dpm_solver" if able else "ddim", self.noise_scheduler)
        sampler.set_timesteps(steps)
        return sampler


def open_engine(model: Model, device: torch.device, compute: Compute = PLAIN) -> Engine:
    """The model on a device; what computes in another than the plain way is a copy of it."""
    return Engine(_prepared(model.unet, device, compute), model.noise_scheduler, compute, model.digest)


def _prepared(unet: UNet2DModel, device: torch.device, compute: Compute) -> UNet2DModel:
    unet = unet if compute == PLAIN else copy.deepcopy(unet)
    dtype = torch.bfloat16 if compute.mixed_precision == "bf16" else torch.float32
    # Not ModelMixin's `to`, which warns of float32 modules even where it finds none.
    unet = nn.Module.to(unet, device=device, dtype=dtype)
    compute.apply(unet)
    return unet


def choose_compute(
    model: Model, device: torch.device, recipe: Recipe, mixed_precision: str, num_images: int, batch_size: int | None
) -> Compute:
    """How to call the UNet: for `auto` the fastest way, measured, if there is enough to do to make it worth while."""
    if mixed_precision != "auto":
        return replace(PLAIN, mixed_precision=mixed_precision)
    batch = min(batch_size or _largest_batch(device), num_images)
    num_steps = Engine(model.unet, model.noise_scheduler).num_steps(recipe) * -(-num_images // batch)
    if num_steps < _WORTH_MEASURING_STEPS or not multiplies_in_bf16(device):
        return PLAIN
    trial = batch if device.type != "cpu" else min(batch, _TRIAL_IMAGES_ON_CPU)
    x_t = torch.zeros(trial, model.unet.config.in_channels, *recipe.resolution, device=device)
    engines = functools.cache(lambda compute: open_engine(model, device, compute))
    stopwatch = Stopwatch(lambda compute: engines(compute).call(x_t), device, {})
    try:
        rounded = choose(PLAIN, {"mixed_precision": ["bf16"]}, stopwatch)
        if rounded == PLAIN:  # any other way rounds, too
            return PLAIN
        return choose(rounded, {"channels_last": [True], "attention": ["math"]}, stopwatch)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return replace(PLAIN, mixed_precision="bf16")  # which takes less of it


def in_batches(
    indices: Sequence[int], compute: Callable[[Sequence[int]], T], batch_size: int | None, device: torch.device
) -> Iterator[tuple[Sequence[int], T]]:
    """Apply `compute` to all indices in batches; None: the largest that fit, found by halving.

    Raises:
        Mistakes: the batch that was asked for, or a single image, does not fit.
    """
    size = min(batch_size or _largest_batch(device), max(len(indices), 1))
    place = 0
    while place < len(indices):
        batch = indices[place : place + size]
        try:
            result = compute(batch)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if batch_size is not None:
                line = f"batch_size={batch_size}: does not fit in the memory of {device}; use less, or auto"
                raise Mistakes(line) from None
            if size == 1:
                raise Mistakes(f"batch_size=auto: one image alone does not fit in the memory of {device}") from None
            size //= 2
        else:
            yield batch, result
            place += len(batch)
            continue
        clear_device_cache(garbage_collection=True)


def _largest_batch(device: torch.device) -> int:
    return _LARGEST_BATCH_ON_CPU if device.type == "cpu" else _LARGEST_BATCH
