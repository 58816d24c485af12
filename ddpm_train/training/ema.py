"""The exponential moving average of the weights: a second UNet that samples, never the one that trains."""

import torch
from torch import nn


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * model, all parameters in one call."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
