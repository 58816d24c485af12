"""The variational bound: against closed forms, an independent computation, and any number of processes."""

import json
import math
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from ddpm_train.diffusion.bound import BoundTerms, discretized_log_likelihood
from ddpm_train.evaluation.likelihood import stretches, variational_bound
from ddpm_train.evaluation.measure import ModelInputs
from ddpm_train.evaluation.workers import Workers
from ddpm_train.models.load import load_model
from ddpm_train.system.console import Console
from ddpm_train.system.ranks import open_channel
from ddpm_train.system.signals import StopRequest

SPREAD = 0.25
# The entropy of that Gaussian in 256 bins, in bits: next to nothing of it lies outside of them.
ENTROPY = math.log2(SPREAD * math.sqrt(2 * math.pi * math.e) * 127.5)


class Gaussian:
    """Images whose pixels are independent: normal with SPREAD, in 256 levels."""

    def __init__(self, count: int, side: int = 8) -> None:
        noise = torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(0))
        self.pixels = ((SPREAD * noise + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, numbers: list[int]) -> Tensor:
        return self.pixels[numbers]


class Optimal(nn.Module):
    """The optimal denoiser of that Gaussian, and the optimal variance of the way back where it is learned."""

    def __init__(self, schedule: DDPMScheduler) -> None:
        super().__init__()
        self.schedule = schedule
        self.device = torch.device("cpu")
        self.kept = schedule.alphas_cumprod.double()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Any:
        kept = self.kept[timesteps][:, None, None, None]
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        x_0 = alpha * SPREAD**2 / (kept * SPREAD**2 + 1 - kept) * x_t
        kind = self.schedule.config.prediction_type
        noise = (x_t - alpha * x_0) / sigma
        output = {"sample": x_0, "epsilon": noise, "v_prediction": alpha * noise - sigma * x_0}[kind]
        if self.schedule.config.variance_type == "learned_range":
            output = torch.cat((output, self.fraction(timesteps).expand_as(output)), dim=1)
        return SimpleNamespace(sample=output.float())

    def fraction(self, timesteps: Tensor) -> Tensor:
        """Where between the posterior's log-variance (-1) and log beta (1) that of q(x_{t-1} | x_t) lies."""
        before = torch.where(timesteps > 0, self.kept[timesteps - 1], 1.0)
        kept = self.kept[timesteps]
        beta = 1 - kept / before
        first = (1 - self.kept[0]) / (1 - self.kept[1]) * (1 - self.kept[1] / self.kept[0])
        posterior = torch.where(timesteps > 0, (1 - before) / (1 - kept) * beta, first)
        gain = before.sqrt() * beta / (1 - kept)
        uncertain = SPREAD**2 * (1 - kept) / (kept * SPREAD**2 + 1 - kept)  # Var[x_0 | x_t]
        optimal = torch.where(timesteps > 0, posterior, 0.0) + gain**2 * uncertain
        return (2 * (optimal / posterior).log() / (beta / posterior).log() - 1)[:, None, None, None]


def workers(accelerator: Accelerator, stop: StopRequest) -> Workers:
    return Workers(accelerator, stop, Console(enabled=False))


def bound(unet: Any, schedule: DDPMScheduler, images: Any, **options: Any) -> Any:
    options = {"seed": 0, "batch_size": 4096, "workers": workers(Accelerator(), StopRequest()), **options}
    held_out, rest = SimpleNamespace(images=images), {"title": "", "objective": None, "timestep_bins": None}
    return variational_bound(
        ModelInputs(unet=unet, noise_scheduler=schedule, held_out=held_out, **rest, **options)  # type: ignore[arg-type]
    )


def test_the_optimal_model_of_a_gaussian_reaches_its_entropy() -> None:
    """Also what these very images cost under the true distribution, where some of the randomness cancels."""
    images = Gaussian(1000)
    schedule = DDPMScheduler(prediction_type="v_prediction", variance_type="learned_range", clip_sample=False)
    found = bound(Optimal(schedule), schedule, images, bound_timesteps=100)
    x_0 = images.pixels.float() / 127.5 - 1
    log_variance = torch.tensor(2 * math.log(SPREAD))
    true = -float(discretized_log_likelihood(x_0, torch.tensor(0.0), log_variance).mean()) / math.log(2)
    assert found.standard_error is not None and found.standard_error < 0.01
    assert true == pytest.approx(ENTROPY, abs=3 * 0.004)
    assert found.bits_per_dim == pytest.approx(ENTROPY, abs=3 * found.standard_error)
    assert found.bits_per_dim == pytest.approx(true, abs=3 * found.standard_error)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("schedule_name", ["linear", "squaredcos_cap_v2", "zero_snr"])
def test_each_term_is_its_closed_form(prediction_type: str, variance_type: str, schedule_name: str) -> None:
    zero = schedule_name == "zero_snr"
    schedule = DDPMScheduler(
        num_train_timesteps=100,
        beta_end=0.2,
        beta_schedule="linear" if zero else schedule_name,
        prediction_type=prediction_type,
        variance_type=variance_type,
        clip_sample=False,
        rescale_betas_zero_snr=zero,
    )
    unet = Optimal(schedule)
    found = bound(unet, schedule, Gaussian(64))
    kept = schedule.alphas_cumprod.double()
    before = torch.cat((torch.ones(1).double(), kept[:-1]))
    beta = 1 - kept / before
    posterior = (beta * (1 - before) / (1 - kept))[1:]
    uncertain = SPREAD**2 * (1 - kept) / (kept * SPREAD**2 + 1 - kept)
    squared = ((before.sqrt() * beta / (1 - kept)) ** 2 * uncertain)[1:]
    variance = {"fixed_small": posterior, "fixed_large": beta[1:], "learned_range": posterior + squared}[variance_type]
    terms = ((variance / posterior).log() + (posterior + squared) / variance - 1) / 2 / math.log(2)
    assert found.by_timestep["timesteps"] == list(range(1, 100))
    ours = torch.tensor(found.by_timestep["bits_per_dim"]).double()
    known = slice(None, -1) if zero and prediction_type == "epsilon" else slice(None)  # noise alone says nothing
    assert torch.allclose(ours[known], terms[known], rtol=0.1, atol=1e-7)
    assert float(ours[known].sum()) == pytest.approx(float(terms[known].sum()), rel=0.02)
    prior = (float(kept[-1]) * (SPREAD**2 - 1) - math.log1p(-float(kept[-1]))) / 2 / math.log(2)
    assert found.prior == pytest.approx(prior, rel=0.08, abs=1e-12) and (found.prior == 0) == zero
    assert math.isfinite(found.bits_per_dim)
    assert found.bits_per_dim == pytest.approx(found.prior + float(ours.sum()) + found.decoder)


def tiny_unet() -> UNet2DModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(8, 1, 1, block_out_channels=(4, 8), norm_num_groups=4, layers_per_block=1, **blocks).eval()


class Few:
    """Real garments at 8 x 8."""

    def __init__(self, garments: list[Any], count: int) -> None:
        import numpy as np

        self.pixels = torch.stack([torch.from_numpy(np.array(each.resize((8, 8))))[None] for each in garments[:count]])

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, numbers: list[int]) -> Tensor:
        return self.pixels[numbers]


@pytest.mark.parametrize("clip_sample", [True, False])
def test_agrees_with_the_formulas_written_out(garments: list[Any], clip_sample: bool) -> None:
    """Means and variances of both Gaussians, torch's own divergence between them, and Gaussian masses of bins."""
    schedule = DDPMScheduler(num_train_timesteps=20, beta_end=0.4, clip_sample=clip_sample, variance_type="fixed_large")
    unet, images = tiny_unet(), Few(garments, 3)
    x_0 = images.pixels.float() / 127.5 - 1
    noise = torch.randn(20, *x_0.shape, generator=torch.Generator().manual_seed(1))
    alphas, betas, kept = schedule.alphas.double(), schedule.betas.double(), schedule.alphas_cumprod.double()
    terms = BoundTerms(schedule, torch.device("cpu"))
    for t in range(20):
        ours = terms.at(unet, x_0, noise[t], torch.full((3,), t))
        x_t = kept[t].sqrt() * x_0.double() + (1 - kept[t]).sqrt() * noise[t].double()
        with torch.no_grad():
            prediction = unet(x_t.float(), t).sample.double()
        estimate = (x_t - (1 - kept[t]).sqrt() * prediction) / kept[t].sqrt()
        estimate = estimate.clamp(-1, 1) if clip_sample else estimate

        def mean(x: Tensor, t: int = t, x_t: Tensor = x_t) -> Tensor:
            before = kept[t - 1]
            return (before.sqrt() * betas[t] * x + alphas[t].sqrt() * (1 - before) * x_t) / (1 - kept[t])

        posterior = (1 - kept[max(t, 1) - 1]) / (1 - kept[max(t, 1)]) * betas[max(t, 1)]
        if t == 0:
            p = torch.distributions.Normal(estimate, posterior.sqrt())
            above = torch.where(x_0 > 0.999, 1.0, p.cdf(x_0.double() + 1 / 255))
            below = torch.where(x_0 < -0.999, 0.0, p.cdf(x_0.double() - 1 / 255))
            theirs, seen = -(above - below).log(), above - below > 1e-6  # beyond, these differences are rounding
            mine = -discretized_log_likelihood(x_0, estimate.float(), posterior.log().float()).double()
            assert seen.float().mean() > 0.1 and torch.allclose(mine[seen], theirs[seen], rtol=1e-3, atol=1e-4)
            assert torch.allclose(ours.double(), mine.mean(dim=(1, 2, 3)) / math.log(2), rtol=1e-3)
        else:
            q = torch.distributions.Normal(mean(x_0.double()), posterior.sqrt())
            p = torch.distributions.Normal(mean(estimate), betas[t].sqrt())
            theirs = torch.distributions.kl_divergence(q, p).mean(dim=(1, 2, 3)) / math.log(2)
            assert torch.allclose(ours.double(), theirs, rtol=1e-4)


def test_the_masses_of_all_levels_add_up_to_one() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for mean in (-1.2, -0.3, 0.0, 0.9999):
        for deviation in (0.003, 0.1, 3.0):
            found = discretized_log_likelihood(levels, torch.tensor(mean), torch.tensor(2 * math.log(deviation)))
            assert bool(found.isfinite().all())
            assert float(found.double().exp().sum()) == pytest.approx(1, rel=1e-4)


def test_some_timesteps_stand_for_all(garments: list[Any]) -> None:
    assert stretches(1000, 999) == list(range(1, 1001))
    assert stretches(1000, 4) == [1, 63, 251, 563, 1000]
    for count in (1, 2, 7, 50, 400):
        edges = stretches(1000, count)
        assert (len(edges), edges[0], edges[-1]) == (count + 1, 1, 1000) and edges == sorted(set(edges))
    schedule = DDPMScheduler(num_train_timesteps=200, beta_end=0.1)
    unet, images = Optimal(schedule), Gaussian(64)
    whole, part = bound(unet, schedule, images), bound(unet, schedule, images, bound_timesteps=12)
    terms = torch.tensor(part.by_timestep["bits_per_dim"])
    assert len(terms) == 12 and part.decoder == pytest.approx(whole.decoder)
    assert abs(part.bits_per_dim - whole.bits_per_dim) < 3 * part.standard_error
    widths = torch.tensor(stretches(200, 12)).diff()
    total = part.prior + part.decoder + float((terms * widths).sum())
    assert part.bits_per_dim == pytest.approx(total)
    assert part.by_timestep["timesteps"] == stretches(200, 12)[:-1]


@pytest.mark.parametrize("what", [{"variance_type": "learned"}, {"thresholding": True}])
def test_what_has_no_bound_is_refused(what: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="there is no bound with"):
        BoundTerms(DDPMScheduler(**what), torch.device("cpu"))


def in_processes(count: int, action: Callable[[Accelerator, StopRequest], Any], folder: Path) -> list[Any]:
    """What `action` returns on each of so many CPU processes: forks of this one, which has paid for the imports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            try:
                PartialState._reset_state()
                AcceleratorState._reset_state()
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in places.items()}, MASTER_ADDR="127.0.0.1")
                accelerator, stop = Accelerator(cpu=True), StopRequest()
                assert accelerator.num_processes == count
                stop.connect(open_channel())
                (folder / f"{count}_{rank}.json").write_text(json.dumps(action(accelerator, stop)))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count
    return [json.loads((folder / f"{count}_{rank}.json").read_text()) for rank in range(count)]


def test_the_same_for_one_and_two_processes(trained: Path, tmp_path: Path, garments: list[Any]) -> None:
    """To the bit, with a trained model on real images, also where the last batch is short and one process idle."""
    model, images = load_model(str(trained)), Few(garments, 30)

    def measure(accelerator: Accelerator, stop: StopRequest) -> dict[str, Any]:
        options = {"seed": 3, "batch_size": 25, "bound_timesteps": 4, "workers": workers(accelerator, stop)}
        return asdict(bound(model.unet, model.noise_scheduler, images, **options))

    (one,) = in_processes(1, measure, tmp_path)
    assert in_processes(2, measure, tmp_path) == [one, one]
    assert one["num_images"] == 30 and 2 < one["bits_per_dim"] < 100 and one["prior"] < 1e-3
