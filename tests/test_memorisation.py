"""When copying begins: how far the losses part, the forecast, and a run that ends before."""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.cli import Cli
from helpers.inputs import half_held_out, model_inputs
from PIL import Image
from torch import Tensor, nn

from ddpm_train.config.losses import MSE, MinSNR
from ddpm_train.data.loader import Data
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.evaluation.memorisation import LossRatio, measure_loss_ratio
from ddpm_train.runs.clock import BEGINS, EARLIEST, RATIO, Clock, read_clock
from ddpm_train.seeding import Purpose


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, garments: list[Image.Image]) -> Data:
    """40 real images at 8 px: 20 to learn, 20 held out."""
    return half_held_out(tmp_path_factory.mktemp("memorisation"), garments[:40])


class Copier(nn.Module):
    """Takes every image for the nearest that it knows, with a little noise left."""

    def __init__(self, known: Tensor, noise_scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.known, self.alphas = known, noise_scheduler.alphas_cumprod

    def forward(self, x_t: Tensor, timesteps: Tensor) -> object:
        alpha = self.alphas[timesteps][:, None, None, None]
        near = torch.cdist((x_t / alpha.sqrt()).flatten(1), self.known.flatten(1)).argmin(dim=1)
        noise = (x_t - alpha.sqrt() * 0.95 * self.known[near]) / (1 - alpha).sqrt()
        return type("Output", (), {"sample": noise})


def measured(data: Data, objective: Objective, unet: nn.Module) -> LossRatio | None:
    return measure_loss_ratio(*model_inputs(data, objective, unet))


def test_the_losses_of_a_copier_part(data: Data) -> None:
    """By hand, image by image; whatever the weights of the timesteps."""
    schedule = DDPMScheduler()
    known, unseen = (to_model_range(images.load(range(20))) for images in (data.train, data.validation))  # type: ignore[union-attr]
    copier = Copier(known, schedule)
    found = measured(data, Objective(schedule, MSE("mse"), seed=3), copier)
    weighted = measured(data, Objective(schedule, MinSNR("min_snr", 5.0), seed=3), copier)
    assert found is not None and weighted is not None and weighted.value == pytest.approx(found.value, rel=1e-4)

    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    allowed = [t for t in range(1000) if 40 <= snr[t] <= 400]
    purposes = (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP)
    noise, drawn = Objective(schedule, MSE("mse"), seed=3).draw((1, 8, 8), torch.arange(512), purposes)
    logs = []
    for place in range(512):
        t = torch.tensor([allowed[int(drawn[place]) * len(allowed) // 1000]])
        errors = []
        for images in (unseen, known):
            x_t = schedule.add_noise(images[place % 20][None], noise[place][None], t)
            errors.append(float((copier(x_t, t).sample - noise[place]).square().mean()))  # type: ignore[attr-defined]
        logs.append(math.log(errors[0] / errors[1]))
    assert found.value == pytest.approx(math.exp(sum(logs) / 512), rel=1e-3) and found.value > 10
    assert 1 < found.interval[0] < found.value < found.interval[1]


def test_who_knows_no_image_loses_the_same_on_all(data: Data) -> None:
    schedule = DDPMScheduler()
    objective = Objective(schedule, MSE("mse"), seed=3)
    found = measured(data, objective, Copier(torch.zeros(1, 1, 8, 8), schedule))
    assert found is not None and found.interval[0] < 1 < found.interval[1]
    few = replace(data.validation, rows=data.validation.rows[:9])  # type: ignore[union-attr, type-var]
    assert measured(replace(data, validation=few), objective, Copier(torch.zeros(1, 1, 8, 8), schedule)) is None


def clock(excess: Callable[[int], float], steps: range) -> Clock:
    return Clock({step: 1 + excess(step) for step in steps})


@pytest.mark.parametrize("power", [0.7, 1.0, 1.6])
def test_a_power_of_the_steps_is_forecast_exactly(power: float) -> None:
    """At half of the time, whatever came before the last two thirds."""
    begins = 4000
    grows = clock(lambda step: (BEGINS - 1) * (step / begins) ** power if step > 600 else 0.3, range(200, 2001, 200))
    found = grows.forecast()
    assert found is not None and found.step == pytest.approx(begins)
    wider = grows.forecast((grows.ratios[2000] - 0.1, grows.ratios[2000] + 0.1))
    assert wider is not None and wider.interval[1] is not None and found.interval[1] is not None
    assert wider.interval[0] < found.interval[0] < found.step < found.interval[1] < wider.interval[1]
    earliest = begins * ((EARLIEST - 1) / (BEGINS - 1)) ** (1 / power)
    assert found.interval[0] == pytest.approx(earliest)
    assert grows.may_begin_by(math.ceil(earliest)) and not grows.may_begin_by(int(earliest) - 1)


def test_what_does_not_grow_has_no_forecast() -> None:
    assert Clock().forecast() is None and not Clock().may_begin_by(10**9)
    assert clock(lambda step: -0.1, range(100, 500, 100)).forecast() is None
    assert clock(lambda step: 100 / step, range(100, 500, 100)).forecast() is None
    assert clock(lambda step: 0.03 * (step / 100) ** 0.1, range(100, 500, 100)).forecast() is None  # in 10^18 steps
    single = Clock({100: 1.29})  # in proportion to the steps
    found = single.forecast((0.9, 1.7))
    assert found is not None and found.step == pytest.approx(1000) and found.interval[1] is None
    assert str(found) == "about step 1,000 (170 or later)"


# 12 images at 8 px, which a small network knows by heart after some hundred steps.
MEMORISES = (
    *("dataset=imagefolder", "dataset.path=garments", "dataset.channels=1", "dataset.validation_fraction=0.7"),
    *("dataset.random_flip=false", "model.block_out_channels=[16,32]", "model.mid_block_type=null"),
    *("model.down_block_types=[DownBlock2D,DownBlock2D]", "model.up_block_types=[UpBlock2D,UpBlock2D]"),
    *("model.layers_per_block=1", "optimizer.lr=8e-3", "optimizer.weight_decay=0", "lr_scheduler=constant"),
    *("train.batch_size=12", "train.max_steps=800", "train.stop_before_copying=true"),
    *("evaluation.every_steps=50", "checkpoint.every_steps=50", "tracker=none"),
)


@pytest.mark.slow
def test_a_run_ends_before_it_copies(cli: Cli, write_images: Callable[[Path, int], Path]) -> None:
    """It really learns by heart and ends by itself: at the same step and bits also when it was killed on its way."""
    write_images(cli.folder / "garments", 40)
    said = cli.train(*MEMORISES, "name=whole")
    whole, parts, records = cli.output("whole"), cli.output("parts"), cli.metrics("whole")
    end = records[-1]["step"]
    assert 150 <= end < 800 and f"done: step {end} after" in said
    assert "early: it may begin to copy training images before it is evaluated again" in said
    assert "the same command with train.stop_before_copying=false" in said
    assert json.loads((whole / "result.json").read_text())["stopped_before_copying"] is True
    assert (whole / f"samples/step_{end:08}.png").exists() and (whole / "pipeline/model_index.json").exists()
    ratios = read_clock(whole).ratios
    assert list(ratios) == list(range(50, end + 1, 50)) and all(RATIO in records[step - 1] for step in ratios)
    loss = f": where little noise is added, the held-out loss is {ratios[end]:.2f} times the training loss"
    assert ratios[end] > ratios[50] + 0.5
    assert re.search(rf"step {end}: copying of training images is forecast to begin at about step .*{loss}", said)
    steps = [step for step in ratios if Clock({at: ratios[at] for at in ratios if at <= step}).may_begin_by(step + 50)]
    assert steps == [end]
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "Not measured; copying is forecast to begin at about step" in page and "The run ended early: it may" in page

    killed = cli.start_training(*MEMORISES, "name=parts")
    deadline = time.monotonic() + 120
    while not (parts / "checkpoints/step_00000100").is_dir():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert "resumes at step" in cli.train(*MEMORISES, "name=parts") and read_clock(parts).ratios == ratios
    tensors = f"checkpoints/step_{end:08}/unet.safetensors"
    assert (parts / tensors).read_bytes() == (whole / tensors).read_bytes()
    again = cli.train(*MEMORISES, "name=parts")
    assert f"at step {end}; nothing to do; to go on, add train.stop_before_copying=false" in again
    longer = cli.train(*MEMORISES, "name=parts", "train.stop_before_copying=false", f"train.max_steps={end + 1}")
    assert f"resumes at step {end}" in longer and cli.metrics("parts")[-1]["step"] == end + 1
