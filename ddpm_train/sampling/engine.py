"""A model on a device, ready to make one batch after another."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddpm_train.compute import fastest
from ddpm_train.diffusion.inpainting import inpaint, visits
from ddpm_train.diffusion.sampling import (
    Observer,
    build_sampler,
    denoise,
    first_step,
    image_generators,
    noised,
    step_arguments,
    to_uint8,
)
from ddpm_train.loading import Model
from ddpm_train.mistakes import Mistakes
from ddpm_train.sampling.recipe import Recipe

T = TypeVar("T")
# Where `auto` begins to look for what fits. A CPU gains nothing from more, and is not told when memory runs out.
_LARGEST_BATCH = {"cpu": 64}
_LARGEST_BATCH_ELSEWHERE = 1024
# Fewer denoising steps than these take less time than finding out how to make them faster.
_WORTH_MEASURING_STEPS = 20
# A CPU is measured with few images: it works through them one by one, and a trial must not cost what it saves.
_TRIAL_IMAGES_ON_CPU = 4
_MARGIN = 0.1


@dataclass(frozen=True)
class Precision:
    """How the UNet computes; x_t and the sampler are in float32 always."""

    bf16: bool = False
    channels_last: bool = False
    math_attention: bool = False  # for small heads a CPU is faster without its flash attention


PRECISIONS = {
    "no": Precision(),  # the same numbers as diffusers' own loop
    "bf16": Precision(bf16=True),
    "bf16, channels_last": Precision(bf16=True, channels_last=True),
    "bf16, channels_last, math attention": Precision(bf16=True, channels_last=True, math_attention=True),
}


class Engine:
    """Makes batches of images with one model.

    Args:
        precision: a name in PRECISIONS.
        compile: compile the UNet once, for the first batch; smaller batches are filled up to its size.
    """

    def __init__(self, model: Model, device: torch.device, *, precision: str = "no", compile: bool = False) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        choice = PRECISIONS[precision]
        unet = copy.deepcopy(model.unet) if choice.bf16 or choice.channels_last else model.unet
        # Not ModelMixin's `to`, which warns of float32 modules even where it finds none.
        unet = nn.Module.to(
            unet,
            device=device,
            dtype=torch.bfloat16 if choice.bf16 else torch.float32,
            memory_format=torch.channels_last if choice.channels_last else torch.preserve_format,
        )
        self.unet = torch.compile(unet, dynamic=False) if compile else unet
        self._math_attention = choice.math_attention
        self._compiled_batch = 0
        self._compile = compile

    def noise(self, recipe: Recipe, generators: list[torch.Generator]) -> Tensor:
        """float32 [B, C, H, W], the first numbers of the images' generators."""
        shape = (len(generators), self.model.unet.config.in_channels, *recipe.resolution)
        return randn_tensor(shape, generator=generators, device=self.device, dtype=torch.float32)

    def images(
        self,
        recipe: Recipe,
        indices: Sequence[int],
        *,
        before_step: Callable[[], None] = lambda: None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Images `indices` of the recipe, uint8 [B, C, H, W] on the device."""
        count = len(indices)
        if self._compile:
            # Another batch size would be compiled anew.
            indices = [*indices, *[indices[-1]] * (self._compiled_batch - count)]
        generators = image_generators(recipe.seed, indices)
        if recipe.inpainting is not None:
            x_0 = self._inpainted(recipe, generators, before_step, observe)
        else:
            noise = self.noise(recipe, generators)
            x_0 = self.denoised(recipe, noise, generators, before_step=before_step, observe=observe)
        self._compiled_batch = len(indices)
        return to_uint8(x_0)[:count]

    def denoised(
        self,
        recipe: Recipe,
        noise: Tensor,
        generators: list[torch.Generator],
        *,
        before_step: Callable[[], None] = lambda: None,
        observe: Observer | None = None,
    ) -> Tensor:
        """x_0 from this noise (with the recipe's picture in it, if it has one), float32 [B, C, H, W]."""
        sampler, arguments = self._sampler(recipe)
        x_t, start = noise * sampler.init_noise_sigma, 0
        if recipe.picture is not None:
            x_t, start = noised(sampler, recipe.picture.to(self.device), noise, recipe.strength)
        with self._attention():
            return denoise(
                self.unet,
                sampler,
                x_t,
                generators,
                start=start,
                step_arguments=arguments,
                before_step=before_step,
                observe=observe,
            )

    def call(self, x_t: Tensor) -> Tensor:
        """One call of the UNet, at timestep 0: what a step costs."""
        with torch.no_grad(), self._attention():
            return self.unet(x_t.to(self.unet.dtype), torch.zeros((), device=self.device)).sample.float()

    def num_steps(self, recipe: Recipe) -> int:
        """How often the loop calls the UNet for a batch."""
        sampler, _ = self._sampler(recipe)
        if recipe.inpainting is not None:
            jumps = visits(len(sampler.timesteps), recipe.inpainting.jump_steps, recipe.inpainting.repeats)
            return sum(there < here for here, there in jumps)
        start = 0 if recipe.picture is None else first_step(sampler, recipe.strength)
        return len(sampler.timesteps) - start

    def _inpainted(
        self,
        recipe: Recipe,
        generators: list[torch.Generator],
        before_step: Callable[[], None],
        observe: Observer | None,
    ) -> Tensor:
        assert recipe.picture is not None and recipe.inpainting is not None
        sampler, arguments = self._sampler(recipe)
        with self._attention():
            return inpaint(
                self.unet,
                sampler,
                recipe.picture.to(self.device),
                recipe.inpainting.mask.to(self.device),
                generators,
                jump_steps=recipe.inpainting.jump_steps,
                repeats=recipe.inpainting.repeats,
                step_arguments=arguments,
                before_step=before_step,
                observe=observe,
            )

    def _sampler(self, recipe: Recipe) -> tuple[Any, dict[str, Any]]:
        name, arguments = recipe.sampler.name, recipe.sampler.arguments
        sampler = build_sampler(name, self.model.noise_scheduler, arguments)
        sampler.set_timesteps(recipe.num_inference_steps)
        return sampler, step_arguments(name, arguments)

    def _attention(self) -> Any:
        return sdpa_kernel(SDPBackend.MATH) if self._math_attention else nullcontext()


def choose_precision(
    model: Model, device: torch.device, recipe: Recipe, *, mixed_precision: str, num_images: int, batch_size: int | None
) -> str:
    """A name in PRECISIONS: for `auto` the fastest, measured, if there is enough to do to make it worth while."""
    if mixed_precision != "auto":
        return mixed_precision
    if not _multiplies_in_bf16(device):
        return "no"
    batch = min(batch_size or _largest_batch(device), num_images)
    plain = Engine(model, device)
    if plain.num_steps(recipe) * -(-num_images // batch) < _WORTH_MEASURING_STEPS:
        return "no"
    trial = batch if device.type != "cpu" else min(batch, _TRIAL_IMAGES_ON_CPU)
    x_t = torch.zeros(trial, model.unet.config.in_channels, *recipe.resolution, device=device)
    names = [name for name, choice in PRECISIONS.items() if device.type == "cpu" or not choice.math_attention]
    engines = {name: Engine(model, device, precision=name) for name in names}

    def step(engine: Engine) -> Callable[[], object]:
        return lambda: engine.call(x_t)

    try:
        return fastest({name: step(engine) for name, engine in engines.items()}, margin=_MARGIN, device=device)[0]
    except Exception as error:
        if not out_of_memory(error):
            raise
        return "bf16"  # which takes less of it


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
                raise Mistakes(
                    f"batch_size={batch_size}: does not fit in the memory of {device}; use less, or auto"
                ) from None
            if size == 1:
                raise Mistakes(f"batch_size=auto: one image alone does not fit in the memory of {device}") from None
            size = max(1, size // 2)
        else:
            yield batch, result
            place += len(batch)
            continue
        clear_device_cache(garbage_collection=True)


def out_of_memory(error: Exception) -> bool:
    # oneDNN, which convolves on a CPU, has only these words for it.
    if isinstance(error, MemoryError) or "could not create a primitive" in str(error):
        return True
    return bool(should_reduce_batch_size(error))


def _largest_batch(device: torch.device) -> int:
    return _LARGEST_BATCH.get(device.type, _LARGEST_BATCH_ELSEWHERE)


def _multiplies_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
