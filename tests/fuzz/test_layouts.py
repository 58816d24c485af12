"""Any layout takes a step, or is refused in one line; and what is refused would not have taken one."""

from functools import cache
from random import Random
from typing import Any

import pytest
import torch

from ddpm_train.config.checks import cross_field_mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.config.schema import Schema
from ddpm_train.config.train import Config
from ddpm_train.models.unet import build_unet
from ddpm_train.training.preflight import PROGRAM, network_mistakes

DOWN = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"]
UP = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"]
# What a layout may say instead of the default: some of it works with some layouts, some with none.
CHOICES: dict[str, list[Any]] = {
    "center_input_sample": [True],
    "time_embedding_type": ["learned", "fourier"],
    "time_embedding_dim": [1, 7, 64],
    "freq_shift": [1, 3, 4, 8, 16, 17, 10**400],
    "flip_sin_to_cos": [False],
    "mid_block_type": [None],
    "layers_per_block": [2, 3],
    "mid_block_scale_factor": [0, 1e-40, 0.5, -2.0, 1e300],
    "downsample_padding": [0, 2, 3, 10**9],
    "downsample_type": ["resnet"],
    "upsample_type": ["resnet"],
    "dropout": [0.5, 0.999],
    "act_fn": ["swish", "mish", "gelu", "relu"],
    "attention_head_dim": [None, 1, 3, 5, 16, 100, 10**12],
    "norm_num_groups": [1, 2, 3, 8, 16, 10**12],
    "attn_norm_num_groups": [1, 3, 8, 10**12],
    "norm_eps": [1e-12, 0.5, 1e300],
    "resnet_time_scale_shift": ["scale_shift"],
    "add_attention": [False],
}


TYPED = Schema(Config)


@cache
def default() -> dict[str, Any]:
    ((_, values),) = compose_configs(PROGRAM, ["model.norm_num_groups=4", "noise_scheduler.num_train_timesteps=50"])
    return values


def draw_config(random: Random) -> dict[str, Any]:
    values = default()
    levels = random.randint(1, 3)
    plain = random.random() < 0.5
    layout = {
        "down_block_types": [random.choice(DOWN[: 3 if plain else 5]) for _ in range(levels)],
        "up_block_types": [random.choice(UP[: 3 if plain else 5]) for _ in range(levels)],
        "block_out_channels": [random.choice([1, 4, 8, 8, 16, 16, 32, 32, 40]) for _ in range(levels)],
        "attention_head_dim": 4,
        **{key: random.choice(CHOICES[key]) for key in random.sample(list(CHOICES), random.randint(0, 4))},
    }
    images = {
        "resolution": random.choice([1, 2, 4, 8, 8, 8, [8, 12], 9]),
        "channels": random.choice([1, 3, 3, 3, 4]),
    }
    return {**values, "model": {**values["model"], **layout}, "dataset": {**values["dataset"], **images}}


def takes_a_step(config: Config) -> bool:
    """Whether the real network is trained by one image, all of it, and by numbers."""
    try:
        unet = build_unet(config.model, config.dataset, config.noise_scheduler)
        x_t = torch.randn(1, config.dataset.channels, *config.dataset.resolution)
        first, last = (unet(x_t, torch.tensor([timestep])).sample for timestep in (0, 49))
        first.square().mean().backward()
    except Exception:
        return False
    gradients = [parameter.grad for parameter in unet.parameters()]
    trained = all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    tells_time = unet.config.dropout > 0 or not torch.equal(first, last)
    return first.shape == x_t.shape and trained and tells_time


@pytest.mark.fuzz(small=40, large=300)
def test_a_layout(random: Random) -> None:
    config, lines = TYPED.check(draw_config(random))
    if config is not None:
        lines = list(cross_field_mistakes(config)) or list(network_mistakes(config))
        assert takes_a_step(config) == (not lines), lines
    assert all("\n" not in line and ": " in line for line in lines)
