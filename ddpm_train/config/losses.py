"""What the error of a prediction costs."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt

from ddpm_train.config.parts import Real, Section
from ddpm_train.config.registry import Group

if TYPE_CHECKING:
    from torch import Tensor

LOSSES: "Group[Loss]" = Group("loss")


@dataclass(frozen=True)
class Loss(Section):
    """The loss of an image is its error, times the weight of its timestep.

    Attributes:
        learned_uncertainty: the network learns how large the loss is, and what is large counts less, see
            `Objective.balanced`. Older configs do not have it.
    """

    name: str
    learned_uncertainty: bool = field(default=False, kw_only=True)

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

        Where nothing of x_0 is left (zero terminal SNR, Lin et al. 2024) that would be 0, and the step that sampling
        starts from would never be learned. There v is -x_0, and its error counts as it is, with weight 1: so do the
        authors themselves (gaussian_diffusion.py of TiankaiHang/Min-SNR-Diffusion-Training).
        """
        return for_error_in_x_0(snr.clamp(max=self.gamma), snr, prediction_type).masked_fill(snr == 0, 1.0)


@LOSSES.choice
@dataclass(frozen=True)
class P2(Loss):
    """The mean squared error of the noise weighted by 1 / (k + SNR)^gamma (Choi et al. 2022)."""

    name: Literal["p2"]
    gamma: Annotated[Real, Ge(0)]
    k: Annotated[Real, Gt(0)]

    def weights(self, snr: "Tensor", prediction_type: str) -> "Tensor":
        """Eq. 8 of the paper, whose lambda_t is 1 for the error in noise; where the SNR is 0, 1 as in `MinSNR`."""
        of_noise = (self.k + snr) ** -self.gamma
        return for_error_in_x_0(snr * of_noise, snr, prediction_type).masked_fill(snr == 0, 1.0)


@LOSSES.choice
@dataclass(frozen=True)
class EDM(Loss):
    """The mean squared error of x_0 weighted by 1 / sigma^2 + 1 / sigma_data^2 (Karras et al. 2022)."""

    name: Literal["edm"]
    sigma_data: Annotated[Real, Gt(0)]  # the standard deviation of the images' numbers, in [-1, 1]

    def weights(self, snr: "Tensor", prediction_type: str) -> "Tensor":
        """lambda(sigma) of table 1, where sigma^2 = 1 / SNR."""
        return for_error_in_x_0(snr + self.sigma_data**-2, snr, prediction_type)


@LOSSES.choice
@dataclass(frozen=True)
class Sigmoid(Loss):
    """The likelihood's bound weighted by sigmoid(bias - log SNR) (Kingma & Gao 2023, arXiv 2303.00848)."""

    name: Literal["sigmoid"]
    bias: Real

    def weights(self, snr: "Tensor", prediction_type: str) -> "Tensor":
        """w(lambda) (-dlambda / dt) of eq. 4 for the error in noise, lambda = log SNR, scaled to a mean of 1.

        Where the SNR is 0, the weight is 1 as in `MinSNR`.
        """
        log_snr = snr.log()
        if len(snr) == 1:  # nothing is passed, and the mean of one weight is 1
            return snr.new_ones(1)
        passed = -log_snr.diff(prepend=2 * log_snr[:1] - log_snr[1:2])  # from the timestep before
        of_noise = (self.bias - log_snr).sigmoid() * passed
        weights = for_error_in_x_0(snr * of_noise, snr, prediction_type)
        known = weights[snr > 0]
        return (weights / known.mean()).masked_fill(snr == 0, 1.0)


def for_error_in_x_0(weights: "Tensor", snr: "Tensor", prediction_type: str) -> "Tensor":
    """The weights of the squared error of a prediction, [T], that are these weights of the implied x_0's.

    The same error is larger in noise by SNR and in v by SNR + 1, which is divided out.
    """
    if prediction_type == "sample":
        return weights
    return weights / (snr if prediction_type == "epsilon" else snr + 1)
