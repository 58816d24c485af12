"""Muon for the weights of a network's blocks and AdamW for all else, as one optimizer."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

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
        # torch's Muon admits matrices only. Within a step these stand for the weights, and hold nothing between steps.
        self._flat = [nn.Parameter(matrix.new_empty(0, 0)) for matrix in matrices]
        arguments = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self._muon = torch.optim.Muon(self._flat, **arguments, adjust_lr_fn="match_rms_adamw")
        self._adamw = adamw
        super().__init__([{"params": matrices}, *adamw.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of all parameters that have a gradient."""
        matrices, *rest = self.param_groups
        self._adamw.param_groups, self._adamw.state = rest, self.state
        self._adamw.step()
        self._muon.param_groups[0]["lr"] = matrices["lr"]
        lent: defaultdict[Any, Any] = defaultdict(dict)
        for matrix, flat in zip(matrices["params"], self._flat, strict=True):
            lent[flat] = self.state[matrix]
            flat.data = matrix.detach().flatten(1)  # the weight itself, or a copy where its layout is another
            flat.grad = None if matrix.grad is None else matrix.grad.flatten(1)
        self._muon.state = lent
        self._muon.step()
        for matrix, flat in zip(matrices["params"], self._flat, strict=True):
            if flat.data_ptr() != matrix.data_ptr():
                matrix.copy_(flat.view_as(matrix))
            flat.data, flat.grad = flat.new_empty(0, 0), None
