"""The network as a training step calls it: with what trains beside it and is no part of what the run leaves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

# Features of the timestep that the uncertainty is linear in: as many as Karras et al. 2024 have of sigma.
_FEATURES = 128


class Uncertainty(nn.Module):
    """u(t), the logarithm of how large the loss is: linear in features of the timestep, and 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(_FEATURES))

    def forward(self, timesteps: Tensor) -> Tensor:
        """u, float32 [B], at timesteps, int64 [B]: a product and a sum, which autocast leaves in float32."""
        return (get_timestep_embedding(timesteps, _FEATURES) * self.weight).sum(dim=1)


class Helpers(nn.Module):
    """What trains beside a network. All of it is 0 at first, which changes nothing.

    It has no average: nothing that is measured or sampled reads it.

    Args:
        unet: the network.
        label_size: how many numbers an image's label has, see `Augmentation`.
        uncertainty: whether the size of the loss is learned, see `Objective.balanced`.

    Attributes:
        label: weights, float32 [features, label_size], of a linear layer. What it makes of a label is added to the
            features of the timestep (Karras et al. 2022, appendix F.2). It has no bias, so that a label of zeros adds
            zero. None: there are no labels.
        uncertainty: None: it is not learned.
    """

    def __init__(self, unet: UNet2DModel, label_size: int, *, uncertainty: bool) -> None:
        super().__init__()
        features = unet.time_embedding.linear_1.in_features
        self.label = nn.Parameter(torch.zeros(features, label_size)) if label_size else None
        self.uncertainty = Uncertainty() if uncertainty else None


class Prediction(NamedTuple):
    """What a training step asks for."""

    sample: Tensor  # what the network predicts, [B, C, H, W]
    uncertainty: Tensor | None  # u, float32 [B]; None: it is not learned


class Denoiser(nn.Module):
    """A network and its helpers. Called by itself, the network does what it does without them, to the bit.

    Args: see `Helpers`.
    """

    def __init__(self, unet: UNet2DModel, label_size: int, *, uncertainty: bool) -> None:
        super().__init__()
        self.unet = unet
        self.helpers = Helpers(unet, label_size, uncertainty=uncertainty).to(unet.device)
        self._added: Tensor | None = None  # to the embedded timesteps of the images in hand, [B, features]
        if self.helpers.label is not None:
            unet.time_embedding.register_forward_pre_hook(self._add)

    def forward(self, x_t: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Prediction:
        """Predict for noisy images, [B, C, H, W], at their timesteps, int64 [B].

        Args:
            labels: float32 [B, label_size]; None: zeros.
        """
        helpers = self.helpers
        if helpers.label is not None:
            labels = x_t.new_zeros(len(x_t), helpers.label.shape[1]) if labels is None else labels
            self._added = nn.functional.linear(labels, helpers.label)
        try:
            sample = self.unet(x_t, timesteps).sample
        finally:
            self._added = None
        return Prediction(sample, None if helpers.uncertainty is None else helpers.uncertainty(timesteps))

    def _add(self, module: nn.Module, arguments: Sequence[Any]) -> tuple[Any, ...] | None:
        """Changes what the network's layers for the timestep are given."""
        return None if self._added is None else (arguments[0] + self._added, *arguments[1:])
