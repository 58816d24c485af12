"""What the error of a prediction costs."""

from typing import Annotated, Literal

from annotated_types import Gt
from pydantic.dataclasses import dataclass

from ddpm_train.config.parts import STRICT, Real


@dataclass(frozen=True, config=STRICT)
class MSE:
    """The mean squared error of the prediction (Ho et al. 2020, eq. 14)."""

    name: Literal["mse"]


@dataclass(frozen=True, config=STRICT)
class MinSNR:
    """The mean squared error weighted by min(SNR, gamma) (Hang et al. 2023)."""

    name: Literal["min_snr"]
    gamma: Annotated[Real, Gt(0)]
