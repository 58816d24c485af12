"""The loss on images that training never sees, at noise and timesteps that never change."""

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel

from ddpm_train.data.images import Images
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.evaluation.shards import fill_sharded
from ddpm_train.preemption import StopRequest
from ddpm_train.seeding import Purpose


@torch.no_grad()
def held_out_loss(
    unet: UNet2DModel,
    images: Images,
    objective: Objective,
    batch_size: int,
    *,
    accelerator: Accelerator,
    stop: StopRequest,
) -> float:
    """The mean training objective over `images` (centre crops, unflipped); deterministic."""

    def losses(items: range, poll: object) -> torch.Tensor:
        stop.check()
        positions = torch.arange(items.start, items.stop, device=unet.device)
        x_0 = to_model_range(images.load(list(items)).to(unet.device))
        drawn = objective.draw(x_0, positions, (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP))
        return objective.per_image(unet, x_0, *drawn)

    filled = fill_sharded(
        torch.zeros(len(images), device=unet.device),
        losses,
        batch_size,
        polls_per_batch=1,
        accelerator=accelerator,
        stop=stop,
    )
    return float(filled.double().mean())
