"""How often each timestep is drawn: closed forms, and the run that trains so."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler
from helpers.cli import TINY
from helpers.images import dataset_config
from helpers.inputs import noise_schedule
from helpers.runs import records, same_checkpoint
from PIL import Image
from torch import Tensor

import ddpm_train
from ddpm_train.config.losses import MSE
from ddpm_train.config.program import compose_configs
from ddpm_train.config.timesteps import UNIFORM, FromData, LogitNormal, LogNormal, TimestepDistribution, Uniform
from ddpm_train.data.loader import open_data
from ddpm_train.data.spectrum import log_snr_shifts, power_spectrum
from ddpm_train.diffusion.noise import signal_to_noise
from ddpm_train.diffusion.objective import Objective
from ddpm_train.diffusion.timesteps import LEAST_SHARE, Timesteps, timestep_edges
from ddpm_train.seeding import Purpose, integers
from ddpm_train.training.preflight import PROGRAM

LOGNORMAL = LogNormal("lognormal", False, False, -1.2, 1.2)
LOGIT_NORMAL = LogitNormal("logit_normal", False, False, 0.3, 0.8)
FROM_DATA = FromData("from_data", False, False)
COSINE = DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def two_variances() -> Tensor:
    return torch.tensor([0.01, 4.0], dtype=torch.float64)


def made(distribution: TimestepDistribution, schedule: DDPMScheduler = COSINE, seed: int = 3) -> Timesteps:
    return Timesteps.of(distribution, timestep_edges(distribution, schedule, two_variances), schedule, seed)


def probabilities(timesteps: Timesteps) -> np.ndarray:
    assert timesteps.edges is not None
    return np.diff(timesteps.edges.numpy(), prepend=0) / 2**32


def expected(distribution: TimestepDistribution) -> np.ndarray:
    """The textbook density at each timestep, times how far the next is."""
    snr = signal_to_noise(COSINE).double().numpy()
    log_sigma, place = -np.log(snr) / 2, (np.arange(1000) + 0.5) / 1000
    if distribution is LOGNORMAL:
        density = np.exp(-(((log_sigma + 1.2) / 1.2) ** 2) / 2) * np.gradient(log_sigma)
    elif distribution is LOGIT_NORMAL:
        logit = np.log(place / (1 - place))
        density = np.exp(-(((logit - 0.3) / 0.8) ** 2) / 2) / (place * (1 - place))
    else:  # the logistic density of log sigma^2 around the logarithm of each variance
        away = 2 * log_sigma[:, None] - np.log(two_variances().numpy())
        density = (1 / (np.exp(-away / 2) + np.exp(away / 2)) ** 2).mean(axis=1) * 2 * np.gradient(log_sigma)
    return (1 - LEAST_SHARE) * density / density.sum() + LEAST_SHARE / 1000


@pytest.mark.parametrize("distribution", [LOGNORMAL, LOGIT_NORMAL, FROM_DATA], ids=lambda each: each.name)
def test_each_timestep_is_drawn_as_often_as_the_paper_says(distribution: TimestepDistribution) -> None:
    timesteps = made(distribution)
    wanted = expected(distribution)
    # At the ends the schedule's intervals are long: there a product is no integral.
    assert np.abs(probabilities(timesteps) / wanted - 1)[5:990].max() < 0.03
    assert np.abs(probabilities(timesteps) - wanted).sum() < 0.02
    count = 100_000
    _, drawn = Objective(COSINE, MSE("mse"), 3, timesteps).draw((1, 1, 1), torch.arange(count))
    found = np.bincount(drawn.numpy(), minlength=1000)
    share = count * probabilities(timesteps)
    assert (((found - share) ** 2 / share).sum() - 999) / np.sqrt(2 * 999) < 4  # chi squared


def test_the_least_share_and_the_weights_that_go_with_it() -> None:
    """Importance weights make any mean over the timesteps that of the uniform distribution; none is above 100."""
    timesteps = made(LogNormal("lognormal", False, True, -1.2, 1.2))
    share, weights = probabilities(timesteps), timesteps.importance
    assert weights is not None and share.min() > 0.99 * LEAST_SHARE / 1000
    assert np.allclose(share * weights.double().numpy(), 1 / 1000, rtol=1e-6) and float(weights.max()) < 101
    objective = Objective(COSINE, MSE("mse"), 3, timesteps)
    assert torch.equal(objective.weights, weights) and made(LOGNORMAL).importance is None


def test_a_linear_denoiser_learns_where_from_data_draws() -> None:
    """What is drawn up to a timestep, in truth: the error in noise of Wiener's filter, measured, is what is left."""
    snr, variances = signal_to_noise(COSINE).double(), two_variances()
    rng = np.random.default_rng(0)
    x_0, noise = rng.normal(size=(2, 200_000, 2))
    x_0 *= np.sqrt(variances.numpy())
    cumulative = FROM_DATA.cumulative(snr, two_variances)
    for t in (100, 400, 700):
        x_t = np.sqrt(float(snr[t])) * x_0 + noise
        estimate = x_t / (1 + float(snr[t]) * variances.numpy())
        assert ((estimate - noise) ** 2).mean() == pytest.approx(1 - float(cumulative[t]), abs=0.005)


def test_the_spectrum_is_the_variance_of_the_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ((config, _),) = compose_configs(PROGRAM, [])
    images = open_data(config.dataset, progress=False).train
    pixels = images.load(range(len(images))).double() / 127.5 - 1
    spectrum = power_spectrum(images)
    assert spectrum.shape == (256,)
    assert float(spectrum.sum()) == pytest.approx(float(pixels.flatten(1).var(dim=0).sum()), rel=1e-6)
    # Nearly all of it lies in few components, almost as the principal ones have it.
    principal = torch.linalg.eigvalsh(pixels.flatten(1).T.cov()).clamp(min=0)
    shares = [float(each.sort().values[-32:].sum() / each.sum()) for each in (spectrum, principal)]
    assert 0.8 < shares[0] <= shares[1]


def test_the_shift_of_the_schedule_is_that_of_the_pixels_where_there_is_no_fine_detail(
    tmp_path: Path, garments: list[Image.Image]
) -> None:
    """And a smaller one where there is."""
    shifts = {}
    for kind in ("coarse", "fine"):
        (tmp_path / kind).mkdir()
        for number, garment in enumerate(garments[:200]):
            side = 8 if kind == "coarse" else 28
            smooth = garment.resize((side, side), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BICUBIC)
            smooth.save(tmp_path / kind / f"{number:03}.png")
        values = {"resolution": 32, "channels": 1, "validation_fraction": 0, "cache_dir": str(tmp_path / "cache")}
        images = open_data(dataset_config("folder", tmp_path / kind, **values), progress=False).train
        shifts[kind] = log_snr_shifts(images, 16)
    assert shifts["coarse"] == pytest.approx([-2 * math.log(2)] * 3, abs=0.05)
    assert -1.35 < shifts["fine"][0] < shifts["fine"][1] < shifts["fine"][2] < -0.5


@pytest.mark.parametrize("distribution", [Uniform("uniform", True), LogNormal("lognormal", True, False, -1.2, 1.2)])
def test_stratified_timesteps_lie_evenly_in_every_batch(distribution: TimestepDistribution) -> None:
    """Wherever a batch begins: in each of 16 equally likely parts of the schedule lie 3 to 5 of 64 images."""
    timesteps = made(distribution)
    share = np.full(1000, 0.001) if timesteps.edges is None else probabilities(timesteps)
    part = np.minimum((np.cumsum(share) - share / 2) * 16, 15).astype(int)
    for start in (0, 5, 64, 1_000_003, 2**40):
        drawn = timesteps(torch.zeros(64, dtype=torch.int64), torch.arange(start, start + 64))
        counts = np.bincount(part[drawn.numpy()], minlength=16)
        assert counts.min() >= 2 and counts.max() <= 6 and (np.abs(counts - 4) <= 1).mean() > 0.8, counts
    first = [int(made(distribution, seed=seed)(torch.zeros(1), torch.zeros(1).long())) for seed in range(40)]
    assert len(set(first)) > 30  # another seed begins elsewhere


def test_timesteps_are_a_function_of_seed_and_position() -> None:
    """Cut and ordered as ever; and by default they are the numbers that they always were."""
    positions = torch.randint(2**50, (60,), generator=torch.Generator().manual_seed(0))
    for distribution in (UNIFORM, Uniform("uniform", True), LOGNORMAL, FROM_DATA):
        objective = Objective(COSINE, MSE("mse"), 3, made(distribution))
        noise, timesteps = objective.draw((1, 2, 2), positions)
        parts = [objective.draw((1, 2, 2), part) for part in positions.flip(0).split(7)]
        assert torch.equal(torch.cat([part[1] for part in parts]).flip(0), timesteps)
        plain = Objective(COSINE, MSE("mse"), 3).draw((1, 2, 2), positions)
        assert torch.equal(plain[0], noise)
        assert torch.equal(plain[1], integers(3, Purpose.TIMESTEP, positions, 1000))
        assert torch.equal(plain[1], timesteps) == (distribution is UNIFORM)


@pytest.mark.slow
def test_a_run_resumes_exactly_and_is_judged_at_uniform_timesteps_and_plain_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keys = {key: yaml.safe_load(value) for key, value in (override.split("=", 1) for override in TINY)}
    from_data = {"name": "from_data", "stratified": True, "importance_weighted": True}

    def run(name: str, max_steps: int, distribution: dict[str, Any], **more: Any) -> ddpm_train.TrainedRun:
        given = {
            **keys,
            "optimizer.lr": 1e-3,
            "lr_scheduler": "constant",
            "train.mixed_precision": "no",
            "train.max_steps": max_steps,
            "train.micro_batch_size": 8,
            "tracker": "none",
            **more,
        }
        return ddpm_train.train(tmp_path / name, given, timestep_distribution=distribution)

    chosen = {"noise.perturbation": 0.1, "noise.nearest_of": 3, "optimizer": "muon"}
    shifted = {**chosen, "noise_scheduler.log_snr_shift": -0.7}
    run("whole", 4, from_data, **shifted)
    run("parts", 2, from_data, **shifted, evaluation="none")
    run("parts", 4, from_data, **shifted)
    same_checkpoint(tmp_path / "parts", tmp_path / "whole", 4)
    with pytest.raises(ddpm_train.Mistakes) as refused:
        run("whole", 6, {"name": "uniform"})
    for change in (
        r"timestep_distribution.name +from_data +None",
        r"noise.perturbation +0.1 +None",
        r"noise_scheduler.log_snr_shift +-0.7 +None",
    ):
        assert re.search(change, str(refused.value))
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "whole/pipeline")
    assert torch.equal(
        pipeline.scheduler.alphas_cumprod, noise_schedule("noise_scheduler.log_snr_shift=-0.7").alphas_cumprod
    )
    # With weights that do not move, the held-out loss is the same, whatever timesteps and noise a run trains at.
    still = {"optimizer.lr": 1e-30}
    uniform = run("uniform", 1, {"name": "uniform"}, **still)
    other = run("lognormal", 1, {"name": "lognormal"}, **still, **chosen)
    (there,), (here,) = records(uniform.folder), records(other.folder)
    assert here["held_out_loss"] == there["held_out_loss"] and here["loss"] != there["loss"]
    assert here["held_out_loss_floor"] == there["held_out_loss_floor"]


def test_a_distribution_that_the_schedule_does_not_have_is_refused() -> None:
    with pytest.raises(ddpm_train.Mistakes) as refused:
        made(LogNormal("lognormal", False, False, 400.0, 1.0))
    assert refused.value.lines == (
        "timestep_distribution=lognormal: no timestep of this noise schedule is likely; change its keys or use uniform",
    )
    with pytest.raises(ddpm_train.Mistakes, match="from_data: no timestep"):
        timestep_edges(FROM_DATA, COSINE, lambda: torch.zeros(4, dtype=torch.float64))  # images that are all alike
