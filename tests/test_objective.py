"""Loss, targets and weights: agreement with diffusers, and inverses."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import compute_snr
from torch.nn import functional

from ddpm_train.config.losses import EDM, MSE, P2, Loss, MinSNR, Sigmoid
from ddpm_train.diffusion.noise import signal_to_noise
from ddpm_train.diffusion.objective import Objective, to_model_range

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def scheduler(prediction_type: str, **arguments: object) -> DDPMScheduler:
    return DDPMScheduler(prediction_type=prediction_type, **arguments)


def test_model_range() -> None:
    images = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    assert to_model_range(images).tolist() == pytest.approx([-1, -1 / 255, 1 / 255, 1], abs=1e-6)


def test_snr_is_diffusers() -> None:
    noise_scheduler = scheduler("epsilon")
    theirs = compute_snr(noise_scheduler, torch.arange(1000))
    assert torch.allclose(signal_to_noise(noise_scheduler), theirs, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_min_snr_weighs_the_error_in_x_0(prediction_type: str) -> None:
    """Whatever is predicted, weight x squared error = min(SNR, gamma) x squared error of the implied x_0."""
    noise_scheduler = scheduler(prediction_type, clip_sample=False)
    weights = MinSNR("min_snr", 5.0).weights(signal_to_noise(noise_scheduler), prediction_type).double()
    alphas = noise_scheduler.alphas_cumprod.double()
    for timestep in (1, 100, 500, 900):
        alpha, sigma = alphas[timestep].sqrt(), (1 - alphas[timestep]).sqrt()
        error = 0.1  # in the prediction; x_t is given, so the implied x_0 is off by:
        x_0_error = {"epsilon": error * sigma / alpha, "v_prediction": error * sigma, "sample": torch.tensor(error)}
        expected = min(alphas[timestep] / (1 - alphas[timestep]), 5.0) * x_0_error[prediction_type] ** 2
        assert weights[timestep] * error**2 == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize(
    "loss", [P2("p2", 0.5, 2.0), EDM("edm", 0.5), Sigmoid("sigmoid", 2.0)], ids=lambda loss: loss.name
)
def test_weights_as_the_papers_have_them(loss: Loss, prediction_type: str) -> None:
    """Each for the error that its paper weighs, whatever is predicted; none is infinite, even of pure noise."""
    noise_scheduler = scheduler(prediction_type)
    snr = signal_to_noise(noise_scheduler)
    found = loss.weights(snr, prediction_type).double()
    snr = snr.double()
    of_noise = found * {"epsilon": 1, "v_prediction": (snr + 1) / snr, "sample": 1 / snr}[prediction_type]
    if isinstance(loss, P2):
        assert torch.allclose(of_noise, (2 + snr) ** -0.5, rtol=1e-5)
    elif isinstance(loss, EDM):
        sigma = snr**-0.5
        assert torch.allclose(of_noise * snr, (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2, rtol=1e-5)
    else:  # lambda falls from one timestep to the next by d; its weight is relative, the mean is 1
        fall = (snr[:-1] / snr[1:]).log()
        wanted = fall / (1 + snr[1:] * math.exp(-2.0))
        ratio = of_noise[1:] / wanted
        assert torch.allclose(ratio, ratio.mean(), rtol=1e-3) and float(found.mean()) == pytest.approx(1, rel=1e-5)
    if isinstance(loss, Sigmoid):  # of a schedule of one timestep, which has none before it
        assert loss.weights(snr[:1], prediction_type).tolist() == [1]
    if prediction_type != "epsilon":
        without_signal = signal_to_noise(scheduler(prediction_type, rescale_betas_zero_snr=True))
        weights = loss.weights(without_signal, prediction_type)
        assert weights.isfinite().all() and weights[-1] == (4 if isinstance(loss, EDM) else 1)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_min_snr_learns_the_step_that_sampling_starts_from(prediction_type: str) -> None:
    """With zero terminal SNR the last weight is 1; all others follow the formula, as those without zero SNR do."""
    snr = torch.tensor([100.0, 5.0, 4.0, 1.0, 2.0**-20, 0.0])
    weights = MinSNR("min_snr", 5.0).weights(snr, prediction_type)
    of_v = [5 / 101, 5 / 6, 4 / 5, 1 / 2, 2.0**-20 / (1 + 2.0**-20), 1]
    expected = of_v if prediction_type == "v_prediction" else [5, 5, 4, 1, 2.0**-20, 1]
    assert torch.equal(weights, torch.tensor(expected))
    for zero_snr in (False, True):
        noise_scheduler = scheduler(prediction_type, rescale_betas_zero_snr=zero_snr)
        snr = signal_to_noise(noise_scheduler)
        weights = Objective(noise_scheduler, MinSNR("min_snr", 5.0), seed=0).weights
        plain = snr.clamp(max=5.0) / (snr + 1 if prediction_type == "v_prediction" else 1)
        assert torch.equal(weights[:-1], plain[:-1]) and weights[-1] == (1 if zero_snr else plain[-1])
        assert (snr == 0).sum() == zero_snr


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_targets_invert(prediction_type: str) -> None:
    """A model that predicts the target exactly gives back x_0 through diffusers' own scheduler step."""
    noise_scheduler = scheduler(prediction_type, clip_sample=False)
    objective = Objective(noise_scheduler, MSE("mse"), seed=0)
    x_0 = torch.rand(4, 1, 8, 8) * 2 - 1
    noise, _ = objective.draw((1, 8, 8), torch.arange(4))
    timesteps = torch.full((4,), 300)
    x_t = noise_scheduler.add_noise(x_0, noise, timesteps)
    target = objective.target(x_0, noise, timesteps)
    recovered = noise_scheduler.step(target, 300, x_t).pred_original_sample
    assert torch.allclose(recovered, x_0, atol=1e-5)
    if prediction_type == "v_prediction":
        assert torch.equal(target, noise_scheduler.get_velocity(x_0, noise, timesteps))


def test_the_loss_is_the_tutorials() -> None:
    """From the same noise and timesteps: add_noise, UNet2DModel, mse_loss."""
    torch.manual_seed(0)
    unet = UNet2DModel(8, 1, 1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                       block_out_channels=(8,), norm_num_groups=4)  # fmt: skip
    noise_scheduler = scheduler("epsilon")
    objective = Objective(noise_scheduler, MSE("mse"), seed=3)
    images, positions = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4) + 17
    x_0 = to_model_range(images)
    noise, timesteps = objective.draw((1, 8, 8), positions)
    noisy = noise_scheduler.add_noise(x_0, noise, timesteps)
    theirs = functional.mse_loss(unet(noisy, timesteps, return_dict=False)[0], noise)
    assert objective.per_image(unet, x_0, noise, timesteps).mean().item() == pytest.approx(theirs.item(), rel=1e-6)
