"""Autoguidance: a worse version of a model shows which way is worse (Karras et al. 2024, arXiv 2406.02507)."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ddpm_train.config.guidance import GuidanceChoice
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.models.load import Model, load_model
from ddpm_train.sampling.schedule import Schedule


@dataclass(frozen=True)
class Guidance:
    """A model that guides, and how.

    Attributes:
        scale, interval: see `GuidanceChoice`.
    """

    model: Model
    scale: float
    interval: tuple[float, float] | None = None

    def identity(self) -> dict[str, Any]:
        """As plain values, the model by its hash."""
        interval = None if self.interval is None else list(self.interval)
        return {"model": self.model.digest, "scale": self.scale, "interval": interval}

    def __str__(self) -> str:
        where = "" if self.interval is None else " at noise levels {:g} to {:g}".format(*self.interval)
        return f"{self.model.label}, scale {self.scale:g}{where}"


class GuidedUNet:
    """A UNet and its guide, called one after the other, as the loops call a UNet.

    As one call, by `torch.func.vmap` over the stacked weights, both took 1.7 to 1.9 times as long on two CPU cores at
    batches of 16 and 64: the attention and the convolutions have no kernels of that kind.
    """

    def __init__(self, unet: UNet2DModel, guide: UNet2DModel, guidance: Guidance, schedule: Schedule) -> None:
        self.unet = unet
        self.guide = guide
        self.guidance = guidance
        self.schedule = schedule
        self.dtype: torch.dtype = unet.dtype
        self.time_proj = unet.time_proj

    def at(self, timestep: Tensor) -> Any:
        """The network to call at a timestep, a scalar on the CPU: outside the interval the UNet alone."""
        if self.guidance.interval is None:
            return self
        alpha, sigma = self.schedule.at(timestep)
        low, high = self.guidance.interval
        return self if low * alpha <= sigma <= high * alpha else self.unet

    def __call__(self, x_t: Tensor, timestep: Tensor) -> Any:
        """The guided prediction; of a learned variance, the UNet's own.

        At one x_t every type of prediction is an affine function of D, the estimate of x_0, so that equation 3 holds
        for each.
        """
        prediction = self.unet(x_t, timestep).sample
        channels = x_t.shape[1]
        guide = self.guide(x_t, timestep).sample[:, :channels].float()
        mean, rest = prediction[:, :channels].float(), prediction[:, channels:].float()
        return SimpleNamespace(sample=torch.cat((guide + self.guidance.scale * (mean - guide), rest), dim=1))


def network_at(unet: Any, timestep: Tensor) -> Any:
    """What to call at a timestep, a scalar on the CPU."""
    return unet.at(timestep) if isinstance(unet, GuidedUNet) else unet


def load_guide(choice: GuidanceChoice) -> Model | None:
    """The model that guides, if one is chosen.

    Raises:
        Mistakes: as those of `load_model`, with the keys of this section.
    """
    if choice.pipeline is None:
        return None
    try:
        return load_model(choice.pipeline, revision=choice.revision, weights=choice.weights)
    except Mistakes as mistakes:
        raise Mistakes(*(f"guidance.{line}" for line in mistakes.lines)) from None


def guidance_of(choice: GuidanceChoice, guide: Model | None) -> Guidance | None:
    """What the config asks of the guide that it has chosen."""
    return None if guide is None else Guidance(guide, choice.scale, choice.interval)


def guide_mistakes(choice: GuidanceChoice, guide: Model | None, model: Model) -> Iterator[str]:
    """A line for each reason why that model cannot guide this one."""
    if guide is None:
        return
    place, own, other = f"guidance.pipeline={choice.pipeline}", model.noise_scheduler, guide.noise_scheduler
    keys = ("prediction_type", "num_train_timesteps")
    for key in keys:
        if own.config[key] != other.config[key]:
            yield (
                f"{place}: has {key}={other.config[key]}, and the model {own.config[key]}; "
                "choose a guide that was trained in the same way"
            )
    if len(own.alphas_cumprod) == len(other.alphas_cumprod) and not torch.allclose(
        own.alphas_cumprod.cpu(), other.alphas_cumprod.cpu(), atol=1e-6
    ):
        yield f"{place}: was trained with another noise schedule than the model; choose one with the same"
    channels = [each.unet.config.in_channels for each in (guide, model)]
    if channels[0] != channels[1]:
        yield "{}: makes images of {} channels, and the model of {}; choose one with as many".format(place, *channels)
