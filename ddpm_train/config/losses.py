"""What the error of a prediction costs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt

from ddpm_train.config.parts import Real, Section
from ddpm_train.config.registry import Group

if TYPE_CHECKING:
    from torch import Tensor

LOSSES: "Group[Loss]" = Group("loss")


@dataclass(frozen=True)
class Loss(Section):
    """The loss of an image is its error, times the weight of its timestep."""

    name: str

    def error(self, prediction: "Tensor", target: "Tensor") -> "Tensor":
        """The mean squared error of each image; float32 [B, C, H, W] both -> [B]."""
        return (prediction - target).square().mean(dim=(1, 2, 3))

    def weights(self, snr: "Tensor", prediction_type: str) -> "Tensor":
        """The weight of the error at each training timestep, float32 [T].

        Args:
            snr: the signal-to-noise ratio at each timestep, float32 [T].
            prediction_type: "epsilon", "v_prediction" or "sample".
        """
        return snr.new_ones(snr.shape)


@LOSSES.choice
@dataclass(frozen=True)
class MSE(Loss):
    """The mean squared error of the prediction (Ho et al. 2020, eq. 14)."""

    name: Literal["mse"]


@LOSSES.choice
@dataclass(frozen=True)
class MinSNR(Loss):
    """The mean squared error weighted by min(SNR, gamma) (Hang et al. 2023)."""

    name: Literal["min_snr"]
    gamma: Annotated[Real, Gt(0)]

    def weights(self, snr: "Tensor", prediction_type: str) -> "Tensor":
        """min(SNR, gamma) for the error in x_0 (section 3.4).

        The same error in noise is larger by SNR and in v by SNR + 1, which the weight divides out. Where nothing of
        x_0 is left (zero terminal SNR, Lin et al. 2024) that would be 0, and the step that sampling starts from would
        never be learned. There v is -x_0, and its error counts as it is, with weight 1: so do the authors themselves
        (gaussian_diffusion.py of TiankaiHang/Min-SNR-Diffusion-Training).
        """
        clipped = snr.clamp(max=self.gamma)
        if prediction_type != "sample":
            clipped = clipped / (snr if prediction_type == "epsilon" else snr + 1)
        return clipped.masked_fill(snr == 0, 1.0)
