"""Muon for the weights of a network's blocks and AdamW for all else, as one optimizer."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW, Optimizer


class MuonAndAdamW(Optimizer):
    """torch's own Muon and AdamW (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    A convolution's weight counts as the matrix [out, in * height * width]. An update of Muon has the root mean square
    of one of AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2), so that the same learning rate serves both.

    This optimizer holds the groups and the state of both, and lends them for a step: so they are saved, clipped and
    scaled as any optimizer's are.

    Args:
        matrices: what Muon is for, of two dimensions or more.
        adamw: of the other parameters, before its first step.
        lr: of the matrices.
    """

    def __init__(
        self, matrices: list[nn.Parameter], adamw: AdamW, *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        # torch's Muon admits matrices only. At each step it is given new ones, which stand for the weights.
        arguments = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self._muon = torch.optim.Muon(_as_matrices(matrices), **arguments, adjust_lr_fn="match_rms_adamw")
        self._adamw = adamw
        super().__init__([{"params": matrices}, *adamw.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of all parameters that have a gradient."""
        matrices, *rest = self.param_groups
        self._adamw.param_groups, self._adamw.state = rest, self.state
        self._adamw.step()
        weights = [weight for weight in matrices["params"] if weight.grad is not None]
        as_matrices = _as_matrices(weights)
        for weight, matrix in zip(weights, as_matrices, strict=True):
            matrix.grad = weight.grad.flatten(1)
        self._muon.param_groups[0] |= {"params": as_matrices, "lr": matrices["lr"]}
        self._muon.state = defaultdict(dict, zip(as_matrices, map(self.state.__getitem__, weights), strict=True))
        self._muon.step()
        for weight, matrix in zip(weights, as_matrices, strict=True):
            if not weight.is_contiguous():
                weight.copy_(matrix.view_as(weight))


def _as_matrices(weights: list[nn.Parameter]) -> list[nn.Parameter]:
    """Each weight itself, as [out, in * height * width], or a copy of one that lies in memory otherwise."""
    return [nn.Parameter(weight.detach().flatten(1)) for weight in weights]
