"""The optimizer, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from ddpm_train.config.parts import NonNegative, Positive, Real, Section
from ddpm_train.config.registry import Group, resolve

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer as TorchOptimizer

OPTIMIZERS: "Group[Optimizer]" = Group("optimizer")
LR_SCHEDULERS: "Group[LRScheduler]" = Group("learning rate schedule")
# Parts of a UNet2DModel that hold its blocks.
_BLOCKS = {"down_blocks", "mid_block", "up_blocks"}


@dataclass(frozen=True)
class Optimizer(Section):
    name: str
    lr: Annotated[Real, Gt(0)]

    @property
    def is_contiguous(self) -> bool:
        """Whether it lays the weights out contiguously, and its own state by that, whatever the layout was."""
        return False

    def build(self, named_parameters: "Iterable[tuple[str, Parameter]]") -> "TorchOptimizer":
        """A torch optimizer of these parameters.

        At each step the learning rate of its first group is set anew. That of other groups keeps its ratio to it.
        """
        raise NotImplementedError


@OPTIMIZERS.choice
@dataclass(frozen=True)
class Adam(Optimizer):
    """AdamW, Adam, or AdamW with 8-bit state (bitsandbytes)."""

    name: Literal["adamw", "adam", "adamw_8bit"]
    betas: tuple[Annotated[Real, Ge(0), Lt(1)], Annotated[Real, Ge(0), Lt(1)]]
    eps: Annotated[Real, Gt(0)]
    weight_decay: Annotated[Real, Ge(0)]

    @property
    def is_contiguous(self) -> bool:
        return self.name == "adamw_8bit"

    def build(self, named_parameters: "Iterable[tuple[str, Parameter]]") -> "TorchOptimizer":
        """In one fused kernel for all parameters where torch has one."""
        import torch

        parameters = [parameter for _, parameter in named_parameters]
        arguments = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        if self.name == "adamw_8bit":
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(parameters, **arguments)
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        try:
            return kind(parameters, fused=True, **arguments)
        except RuntimeError:  # torch has none for this device
            return kind(parameters, **arguments)


@OPTIMIZERS.choice
@dataclass(frozen=True)
class SGD(Optimizer):
    name: Literal["sgd"]
    momentum: Annotated[Real, Ge(0), Lt(1)]
    weight_decay: Annotated[Real, Ge(0)]
    nesterov: bool

    def mistakes(self) -> Iterator[str]:
        if self.nesterov and self.momentum == 0:
            yield "optimizer.nesterov=true: needs momentum; set optimizer.momentum=0.9"

    def build(self, named_parameters: "Iterable[tuple[str, Parameter]]") -> "TorchOptimizer":
        import torch

        parameters = [parameter for _, parameter in named_parameters]
        arguments = {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": self.nesterov}
        return torch.optim.SGD(parameters, lr=self.lr, **arguments)


@OPTIMIZERS.choice
@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon for the weights of the network's blocks, AdamW for all else: see `training.muon`.

    Attributes:
        adamw_lr: the learning rate of what AdamW updates; None: the same as `lr`, as is the weight decay.
        momentum: of Muon.
        betas, eps: of AdamW.
    """

    name: Literal["muon"]
    adamw_lr: Annotated[Real, Gt(0)] | None
    momentum: Annotated[Real, Ge(0), Lt(1)]
    betas: tuple[Annotated[Real, Ge(0), Lt(1)], Annotated[Real, Ge(0), Lt(1)]]
    eps: Annotated[Real, Gt(0)]
    weight_decay: Annotated[Real, Ge(0)]

    def build(self, named_parameters: "Iterable[tuple[str, Parameter]]") -> "TorchOptimizer":
        """Norms, biases, the first and the last convolution and the embeddings are AdamW's."""
        named = list(named_parameters)
        of_blocks = [not _BLOCKS.isdisjoint(name.split(".")) and parameter.ndim > 1 for name, parameter in named]
        matrices = [parameter for (_, parameter), of_block in zip(named, of_blocks, strict=True) if of_block]
        rest = [each for each, of_block in zip(named, of_blocks, strict=True) if not of_block]
        adamw = Adam("adamw", self.adamw_lr or self.lr, self.betas, self.eps, self.weight_decay).build(rest)
        build: Callable[..., TorchOptimizer] = resolve("ddpm_train.training.muon:MuonAndAdamW")
        return build(matrices, adamw, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class LRScheduler(Section):
    """A linear warm-up over the first `warmup_steps` updates, and then what `decay` says."""

    name: str
    warmup_steps: NonNegative

    def decay(self, progress: float) -> float:
        """The share of the learning rate, given how far the run is from the end of the warm-up (0) to its end (1)."""
        raise NotImplementedError

    def at(self, step: int, lr: float, max_steps: int) -> float:
        """The learning rate of the update that follows `step` completed ones, of `max_steps`.

        Args:
            lr: the optimizer's.
        """
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        progress = min(1.0, max(0, step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        return lr * warmup * self.decay(progress)

    def length_mistakes(self, max_steps: int) -> Iterator[str]:
        """A line if a run of this length would outlast the schedule."""
        yield from ()

    def branches_at(self, max_steps: int) -> int | None:
        """The step up to which a longer run has had the same rates, which is kept to go on from; None: no such step."""
        return None


@LR_SCHEDULERS.choice
@dataclass(frozen=True)
class Constant(LRScheduler):
    name: Literal["constant"]

    def decay(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Decaying(LRScheduler):
    """To 0 at `total_steps`, a horizon that need not be the run's own length."""

    total_steps: Positive | None = None  # None: the run's length; so is it in older configs, which do not have it

    def at(self, step: int, lr: float, max_steps: int) -> float:
        return super().at(step, lr, self.total_steps or max_steps)

    def length_mistakes(self, max_steps: int) -> Iterator[str]:
        if self.total_steps is not None and self.total_steps < max_steps:
            yield (
                f"lr_scheduler.total_steps={self.total_steps}: the learning rate would be 0 from there on, and the run "
                f"has {max_steps} steps; use at least {max_steps}, or null"
            )


@LR_SCHEDULERS.choice
@dataclass(frozen=True)
class Linear(Decaying):
    """To 0 along a line."""

    name: Literal["linear"]

    def decay(self, progress: float) -> float:
        return 1.0 - progress


@LR_SCHEDULERS.choice
@dataclass(frozen=True)
class Cosine(Decaying):
    """To 0 along half a cosine (Loshchilov & Hutter 2017, eq. 5)."""

    name: Literal["cosine"]

    def decay(self, progress: float) -> float:
        return (1.0 + math.cos(math.pi * progress)) / 2


@LR_SCHEDULERS.choice
@dataclass(frozen=True)
class WSD(Decaying):
    """Warm-up, stable, decay: constant, and over the last steps to 0 as 1 - sqrt (Hägele et al. 2024).

    A run that is to be longer goes on from the step where the decay began, as if it had been longer from the start.

    Attributes:
        cooldown_fraction: how many of the steps after the warm-up are the last ones.
    """

    name: Literal["wsd"]
    cooldown_fraction: Annotated[Real, Gt(0), Le(1)] = 0.2

    def decay(self, progress: float) -> float:
        return 1.0 - math.sqrt(max(0.0, 1.0 - (1.0 - progress) / self.cooldown_fraction))

    def branches_at(self, max_steps: int) -> int:
        steps = (self.total_steps or max_steps) - self.warmup_steps
        return self.warmup_steps + math.floor((1.0 - self.cooldown_fraction) * max(0, steps))
