"""What image i is made of, besides the model: (seed, i) and this."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_train.config import Sampler
from ddpm_train.data.decode import MODES, BrokenImage, Decoder
from ddpm_train.diffusion.fitness import fitting, refusal
from ddpm_train.loading import Model
from ddpm_train.mistakes import Mistakes, as_written

_MAX_PIXELS = 10**9


@dataclass(frozen=True)
class Inpainting:
    """A mask, float32 [1, 1, H, W], 1 where to paint, and how often RePaint goes back."""

    mask: Tensor
    jump_steps: int
    repeats: int


@dataclass(frozen=True)
class Recipe:
    """Everything that the images of a model depend on; image i also on (seed, i).

    Attributes:
        resolution: (height, width).
        picture: float32 [1, C, H, W] in [-1, 1], to begin with instead of noise.
        strength: how much noise the picture is given, in (0, 1].
    """

    seed: int
    sampler: Sampler
    num_inference_steps: int
    resolution: tuple[int, int]
    picture: Tensor | None = None
    strength: float = 1.0
    inpainting: Inpainting | None = None

    def identity(self) -> dict[str, Any]:
        """The same as plain values, pictures by their hash."""
        values: dict[str, Any] = {
            "seed": self.seed,
            "sampler": as_written({"name": self.sampler.name, **self.sampler.arguments}),
            "num_inference_steps": self.num_inference_steps,
            "resolution": list(self.resolution),
        }
        if self.picture is not None:
            values |= {"from_image": _hash(self.picture)}
            values |= {} if self.inpainting else {"strength": self.strength}
        if self.inpainting is not None:
            values |= {"inpaint": _hash(self.inpainting.mask), "inpaint_jump_steps": self.inpainting.jump_steps}
            values |= {"inpaint_repeats": self.inpainting.repeats}
        return values

    def with_sampler(self, name: str, num_inference_steps: int) -> "Recipe":
        """The same with another sampler, without arguments of its own."""
        arguments = self.sampler.arguments if name == self.sampler.name else {}
        return replace(self, sampler=Sampler(name, arguments), num_inference_steps=num_inference_steps)  # type: ignore[arg-type]


def choose_resolution(model: Model, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """The resolution to sample at.

    Raises:
        Mistakes: the model cannot take it, or does not say its own.
    """
    resolution = wanted or model.sample_size
    config = model.unet.config
    if resolution is None:
        raise Mistakes("resolution=null: the model does not say its own; give resolution=64 or [height,width]")
    if config.in_channels not in MODES:
        raise Mistakes(f"pipeline: a model of {config.in_channels} channels, which make no picture (1, 3 or 4 do)")
    factor = 2 ** (len(config.block_out_channels) - 1)
    if any(side % factor for side in resolution):
        fitting_sides = [max(factor, round(side / factor) * factor) for side in resolution]
        shown = fitting_sides[0] if fitting_sides[0] == fitting_sides[1] else fitting_sides
        raise Mistakes(
            f"resolution={as_written(resolution)}: the model's {len(config.block_out_channels)} levels need multiples "
            f"of {factor}; use resolution={as_written(shown)}"
        )
    return resolution


def recipe_mistakes(model: Model, recipe: Recipe) -> Iterator[str]:
    """A line for each thing that this model cannot do."""
    steps, name = recipe.num_inference_steps, recipe.sampler.name
    trained = model.noise_scheduler.config.num_train_timesteps
    if steps > trained:
        yield f"num_inference_steps={steps}: more than the model's {trained} training timesteps; use at most {trained}"
        return
    strength = recipe.strength if recipe.picture is not None and recipe.inpainting is None else None
    if strength is not None and int(steps * strength) < 1:
        yield f"strength={strength}: less than one of {steps} steps; use at least {1 / steps:.3g}"
        return
    known = {"learned_variance": model.learned_variance, "strength": strength}
    reason = refusal(name, model.noise_scheduler, steps, arguments=recipe.sampler.arguments, **known)
    if reason is None:
        return
    given = f"sampler={name}"
    if recipe.sampler.arguments and refusal(name, model.noise_scheduler, steps, arguments={}, **known) is None:
        written = " ".join(f"sampler.{key}={as_written(value)}" for key, value in recipe.sampler.arguments.items())
        yield f"{written}: {given} cannot ({reason}); without it, it can"
        return
    config = model.noise_scheduler.config
    able = fitting(model.noise_scheduler, steps, **known)
    yield (
        f"{given}: cannot sample this model (prediction_type={config.prediction_type}, "
        f"beta_schedule={config.beta_schedule}) in {steps} steps: {reason}; use one of {', '.join(able)}"
    )


def read_picture(path: str, model: Model, resolution: tuple[int, int], key: str = "from_image") -> Tensor:
    """A picture as the model sees them, float32 [1, C, H, W] in [-1, 1]: resized to cover, cropped at the centre.

    Raises:
        Mistakes: it is no picture.
    """
    return torch.from_numpy(_decoded(path, model.unet.config.in_channels, resolution, key)).float()[None] / 127.5 - 1


def read_mask(path: str, resolution: tuple[int, int]) -> Tensor:
    """A mask, float32 [1, 1, H, W]: 1 where the picture is lighter than middle grey.

    Raises:
        Mistakes: it is no picture, or nothing in it is white.
    """
    mask = torch.from_numpy(_decoded(path, 1, resolution, "inpaint")).float()[None] > 127.5
    if not bool(mask.any()):
        raise Mistakes(f"inpaint={path}: nothing in this mask is white; white is what is painted anew")
    return mask.float()


def _decoded(path: str, channels: int, resolution: tuple[int, int], key: str) -> np.ndarray:
    decoder = Decoder(resolution, channels, (255, 255, 255), "center", _MAX_PIXELS)
    try:
        return decoder(Path(path).expanduser())
    except BrokenImage as error:
        raise Mistakes(f"{key}={path}: {error}; give a picture") from None


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
