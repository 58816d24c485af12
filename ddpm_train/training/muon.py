"""Muon for the weights of a network's blocks and AdamW for all else, as one optimizer."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# Of the odd polynomial of degree 5 that brings singular values near 1 fast (Jordan et al. 2024), and how often.
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_EPS = 1e-7


class MuonAndAdamW(Optimizer):
    """Muon with Nesterov's momentum (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) beside AdamW.

    A convolution's weight counts as the matrix [out, in * height * width]. An update of Muon has the root mean square
    of one of AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2), so that the same learning rate serves both. It
    does what `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` does, which torch has from 2.9 on.

    This optimizer holds the groups and the state of both, and lends AdamW its own for a step: so they are saved,
    clipped and scaled as any optimizer's are.

    Args:
        matrices: what Muon is for, of two dimensions or more.
        adamw: of the other parameters, before its first step.
        lr: of the matrices.
    """

    def __init__(
        self, matrices: list[nn.Parameter], adamw: AdamW, *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        self._adamw = adamw
        group = {"params": matrices, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([group, *adamw.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of all parameters that have a gradient."""
        matrices, *rest = self.param_groups
        self._adamw.param_groups, self._adamw.state = rest, self.state
        self._adamw.step()
        lr, momentum = matrices["lr"], matrices["momentum"]
        for weight in matrices["params"]:
            if weight.grad is None:
                continue
            gradient = weight.grad.flatten(1)
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            average = state["momentum_buffer"]
            average.lerp_(gradient, 1 - momentum)
            update = orthogonalized(gradient.lerp(average, momentum))
            weight.mul_(1 - lr * matrices["weight_decay"])
            weight.add_(update.reshape(weight.shape), alpha=-lr * 0.2 * math.sqrt(max(gradient.shape)))


def orthogonalized(matrix: Tensor) -> Tensor:
    """U V^T of its singular value decomposition U S V^T, but for singular values between about 0.7 and 1.2.

    By the iteration of Newton and Schulz: in bfloat16, as is usual, but in float32 on a CPU, where that is faster.
    """
    a, b, c = _COEFFICIENTS
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
