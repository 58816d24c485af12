"""What a run is at a step, and how its batches are cut."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ddpm_train.config.foreign import printable
from ddpm_train.runs.checkpoint import BadCheckpoint
from ddpm_train.training.optimizer_state import OptimizerState


@dataclass
class TrainState:
    """All that a run is, at a step. `step` counts completed updates; the rest follows from it and the config.

    Attributes:
        averages: of the weights, by name, see `EMA.decays`.
        helpers: what trains beside the network and is no part of it; see `models.denoiser`.
    """

    step: int
    unet: UNet2DModel
    averages: dict[str, UNet2DModel]
    optimizer: torch.optim.Optimizer
    helpers: nn.Module = field(default_factory=nn.Module)

    def __post_init__(self) -> None:
        self.optimizer_state = OptimizerState(self.optimizer)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Named sets of tensors, as a checkpoint holds them; raises `NotCaptured` if the optimizer's do not suffice."""
        optimizer, _ = self.optimizer_state.capture()
        sets = {"unet": self.unet.state_dict(), "optimizer": optimizer}
        sets |= {name: unet.state_dict() for name, unet in self.averages.items()}
        if helpers := self.helpers.state_dict():
            sets["helpers"] = helpers
        return sets

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what `tensors` returned, one after the other; there is room for the optimizer's.

        Raises:
            BadCheckpoint: these are another model's.
        """
        for name, named in self.tensors().items():
            if name == "helpers" and name not in tensors:
                continue  # a run that has none until now begins them at 0, which changes nothing
            # A run that keeps no average until now begins it at its weights.
            stored = tensors.get(name, tensors["unet"] if name in self.averages else {})
            if other := set(named) ^ set(stored):
                raise BadCheckpoint(printable(f"{name}: {min(other)} is {'' if min(other) in stored else 'not '}there"))
            for key, tensor in named.items():
                if (shape := list(stored[key].shape)) != list(tensor.shape):
                    raise BadCheckpoint(printable(f"{name}: {key} has the shape {shape}, not {list(tensor.shape)}"))
                tensor.copy_(stored[key])

    def digest(self) -> str:
        """A hash of everything."""
        digest = hashlib.sha256(json.dumps([self.step, self.optimizer_state.capture()[1]]).encode())
        for name, named in self.tensors().items():
            for key, tensor in named.items():
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def sampling_unet(self) -> UNet2DModel:
        """The weights to sample from: the average where there is one."""
        return self.averages.get("ema", self.unet)

    @property
    def sampling_weights(self) -> str:
        """Which these are: "ema" or "unet"."""
        return "ema" if "ema" in self.averages else "unet"


@torch.no_grad()
def update_ema(ema: list[nn.Parameter], model: list[nn.Parameter], decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * model, all parameters in one call."""
    torch._foreach_lerp_(ema, model, 1 - decay)


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch is cut: `batch_size` = micro_batch_size x num_processes x accumulation.

    Each process has one piece of the batch, whatever the others' micro-batches.
    """

    batch_size: int
    micro_batch_size: int
    num_processes: int
    process_index: int

    @property
    def accumulation(self) -> int:
        return self.batch_size // (self.micro_batch_size * self.num_processes)

    def start(self, step: int, micro_step: int) -> int:
        """The first position of a micro-batch of this process."""
        piece = self.batch_size // self.num_processes
        return step * self.batch_size + self.process_index * piece + micro_step * self.micro_batch_size

    def positions(self, step: int) -> Iterator[Tensor]:
        """The positions of this process's micro-batches from `step` on, without end; int64 [micro_batch_size]."""
        while True:
            for micro_step in range(self.accumulation):
                start = self.start(step, micro_step)
                yield torch.arange(start, start + self.micro_batch_size)
            step += 1

    def micro_batch_sizes(self) -> list[int]:
        """What this micro-batch can be cut down to, itself first."""
        piece = self.batch_size // self.num_processes
        return [size for size in range(self.micro_batch_size, 0, -1) if piece % size == 0]
