"""The loss on images that training never sees, at noise and timesteps that never change."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor

from ddpm_train.data.images import Images
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.evaluation.shards import fill_sharded
from ddpm_train.seeding import Purpose
from ddpm_train.system.signals import StopRequest


@dataclass(frozen=True)
class HeldOutLosses:
    """The training objective of each image.

    Attributes:
        losses: float32 [N].
        timesteps: int64 [N], where each was measured.
    """

    losses: Tensor
    timesteps: Tensor

    def mean(self) -> float:
        """The held-out loss."""
        return float(self.losses.double().mean())


@dataclass(frozen=True)
class LossByTimestep:
    """The held-out loss in bins of timesteps.

    Attributes:
        edges: where the bins start, and the number of timesteps.
        loss: the mean over the images of a bin; None where there is none.
        count: how many there are.
    """

    edges: tuple[int, ...]
    loss: tuple[float | None, ...]
    count: tuple[int, ...]

    def scalars(self) -> dict[str, float]:
        """By name, such as held_out_loss_t0000_0099."""
        bins = zip(self.edges[:-1], self.edges[1:], self.loss, strict=True)
        return {f"held_out_loss_t{start:04}_{end - 1:04}": loss for start, end, loss in bins if loss is not None}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_png(self, name: str) -> bytes:
        """A chart of the curve, called `name`, such as "step 1,400"."""
        from ddpm_train.report import charts  # matplotlib takes a third of a second to import

        return charts.loss_by_timestep({name: self.to_json()}).png()


@torch.no_grad()
def held_out_losses(
    unet: UNet2DModel,
    images: Images,
    objective: Objective,
    batch_size: int,
    *,
    accelerator: Accelerator,
    stop: StopRequest,
) -> HeldOutLosses:
    """The training objective of `images` (centre crops, unflipped), one timestep each; deterministic."""

    def measure(items: range, poll: object) -> Tensor:
        stop.check()
        positions = torch.arange(items.start, items.stop, device=unet.device)
        x_0 = to_model_range(images.load(list(items)).to(unet.device))
        noise, timesteps = objective.draw(x_0, positions, (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP))
        losses = objective.per_image(unet, x_0, noise, timesteps)
        return torch.stack((losses, timesteps.float()), dim=1)

    measured = fill_sharded(
        torch.zeros(len(images), 2, device=unet.device),
        measure,
        batch_size,
        polls_per_batch=1,
        accelerator=accelerator,
        stop=stop,
    )
    return HeldOutLosses(measured[:, 0], measured[:, 1].long())


def loss_by_timestep(measured: HeldOutLosses, num_train_timesteps: int, num_bins: int) -> LossByTimestep:
    """Means over bins of equal length (within one timestep)."""
    num_bins = min(num_bins, num_train_timesteps)
    edges = [round(number * num_train_timesteps / num_bins) for number in range(num_bins + 1)]
    losses, timesteps = measured.losses.double().cpu(), measured.timesteps.cpu()
    within = [(start <= timesteps) & (timesteps < end) for start, end in pairwise(edges)]
    return LossByTimestep(
        edges=tuple(edges),
        loss=tuple(float(losses[mask].mean()) if mask.any() else None for mask in within),
        count=tuple(int(mask.sum()) for mask in within),
    )
