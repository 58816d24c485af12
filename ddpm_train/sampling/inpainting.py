"""Filling a masked part of a picture with an unconditional model: RePaint (Lugmayr et al. 2022, arXiv 2201.09865)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ddpm_train.data.decode import Decoder, upright
from ddpm_train.sampling.guidance import GuidedUNet, network_at
from ddpm_train.sampling.loop import Observer, ignore, step_arguments


@dataclass(frozen=True)
class Inpainting:
    """What to paint, and how often RePaint goes back.

    Attributes:
        mask: float32 [1, 1, H, W], 1 where to paint.
        jump_steps, repeats: see `visits`.
        of_opacity: whether the mask is what was opaque in a picture of one colour.
    """

    mask: Tensor
    jump_steps: int
    repeats: int
    of_opacity: bool = False


class MaskDecoder(Decoder):
    """Of a picture that shows one colour alone, and not everywhere, the opacity is the mask: opaque is white."""

    of_opacity = False

    def from_image(self, image: Image.Image) -> np.ndarray:
        image = upright(image)
        if image.has_transparency_data:
            colours = np.asarray(rgba := image.convert("RGBA"))
            seen = colours[colours[..., 3] > 0, :3]
            self.of_opacity = bool((colours[..., 3] < 255).any() and (seen == seen[:1]).all())
            image = rgba.getchannel("A") if self.of_opacity else image
        return super().from_image(image)


def visits(num_inference_steps: int, jump_steps: int, repeats: int) -> Iterator[tuple[int, int]]:
    """From which number of remaining steps to which one the loop goes: down one by one, and back up by jumps.

    The order of RePaint's appendix (and of diffusers' RePaintScheduler): every `jump_steps` steps the loop goes back
    by as many, `repeats` - 1 times, so that the new part and the known part can come to agree.
    """
    jumps = dict.fromkeys(range(0, num_inference_steps - jump_steps, jump_steps), repeats - 1)
    remaining = num_inference_steps
    while remaining > 0:
        yield remaining, remaining - 1
        remaining -= 1
        if jumps.get(remaining, 0) > 0:
            jumps[remaining] -= 1
            yield remaining, remaining + jump_steps
            remaining += jump_steps


@torch.no_grad()
def inpaint(
    unet: UNet2DModel | GuidedUNet,
    sampler: Any,
    picture: Tensor,
    inpainting: Inpainting,
    x_t: Tensor,
    generators: list[torch.Generator],
    *,
    arguments: Mapping[str, Any],
    observe: Observer = ignore,
) -> Tensor:
    """Paint the masked part anew; float32 [B, C, H, W]. Where the mask is 0 it is `picture`, to the bit.

    Args:
        sampler: DDPM or DDIM, which keep x_t = sqrt(alphas_cumprod) x_0 + sigma noise at each step; timesteps set.
        picture: float32 [1, C, H, W] in [-1, 1].
        x_t: noise, float32 [B, C, H, W], on the device of the UNet.
        generators: one for each image, B of them.
        arguments, observe: see `denoise`.
    """
    total = len(sampler.timesteps)
    dtype = unet.dtype
    picture, mask = picture.to(x_t.device), inpainting.mask.to(x_t.device)
    taken = step_arguments(sampler, arguments, generators)
    on_device = sampler.timesteps.to(x_t.device)

    def noise() -> Tensor:
        return randn_tensor(x_t.shape, generator=generators, device=x_t.device, dtype=x_t.dtype)

    def signal(remaining: int) -> Tensor:
        """alphas_cumprod with that many steps to go."""
        return sampler.alphas_cumprod[sampler.timesteps[total - remaining]] if remaining else torch.tensor(1.0)

    number = 0
    for here, there in visits(total, inpainting.jump_steps, inpainting.repeats):
        if there > here:  # forward in the diffusion: q(x_there | x_here)
            kept = signal(there) / signal(here)
            x_t = kept.sqrt() * x_t + (1 - kept).sqrt() * noise()
            continue
        timestep = sampler.timesteps[total - here]
        network = network_at(unet, timestep)
        prediction = network(x_t.to(dtype), on_device[total - here]).sample.float()
        observe(number, timestep, x_t, prediction)
        number += 1
        painted = sampler.step(prediction, timestep, x_t, **taken).prev_sample
        known = signal(there).sqrt() * picture + (1 - signal(there)).sqrt() * noise() if there else picture
        x_t = torch.where(mask > 0, painted, known)  # Algorithm 1, line 8
    return x_t
