"""The bound under the held-out loss: the optimal denoiser of a set of images, in closed form."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers.inputs import half_held_out, model_inputs, noise_schedule
from PIL import Image

from ddpm_train.config.losses import MSE, MinSNR
from ddpm_train.data.loader import Data
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.evaluation import floor
from ddpm_train.evaluation.floor import Floor, measure_floor
from ddpm_train.report import stored
from ddpm_train.report.evidence import Series
from ddpm_train.report.findings import how_much_is_learned
from ddpm_train.seeding import Purpose, integers
from ddpm_train.training import messages


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, garments: list[Image.Image]) -> Data:
    """60 real images at 8 px: 30 to learn, 30 held out."""
    return half_held_out(tmp_path_factory.mktemp("floor"), garments[:60])


def measured(data: Data, objective: Objective, **dataset: Any) -> Floor:
    unet = SimpleNamespace(device=torch.device("cpu"))
    return measure_floor(*model_inputs(data, objective, unet, **dataset))


def by_heart(x_t: np.ndarray, known: np.ndarray, kept: float) -> np.ndarray:
    """The mean of what is known, weighted by how likely it gave x_t; float64 [D] of [D] and [N, D]."""
    distances = ((x_t - np.sqrt(kept) * known) ** 2).sum(axis=1) / (2 * (1 - kept))
    likely = np.exp(distances.min() - distances)
    return likely @ known / likely.sum()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_it_is_the_loss_of_the_optimal_denoiser(
    data: Data, monkeypatch: pytest.MonkeyPatch, kind: str, mirrored: bool
) -> None:
    """Written out in float64, image by image."""
    monkeypatch.setattr(floor, "NUM_NOISED", 60)
    shift = -0.7 if mirrored else 0.0
    schedule = noise_schedule(
        *("noise_scheduler=linear", f"noise_scheduler.prediction_type={kind}"),
        f"noise_scheduler.log_snr_shift={shift}",
    )
    objective = Objective(schedule, MinSNR("min_snr", 5.0), seed=3)
    found = measured(data, objective, random_flip=mirrored)
    assert data.validation is not None and found.num_images == 30

    known, held_out = (to_model_range(images.load(range(30))) for images in (data.train, data.validation))
    if mirrored:
        known = torch.stack((known, known.flip(-1)), dim=1).flatten(0, 1)
    noise, timesteps = objective.draw((1, 8, 8), torch.arange(30), (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP))
    drawn = integers(3, Purpose.FLOOR_IMAGE, torch.arange(60), len(known)).tolist()
    images, half = known.flatten(1).double().numpy(), len(known) // 2
    mean = images.mean(axis=0)
    spread = ((images - mean) ** 2).mean()

    def loss(place: int, x_0: np.ndarray, known: np.ndarray | None) -> float:
        kept = float(schedule.alphas_cumprod[timesteps[place]])
        x_t = np.sqrt(kept) * x_0 + np.sqrt(1 - kept) * noise[place].flatten().double().numpy()
        if known is None:
            estimate = mean + np.sqrt(kept) * spread / (kept * spread + 1 - kept) * (x_t - np.sqrt(kept) * mean)
        else:
            estimate = by_heart(x_t, known, kept)
        # What the same error in x_0 is, in what is predicted.
        factor = {"epsilon": kept / (1 - kept), "v_prediction": 1 / (1 - kept), "sample": 1.0}[kind]
        return float(((estimate - x_0) ** 2).mean() * factor * objective.weights[timesteps[place]])

    unseen = held_out.flatten(1).double().numpy()
    for place in range(30):
        own = drawn[2 * place : 2 * place + 2]
        expected = {
            "least": np.mean([loss(place, images[number], images) for number in own]),
            "fewer": np.mean([loss(place, images[number // 2], images[:half]) for number in own]),
            "copier": loss(place, unseen[place], images),
            "naive": loss(place, unseen[place], None),
        }
        for name, value in expected.items():
            assert float(getattr(found, name)[place]) == pytest.approx(value, rel=2e-3, abs=1e-6), name


def test_an_untrained_model_has_learned_nothing_yet() -> None:
    """Its loss is above that of a model which knows only the mean and the spread: a share below 0 says nothing."""
    known = "held-out loss 0.9, of which no model could remove 0.1"
    assert messages.learned(0.9, 0.1, -0.57).startswith(f"{known}; a model that knows only the mean and the spread")
    assert messages.learned(0.9, 0.1, 0.6) == f"{known}; at least 60 % of what can be learned is learned"
    floor = stored.Floor(0.9, 0.1, 0.5, 0.6, -0.6, [-0.7, -0.5], 100, {})
    found = how_much_is_learned(floor, Series(np.array([1.0]), np.array([-0.6])))
    assert found.answer == "Nothing yet" and "%" not in " ".join(found.details)


def test_what_is_learned_lies_between_the_naive_and_the_bound(data: Data) -> None:
    objective = Objective(DDPMScheduler(prediction_type="v_prediction"), MSE("mse"), seed=0)
    found = measured(data, objective)
    assert found.fewer.mean() < found.least.mean() < found.naive.mean() and found.least.mean() < found.copier.mean()
    assert found.learned(found.naive) == (0, (0, 0))
    assert found.learned(found.least)[0] == pytest.approx(1)
    share, (low, high) = found.learned((found.naive + found.least) / 2)
    assert share == pytest.approx(0.5) and low <= share <= high
    share, (low, high) = found.learned(0.8 * found.naive)
    assert 0 < low < share < high < 1
