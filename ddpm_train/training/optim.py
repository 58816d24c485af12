"""The optimizer and the learning rate, a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from ddpm_train.config.train import SGD, Adam, LRScheduler


def build_optimizer(config: Adam | SGD, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The configured optimizer, in one fused kernel for all parameters where torch has one."""
    if isinstance(config, SGD):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
    arguments = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.name == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **arguments)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    parameters = list(parameters)
    fused = all(parameter.device.type in ("cpu", "cuda", "xpu", "mps") for parameter in parameters)
    return kind(parameters, fused=fused, **arguments)


def learning_rate(base: float, config: LRScheduler, step: int, max_steps: int) -> float:
    """The learning rate of the update that follows `step` completed ones.

    Linear warm-up over the first `warmup_steps` updates, then constant, or falling to 0 at `max_steps` along a
    line or half a cosine (Loshchilov & Hutter 2017, eq. 5).
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    progress = min(1.0, max(0, step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    decay = {"constant": 1.0, "linear": 1.0 - progress, "cosine": (1.0 + math.cos(math.pi * progress)) / 2}
    return base * warmup * decay[config.name]
