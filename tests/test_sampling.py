"""Sampling against diffusers' own pipelines, and independence of batches."""

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_train.diffusion.sampling import SAMPLERS, build_sampler, image_seed, sample


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        (8, 12),
        3,
        3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
    ).eval()


@pytest.mark.parametrize("name, steps", [("ddpm", 20), ("ddim", 10)])
def test_same_bits_as_the_pipeline(unet: UNet2DModel, name: str, steps: int) -> None:
    noise_scheduler = DDPMScheduler()
    ours = sample(unet, build_sampler(name, noise_scheduler), range(4), seed=7, num_inference_steps=steps)
    generators = [torch.Generator().manual_seed(image_seed(7, index)) for index in range(4)]
    pipeline = {"ddpm": DDPMPipeline, "ddim": DDIMPipeline}[name](unet, build_sampler(name, noise_scheduler))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=4, generator=generators, num_inference_steps=steps).images
    assert np.array_equal(ours.permute(0, 2, 3, 1).numpy(), np.stack([np.asarray(image) for image in theirs]))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_image_does_not_depend_on_its_batch(unet: UNet2DModel, name: str, prediction_type: str) -> None:
    noise_scheduler = DDPMScheduler(prediction_type=prediction_type)
    together = sample(unet, build_sampler(name, noise_scheduler), range(3), seed=1, num_inference_steps=4)
    alone = sample(unet, build_sampler(name, noise_scheduler), range(2, 3), seed=1, num_inference_steps=4)
    assert together.shape == (3, 3, 8, 12) and together.dtype == torch.uint8
    # Another batch size may round differently in the last bit of a float.
    assert (together[2].int() - alone[0].int()).abs().max() <= 1
    assert (together[0] != together[1]).any()


def test_seeds_do_not_overlap() -> None:
    seen = [image_seed(seed, index) for seed in range(50) for index in range(1000)]
    assert len(set(seen)) == len(seen) and max(seen) < 2**32
