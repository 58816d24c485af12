"""What image i is made of, besides the model: (seed, i) and this."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddpm_train.config import Sampler
from ddpm_train.data.decode import MODES, BrokenImage, Decoder
from ddpm_train.diffusion.fitness import fitting, refusal
from ddpm_train.loading import Model
from ddpm_train.mistakes import Mistakes, as_written
from ddpm_train.sample_config import SampleConfig

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
            "sampler": self.sampler_words,
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

    @property
    def sampler_words(self) -> str:
        """The sampler and its arguments."""
        written = (f"{key}={as_written(value)}" for key, value in sorted(self.sampler.arguments.items()))
        return " ".join([self.sampler.name, *written])

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
    learned = model.learned_variance

    def refused(arguments: Mapping[str, Any]) -> str | None:
        return refusal(
            name,
            model.noise_scheduler,
            steps,
            arguments=arguments,
            learned_variance=learned,
            strength=strength,
        )

    reason = refused(recipe.sampler.arguments)
    if reason is None:
        return
    given = f"sampler={name}"
    if recipe.sampler.arguments and refused({}) is None:
        written = " ".join(f"sampler.{key}={as_written(value)}" for key, value in recipe.sampler.arguments.items())
        yield f"{written}: {given} cannot ({reason}); without it, it can"
        return
    config = model.noise_scheduler.config
    able = fitting(model.noise_scheduler, steps, learned_variance=learned, strength=strength)
    yield (
        f"{given}: cannot sample this model (prediction_type={config.prediction_type}, "
        f"beta_schedule={config.beta_schedule}) in {steps} steps: {reason}; use one of {', '.join(able)}"
    )


def build_recipe(config: SampleConfig, model: Model, pictures: Mapping[str, Image.Image] | None = None) -> Recipe:
    """What the config asks of this model.

    Args:
        pictures: opened images in the place of the files that `from_image` and `inpaint` name.

    Raises:
        Mistakes: all that the model cannot do.
    """
    resolution = choose_resolution(model, config.resolution)

    def decoded(key: str, channels: int) -> Tensor:
        decoder = Decoder(resolution, channels, (255, 255, 255), "center", _MAX_PIXELS)
        path, image = getattr(config, key), (pictures or {}).get(key)
        try:
            array = decoder(Path(path).expanduser()) if image is None else decoder.from_image(image)
        except BrokenImage as error:
            raise Mistakes(f"{key}={path}: {error}; give a picture") from None
        return torch.tensor(array).float()[None]

    inpainting = None
    if config.inpaint is not None:
        mask = decoded("inpaint", 1) > 127.5
        if not bool(mask.any()):
            raise Mistakes(f"inpaint={config.inpaint}: nothing in this mask is white, which is what is painted anew")
        inpainting = Inpainting(mask.float(), config.inpaint_jump_steps, config.inpaint_repeats)
    recipe = Recipe(
        seed=config.seed,
        sampler=config.sampler,
        num_inference_steps=config.num_inference_steps,
        resolution=resolution,
        # As the model sees images: resized to cover, cropped at the centre, in [-1, 1].
        picture=None if config.from_image is None else decoded("from_image", model.unet.config.in_channels) / 127.5 - 1,
        strength=config.strength,
        inpainting=inpainting,
    )
    # A comparison has samplers and steps of its own, which are checked with it.
    if config.look != "compare" and (lines := list(recipe_mistakes(model, recipe))):
        raise Mistakes(*lines)
    return recipe


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
