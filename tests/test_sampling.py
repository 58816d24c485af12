"""Every sampler against diffusers' own loop, to the bit; which samplers can; independence of batches."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, RePaintScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from helpers.inputs import noise_schedule
from torch import Tensor

from ddpm_train.config.parts import Sampler
from ddpm_train.config.samplers import FITTED, SAMPLERS, SamplerClass, argument_mistakes, arguments
from ddpm_train.diffusion.pixels import to_uint8
from ddpm_train.sampling.engine import Engine
from ddpm_train.sampling.inpainting import Inpainting, inpaint, visits
from ddpm_train.sampling.loop import build_sampler, image_generators, image_seed, noised, step_arguments
from ddpm_train.sampling.recipe import Recipe
from ddpm_train.sampling.sampler_check import is_stochastic, refusal
from ddpm_train.sampling.schedule import Schedule

# Schedules as trained models have them.
LINEAR: Mapping[str, Any] = {}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}

OF_DIFFUSERS = [name for name in SAMPLERS if name != FITTED]


def skip_without_package(name: str) -> None:
    if package := SAMPLERS[name].package:
        pytest.importorskip(package)


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


def sample(
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler,
    name: str,
    indices: Sequence[int],
    seed: int,
    steps: int,
    **given: Any,
) -> Tensor:
    """Images of a sampler with these arguments, uint8 [B, C, H, W]."""
    return Engine(unet, noise_scheduler).images(Recipe(seed, Sampler(name, given), steps, (8, 12)), indices)


@pytest.mark.parametrize("name, steps, given", [("ddpm", 20, {}), ("ddim", 10, {}), ("ddim", 10, {"eta": 0.5})])
def test_same_bits_as_the_pipeline(unet: UNet2DModel, name: str, steps: int, given: dict[str, Any]) -> None:
    ours = sample(unet, DDPMScheduler(), name, range(4), 7, steps, **given)
    generators = [torch.Generator().manual_seed(image_seed(7, index)) for index in range(4)]
    pipeline = {"ddpm": DDPMPipeline, "ddim": DDIMPipeline}[name](unet, SAMPLERS[name].load().from_config({}))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=4, generator=generators, num_inference_steps=steps, **given).images
    assert np.array_equal(ours.permute(0, 2, 3, 1).numpy(), np.stack([np.asarray(image) for image in theirs]))


@torch.no_grad()
def documented_loop(unet: UNet2DModel, name: str, config: Mapping[str, Any], steps: int, **given: Any) -> Tensor:
    """The loop of the diffusers documentation, with diffusers' class of that name."""
    scheduler = SAMPLERS[name].load()(**config)
    generators = image_generators(5, range(3))
    image = randn_tensor((3, 3, 8, 12), generator=generators)
    scheduler.set_timesteps(steps)
    if name == "dpm_solver_sde":
        scheduler.noise_sampler_seed = [image_seed(5, index) for index in range(3)]
    takes = {"ddpm", "ddim", "dpm_solver", "dpm_solver_singlestep", "sa_solver", "euler"}
    takes |= {"euler_ancestral", "kdpm2_ancestral"}
    extra = {"generator": generators} if name in takes else {}
    image = image * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(image, t)
        noise_pred = unet(model_input, t).sample
        image = scheduler.step(noise_pred, t, image, **extra, **given).prev_sample
    return image


@pytest.mark.parametrize("name", OF_DIFFUSERS)
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_same_bits_as_the_documented_loop(unet: UNet2DModel, name: str, schedule: dict[str, Any]) -> None:
    skip_without_package(name)
    # The scheduler as diffusers makes it from the same keys, with no default of another class in between.
    constructor, _ = arguments(name)
    noise_scheduler = DDPMScheduler(**schedule)
    config = {key: value for key, value in noise_scheduler.config.items() if key in constructor}
    config = {key: value for key, value in config.items() if key in (*schedule, "beta_start", "beta_end")}
    ours = sample(unet, noise_scheduler, name, range(3), 5, 12)
    assert torch.equal(ours, to_uint8(documented_loop(unet, name, config, 12)))


@pytest.mark.parametrize(
    "name, constructor, step",
    [
        ("euler", {"use_karras_sigmas": True}, {"s_churn": 2.0}),
        ("dpm_solver", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, {}),
        ("ddim", {"timestep_spacing": "trailing"}, {"eta": 0.3}),
    ],
)
def test_arguments_reach_the_class_and_its_step(
    unet: UNet2DModel, name: str, constructor: dict[str, Any], step: dict[str, Any]
) -> None:
    given = {**constructor, **step}
    sampler = build_sampler(name, DDPMScheduler(), given)
    assert {key: sampler.config[key] for key in constructor} == constructor
    assert step_arguments(sampler, given, []) == {**step, "generator": []} and is_stochastic(name, given)
    ours = sample(unet, DDPMScheduler(), name, range(3), 5, 6, **given)
    config = {"beta_start": 0.0001, "beta_end": 0.02, **constructor}
    assert torch.equal(ours, to_uint8(documented_loop(unet, name, config, 6, **step)))


def test_a_class_from_outside_samples_like_the_others(unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constructor's and its step's arguments reach it, and it is checked by running it."""

    class Halved(DDIMScheduler):
        def step(
            self, model_output: Tensor, timestep: int, sample: Tensor, eta: float = 0.0, generator: Any = None
        ) -> Any:
            return super().step(model_output, timestep, sample, eta=eta / 2, generator=generator)

    monkeypatch.setitem(SAMPLERS._entries, "halved", SamplerClass(Halved, "DDIM with half the noise"))
    halved = sample(unet, DDPMScheduler(), "halved", range(2), 3, 5, eta=0.5, timestep_spacing="trailing")
    ddim = sample(unet, DDPMScheduler(), "ddim", range(2), 3, 5, eta=0.25, timestep_spacing="trailing")
    assert torch.equal(halved, ddim) and why("halved") is None and why("halved", 5) is None
    (line,) = argument_mistakes("halved", {"etaa": 1})
    assert line.startswith("sampler.etaa=1: no argument of Halved;")


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_models_own_schedule_is_used(name: str) -> None:
    """diffusers' `from_config` drops what stands at the default of DDPMScheduler; Heun's and others' differ."""
    skip_without_package(name)
    for noise_scheduler in (DDPMScheduler(), noise_schedule("noise_scheduler.log_snr_shift=-1.4")):
        assert torch.equal(build_sampler(name, noise_scheduler).alphas_cumprod, noise_scheduler.alphas_cumprod)


@pytest.mark.parametrize("name", OF_DIFFUSERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_image_does_not_depend_on_its_batch(unet: UNet2DModel, name: str, prediction_type: str) -> None:
    skip_without_package(name)
    noise_scheduler = DDPMScheduler(prediction_type=prediction_type)
    together = sample(unet, noise_scheduler, name, range(3), 1, 5)
    alone = sample(unet, noise_scheduler, name, [2], 1, 5)
    assert together.shape == (3, 3, 8, 12) and together.dtype == torch.uint8
    # Another batch size may round differently in the last bit of a float.
    assert (together[2].int() - alone[0].int()).abs().max() <= 1
    assert (together[0] != together[1]).any()


def test_seeds_do_not_overlap() -> None:
    seen = [image_seed(seed, index) for seed in range(50) for index in range(1000)]
    assert len(set(seen)) == len(seen) and max(seen) < 2**32
    # Two seeds of one image differ, for the factor is odd; a larger one would be one of these again.
    assert image_seed(2**32 - 1, 0) != image_seed(0, 0) == image_seed(2**32, 0)


def test_who_draws_noise() -> None:
    drawing = {name for name in SAMPLERS if SAMPLERS[name].package is None and is_stochastic(name, {})}
    assert drawing == {"ddpm", "sa_solver", "euler_ancestral", "kdpm2_ancestral"}


def why(
    name: str, steps: int = 25, *, learned: bool = False, strength: float | None = None, **config: Any
) -> str | None:
    scheduler = DDPMScheduler(**config)
    return refusal(name, scheduler, steps, {}, learned_variance=learned, strength=strength)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].package is None])
def test_who_can_sample_what(name: str) -> None:
    assert why(name) is None and why(name, 50, **COSINE) is None
    no_x_0 = {"pndm", "euler_ancestral", "kdpm2", "kdpm2_ancestral"}
    reason = why(name, prediction_type="sample")
    assert (reason is not None and "prediction_type" in reason) if name in no_x_0 else reason is None
    knows = {"ddpm", "ddim", "dpm_solver", "unipc", "euler", "euler_ancestral", FITTED}
    assert (why(name, **ZERO_SNR) is None) == (name in knows)
    assert (why(name, learned=True, variance_type="learned_range") is None) == (
        name in {"ddpm", "dpm_solver", "dpm_solver_singlestep", FITTED}
    )
    assert (why(name, strength=0.6) is None) == (name not in {"pndm", FITTED})


def test_too_few_steps_for_a_sampler() -> None:
    """Not by belief: Heun's first stretch of a cosine schedule is so long that it diverges."""
    assert "it diverges" in str(why("heun", 10, **COSINE)) and why("heun", 100, **COSINE) is None
    assert why("pndm", 2) is not None and why("pndm", 5) is None
    assert all(why(name, 10, **COSINE) is None for name in ("ddpm", "ddim", "dpm_solver", "unipc", "euler"))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_estimate_of_x_0(prediction_type: str) -> None:
    noise_scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    schedule = Schedule(noise_scheduler)
    x_t, prediction = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ddim = build_sampler("ddim", noise_scheduler)
    ddim.set_timesteps(10)
    for timestep in ddim.timesteps:
        theirs = ddim.step(prediction, timestep, x_t).pred_original_sample
        assert torch.allclose(schedule.x_0(x_t, prediction, timestep), theirs, rtol=1e-4, atol=1e-4)
    for timestep in (0.0, 3.25, 500.5, 999.0):
        x_0 = schedule.x_0(x_t, schedule.prediction(x_t, prediction, torch.tensor(timestep)), torch.tensor(timestep))
        assert torch.allclose(x_0, prediction, atol=1e-3)
    # Between two timesteps: where a sampler with sigmas of its own says that it stands.
    euler = build_sampler("euler", noise_scheduler, {"use_karras_sigmas": True})
    euler.set_timesteps(7)
    for timestep, sigma in zip(euler.timesteps, euler.sigmas, strict=False):
        alpha, ours = schedule.at(timestep)
        assert ours / alpha == pytest.approx(float(sigma), rel=1e-3)


def test_a_noised_picture_as_diffusers_noises_it(unet: UNet2DModel) -> None:
    noise_scheduler = DDPMScheduler()
    sampler = build_sampler("ddim", noise_scheduler)
    sampler.set_timesteps(10)
    picture, noise = torch.full((1, 3, 8, 12), 0.5), torch.randn(2, 3, 8, 12)
    x_t, start = noised(sampler, picture, noise, 0.3)
    timestep = sampler.timesteps[7]
    assert start == 7 and torch.equal(
        x_t, noise_scheduler.add_noise(picture.expand(2, -1, -1, -1), noise, timestep[None])
    )


@pytest.mark.parametrize("steps, jump, repeats", [(20, 5, 3), (12, 4, 2), (10, 3, 4), (6, 2, 1)])
def test_inpainting_visits_what_repaint_visits(steps: int, jump: int, repeats: int) -> None:
    theirs = RePaintScheduler(num_train_timesteps=steps)
    theirs.set_timesteps(steps, jump_length=jump, jump_n_sample=repeats)
    places = [steps]
    for _, there in visits(steps, jump, repeats):
        # RePaint's list has every step of a jump back.
        places += range(places[-1] + 1, there + 1) if there > places[-1] else [there]
    assert places[1:] == theirs.timesteps.tolist()


def test_inpainting_keeps_what_is_known(unet: UNet2DModel) -> None:
    picture = torch.linspace(-1, 1, 3 * 8 * 12).reshape(1, 3, 8, 12)
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 6:] = 1
    for name in ("ddpm", "ddim"):
        sampler = build_sampler(name, DDPMScheduler())
        sampler.set_timesteps(6)
        generators = image_generators(0, range(2))
        noise = randn_tensor((2, 3, 8, 12), generator=generators)
        made = inpaint(unet, sampler, picture, Inpainting(mask, 2, 2), noise, generators, arguments={})
        assert torch.equal(made[..., :6], picture[..., :6].expand(2, -1, -1, -1))
        assert not torch.equal(made[0, ..., 6:], made[1, ..., 6:]) and made.isfinite().all()


def test_arguments_are_those_of_diffusers() -> None:
    """What is read from the source is what the classes say when they are imported."""
    import inspect

    for name in OF_DIFFUSERS:
        sampler = SAMPLERS[name]
        if sampler.package and importlib.util.find_spec(sampler.package) is None:
            continue
        signature = inspect.signature(sampler.load().__init__).parameters
        assert sampler.load() is getattr(diffusers, sampler.class_name)
        assert set(arguments(name)[0]) == set(signature) - {"self", "noise_sampler_seed"}
    assert arguments("ddim")[1] == ("eta", "use_clipped_model_output")
    (line,) = Sampler("ddim", {"etaa": 1}).mistakes()
    assert line == "sampler.etaa=1: no argument of DDIMScheduler; did you mean 'eta'?"
