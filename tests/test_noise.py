"""Noise that is perturbed, or chosen by the image: what the papers say, and a function of seed and position alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from helpers.inputs import noise_schedule

from ddpm_train.config.losses import MSE
from ddpm_train.config.noise import Noise
from ddpm_train.config.program import compose_configs
from ddpm_train.data.loader import Batches, MicroBatch, micro_batches, open_data
from ddpm_train.diffusion.noise import nearest
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.training.preflight import PROGRAM

Seen = Callable[..., list[MicroBatch]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    """What a run on the embedded images sees of some positions, which are cut into micro-batches of some size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ((config, _),) = compose_configs(PROGRAM, [])
    batches = Batches(open_data(config.dataset, progress=False).train, 3, random_crop=False, random_flip=True)

    def of(noise: Noise, positions: torch.Tensor, size: int) -> list[MicroBatch]:
        objective, parts = Objective(DDPMScheduler(), MSE("mse"), 3, noise=noise), iter(positions.split(size))
        return list(micro_batches(batches, objective, parts, device=torch.device("cpu"), resident=False, num_workers=0))

    return of


@pytest.mark.parametrize("name", ["linear", "cosine", "zero_snr"])
def test_a_shift_is_added_to_every_log_snr(name: str, tmp_path: Path) -> None:
    """Plain diffusers reads the shifted schedule from the disk; without a shift it is the one it was."""
    plain = noise_schedule(f"noise_scheduler={name}")
    shifted = noise_schedule(f"noise_scheduler={name}", "noise_scheduler.log_snr_shift=-1.39")
    added = shifted.alphas_cumprod.double().logit() - plain.alphas_cumprod.double().logit()
    inner = slice(-1) if name == "zero_snr" else slice(None)
    assert torch.allclose(added[inner], torch.tensor(-1.39).double(), atol=1e-3)
    assert plain.config.trained_betas is None
    assert (float(shifted.alphas_cumprod[-1]) == 0) == (name == "zero_snr") == (float(plain.alphas_cumprod[-1]) == 0)
    shifted.save_pretrained(tmp_path)
    assert "log_snr_shift" not in (tmp_path / "scheduler_config.json").read_text()
    for scheduler in (DDPMScheduler, DDIMScheduler):
        assert torch.equal(scheduler.from_pretrained(tmp_path).alphas_cumprod, shifted.alphas_cumprod)


def test_the_nearest_noise_has_the_least_distance() -> None:
    torch.manual_seed(0)
    candidates, images = torch.randn(64, 5, 3, 8, 8), torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8)
    distances = (candidates.double() - to_model_range(images).double()[:, None]).flatten(2).norm(dim=2)
    expected = distances.argmin(dim=1)
    assert len(expected.unique()) == 5
    assert torch.equal(nearest(candidates, images), candidates[torch.arange(64), expected])


def test_noise_is_a_function_of_seed_and_position(seen: Seen) -> None:
    """However a batch is cut; and what is switched on changes nothing but what it says."""
    positions = torch.arange(100, 196)
    (off,) = seen(Noise(), positions, 96)
    assert torch.equal(off.noise, off.input_noise)
    for noise in (Noise(0.1, 1), Noise(0.0, 4), Noise(0.1, 4)):
        (whole,), parts = seen(noise, positions, 96), seen(noise, positions, 7)
        for field, several in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(field, torch.cat(several))
        assert torch.equal(whole.images, off.images) and torch.equal(whole.timesteps, off.timesteps)
        added = whole.input_noise - whole.noise
        assert float(added.std()) == pytest.approx(noise.perturbation, rel=0.02)
        assert abs(float((added * whole.noise).mean())) < 0.005  # independent
        unchanged = (whole.noise == off.noise).flatten(1).all(dim=1).float().mean()  # the first of the four is plain
        assert unchanged == 1 if noise.nearest_of == 1 else 0.1 < unchanged < 0.45
        x_0 = to_model_range(whole.images)
        nearer = (whole.noise - x_0).flatten(1).norm(dim=1) <= (off.noise - x_0).flatten(1).norm(dim=1)
        assert nearer.all()
