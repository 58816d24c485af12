"""The denoiser."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator

from ddpm_train.config.parts import FilePath, NonNegative, Positive, Real, Section, Whole

# No network in use comes near these bounds, within which a layout can be built and tried in seconds.
MOST_LEVELS = 12
Width = Annotated[Positive, Le(65_536)]


def _divisor(value: float) -> float:
    if not 1e-3 <= abs(value) <= 1e3:
        raise ValueError("must be between 0.001 and 1000, or the negative of that")
    return value


DownBlock = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"
]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]


@dataclass(frozen=True)
class Model(Section):
    """UNet2DModel's arguments; sample size and channels follow from the dataset."""

    # A folder or owner/name whose weights a new run starts from, and whose arguments it takes.
    pretrained: FilePath | None
    center_input_sample: bool
    time_embedding_type: Literal["positional", "fourier", "learned"]
    time_embedding_dim: Width | None
    freq_shift: Whole
    flip_sin_to_cos: bool
    down_block_types: Annotated[tuple[DownBlock, ...], Len(1, MOST_LEVELS)]
    mid_block_type: Literal["UNetMidBlock2D"] | None
    up_block_types: Annotated[tuple[UpBlock, ...], Len(1, MOST_LEVELS)]
    block_out_channels: Annotated[tuple[Width, ...], Len(1, MOST_LEVELS)]
    layers_per_block: Annotated[Positive, Le(32)]
    mid_block_scale_factor: Annotated[Real, AfterValidator(_divisor)]
    downsample_padding: NonNegative
    downsample_type: Literal["conv", "resnet"]
    upsample_type: Literal["conv", "resnet"]
    dropout: Annotated[Real, Ge(0), Lt(1)]
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"]
    attention_head_dim: Positive | None
    norm_num_groups: Positive
    attn_norm_num_groups: Positive | None
    norm_eps: Annotated[Real, Gt(0), Lt(1)]
    resnet_time_scale_shift: Literal["default", "scale_shift"]
    add_attention: bool
