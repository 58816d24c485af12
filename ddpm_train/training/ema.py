"""The exponential moving average of the weights: a second UNet that samples, never the one that trains."""

import torch
from torch import nn

from ddpm_train.config.train import NoEMA, WarmupEMA


def ema_decay(config: WarmupEMA, step: int) -> float:
    """The decay of the average after `step` updates, as diffusers' EMAModel with `use_ema_warmup=True` has it."""
    since = step - config.update_after_step - 1
    if since <= 0:
        return 0.0
    decay = 1 - (1 + since / config.inv_gamma) ** -config.power
    return max(config.min_decay, min(decay, config.max_decay))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, config: NoEMA | WarmupEMA, step: int) -> None:
    """ema <- decay * ema + (1 - decay) * model, all parameters in one call."""
    if isinstance(config, WarmupEMA):
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - ema_decay(config, step))
