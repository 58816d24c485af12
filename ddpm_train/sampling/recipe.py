"""What image i is made of, besides the model: (seed, i) and this."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddpm_train.config.mistakes import Mistakes, as_written, resolution_text
from ddpm_train.config.parts import Resolution, Sampler
from ddpm_train.config.sample import SampleConfig
from ddpm_train.config.samplers import SAMPLERS, sampler_package_mistakes
from ddpm_train.data.decode import MODES, BrokenImage, Decoder
from ddpm_train.models.load import Model
from ddpm_train.sampling.guidance import Guidance, guidance_of, guide_mistakes
from ddpm_train.sampling.inpainting import Inpainting, MaskDecoder
from ddpm_train.sampling.sampler_check import refusal
from ddpm_train.system.files import expanded


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
    guidance: Guidance | None = None

    def identity(self) -> dict[str, Any]:
        """The same as plain values, pictures by their hash."""
        values: dict[str, Any] = {
            "seed": self.seed,
            "sampler": self.sampler_text,
            "num_inference_steps": self.num_inference_steps,
            "resolution": list(self.resolution),
        }
        if self.picture is not None:
            values["from_image"] = _hash(self.picture)
        if self.inpainting is not None:
            values |= {"inpaint": _hash(self.inpainting.mask), "inpaint_jump_steps": self.inpainting.jump_steps}
            values["inpaint_repeats"] = self.inpainting.repeats
        elif self.picture is not None:
            values["strength"] = self.strength
        if self.guidance is not None:
            values["guidance"] = self.guidance.identity()
        return values

    @property
    def sampler_text(self) -> str:
        """The sampler and its arguments."""
        written = (f"{key}={as_written(value)}" for key, value in sorted(self.sampler.arguments.items()))
        return " ".join([self.sampler.name, *written])


def resolution_mistakes(model: Model, wanted: tuple[int, int] | None) -> Iterator[str]:
    """A line if the model cannot make pictures of this size, or does not say its own."""
    config = model.unet.config
    if config.in_channels not in MODES and model.values is None:
        yield f"pipeline: a model of {config.in_channels} channels, which make no picture; give a model of 1, 3 or 4"
    resolution = wanted or model.sample_size
    factor = 2 ** (len(config.block_out_channels) - 1)
    if resolution is None:
        yield f"resolution=null: the model does not say its own; give a multiple of {factor}"
    elif any(side % factor for side in resolution):
        height, width = (max(factor, round(side / factor) * factor) for side in resolution)
        yield (
            f"resolution={resolution_text(resolution)}: the model's {len(config.block_out_channels)} levels need "
            f"multiples of {factor}; use resolution={resolution_text((height, width))}"
        )


def sampler_mistakes(
    noise_scheduler: Any,
    chosen: Iterable[tuple[Sampler, int]],
    *,
    learned_variance: bool = False,
    strength: float | None = None,
    steps_key: str = "num_inference_steps",
) -> Iterator[str]:
    """A line for each sampler and number of steps that cannot sample a model.

    Args:
        noise_scheduler: the diffusers scheduler with which it is trained.
        learned_variance: see `Model`.
        strength: begin with a picture noised so much, and not with noise.
        steps_key: the key of the number of steps.
    """
    how = (noise_scheduler, learned_variance, strength, steps_key)
    lines = (line for sampler, steps in chosen for line in _mistakes_of(sampler, steps, *how))
    yield from dict.fromkeys(lines)


def _mistakes_of(
    sampler: Sampler,
    steps: int,
    noise_scheduler: Any,
    learned_variance: bool,
    strength: float | None,
    steps_key: str,
) -> Iterator[str]:
    name, given = sampler.name, sampler.arguments
    if absent := list(sampler_package_mistakes(name)):
        yield from absent
        return
    config = noise_scheduler.config
    trained = config.num_train_timesteps
    if steps > trained:
        yield f"{steps_key}={steps}: more than the model's {trained} training timesteps; use at most {trained}"
        return
    if strength is not None and int(steps * strength) < 1:
        yield f"strength={strength}: less than one of {steps} steps; use at least {1 / steps:.3g}"
        return
    refused = partial(refusal, noise_scheduler=noise_scheduler, learned_variance=learned_variance, strength=strength)
    reason = refused(name, num_inference_steps=steps, arguments=given)
    if reason is None:
        return
    if given and refused(name, num_inference_steps=steps, arguments={}) is None:
        written = " ".join(f"sampler.{key}={as_written(value)}" for key, value in given.items())
        yield f"{written}: {reason}; leave it out or change it"
        return
    more_steps = (count for count in (2 * steps, 4 * steps, 8 * steps) if count <= trained)
    enough = [count for count in more_steps if refused(name, num_inference_steps=count, arguments=given) is None]
    more = f"use {steps_key}={enough[0]}, or " if enough else ""
    able = [other for other in SAMPLERS if refused(other, num_inference_steps=steps, arguments={}) is None]
    yield (
        f"sampler={name}: cannot sample this model (prediction_type={config.prediction_type}, "
        f"beta_schedule={config.beta_schedule}) in {steps} steps: {reason}; {more}use one of {', '.join(able)}"
    )


def build_recipe(
    config: SampleConfig,
    model: Model,
    pictures: Mapping[str, Image.Image] | None = None,
    guide: Model | None = None,
) -> Recipe:
    """What the config asks of this model.

    Args:
        pictures: opened images in the place of the files that `from_image` and `inpaint` name.
        guide: see `load_guide`.

    Raises:
        Mistakes: all that the model cannot do.
    """
    lines = [*resolution_mistakes(model, config.resolution), *_sampler_mistakes(config, model)]
    if model.values is not None and config.from_image is not None:
        lines.append(f"from_image={config.from_image}: a picture of 8 bits, and this model makes arrays; leave it out")
    if lines := [*lines, *guide_mistakes(config.guidance, guide, model)]:
        raise Mistakes(*lines)
    resolution = config.resolution or model.sample_size
    assert resolution is not None  # resolution_mistakes sees to it
    picture = inpainting = None
    if config.from_image is not None:
        decoder = Decoder(resolution, model.unet.config.in_channels, *_AS_MODEL)
        picture = _decoded(config, "from_image", decoder, pictures or {}) / 127.5 - 1
    if config.inpaint is not None:
        inpainting = _inpainting(config, resolution, pictures or {})
    return Recipe(
        seed=config.seed,
        sampler=config.sampler,
        num_inference_steps=config.num_inference_steps,
        resolution=resolution,
        picture=picture,
        strength=config.strength,
        inpainting=inpainting,
        guidance=guidance_of(config.guidance, guide),
    )


# As the model sees images: resized to cover, cropped at the centre, in [-1, 1].
_AS_MODEL = ((255, 255, 255), "center", 10**9)


def _inpainting(config: SampleConfig, resolution: Resolution, pictures: Mapping[str, Image.Image]) -> Inpainting:
    """What the mask of `inpaint` asks for; raises `Mistakes` if it is none."""
    decoder = MaskDecoder(resolution, 1, *_AS_MODEL)
    mask = _decoded(config, "inpaint", decoder, pictures) > 127.5
    if not bool(mask.any()):
        raise Mistakes(
            f"inpaint={config.inpaint}: nothing in this mask is white, and only white parts are painted anew; "
            "give another mask"
        )
    return Inpainting(mask.float(), config.inpaint_jump_steps, config.inpaint_repeats, decoder.of_opacity)


def _decoded(config: SampleConfig, key: str, decoder: Decoder, pictures: Mapping[str, Image.Image]) -> Tensor:
    """The picture that a key names, float32 [1, C, H, W] in [0, 255]."""
    path, image = getattr(config, key), pictures.get(key)
    try:
        array = decoder(expanded(path)) if image is None else decoder.from_image(image)
    except BrokenImage as error:
        raise Mistakes(f"{key}={path}: {error}; give a picture") from None
    return torch.tensor(array).float()[None]


def _sampler_mistakes(config: SampleConfig, model: Model) -> Iterator[str]:
    """Those of the samplers and step counts that the config chooses, one or several."""
    strength = config.strength if config.from_image is not None and config.inpaint is None else None
    chosen = [(config.sampler, config.num_inference_steps)]
    if config.visualization == "compare":
        samplers = (compared(config.sampler, name) for name in config.compare.samplers)
        chosen = [(sampler, steps) for sampler in samplers for steps in config.compare.steps]
    return sampler_mistakes(model.noise_scheduler, chosen, learned_variance=model.learned_variance, strength=strength)


def compared(chosen: Sampler, name: str) -> Sampler:
    """A sampler of a comparison: without arguments, unless it is the chosen one."""
    return chosen if name == chosen.name else Sampler(name)


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
