"""`ddpm-train --plan`: what a run would take, computed before anything is loaded."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from helpers.cli import Cli
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from ddpm_train.config.program import compose_configs
from ddpm_train.models.footprint import footprint
from ddpm_train.models.unet import Images, unet_of
from ddpm_train.training.plan import GPUS, Need
from ddpm_train.training.preflight import PROGRAM

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("checkpointing", "tolerance"), [(False, 5e-3), (True, 0.15)])
def test_the_peak_is_that_of_a_real_step(checkpointing: bool, tolerance: float) -> None:
    """By torch's memory profiler, of a step with real tensors."""
    ((config, _),) = compose_configs(PROGRAM, [])

    def build() -> UNet2DModel:
        unet = unet_of(config.model, Images((16, 16), 1), config.noise_scheduler.num_train_timesteps)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        return unet

    computed, unet = footprint(build, 16, (16, 16)), build()
    x_t, timesteps = torch.zeros(16, 1, 16, 16), torch.zeros(16, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        unet(x_t, timesteps).sample.square().mean().backward()
    alive = peak = 0
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    assert computed.peak_bytes - computed.weight_bytes == pytest.approx(peak, rel=tolerance)
    assert computed.parameters == unet.num_parameters()


def test_what_fits() -> None:
    need = Need(fixed=2e9, per_image=1e8)
    assert need.of(10) == 3e9
    t4 = GPUS[0]
    assert [need.largest(t4, at_most) for at_most in (4, 124, 125)] == [4, 124, 64]  # 0.9 * 16 GB hold 124
    assert Need(fixed=15e9, per_image=1).largest(t4, 1) == 0


def test_it_is_told_and_nothing_begins(cli: Cli) -> None:
    """Also of a dataset that cannot be had; bad input is told as always, and other programs have no plan."""
    keys = ("dataset=hub", "dataset.path=nobody/nothing", "dataset.resolution=64", "dataset.channels=3")
    command = ("-m", "ddpm_train.cli.train", "--plan", *keys, "model=unet_small", "train.batch_size=64")
    said = cli.python(*command, HF_ENDPOINT="http://127.0.0.1:9")
    assert "error: RANK=1" in cli.python(*command, expect=2, RANK="1")
    assert "images     64x64x3\n" in said and "model      UNet2DModel, 13.21M parameters\n" in said
    assert re.search(r"\n  64 +7\.5 GB +4\.7 GB +4\.4 GB +3\.2 GB\n", said)
    (work,) = re.findall(r"work       ([\d.]+) GFLOP", said)
    known = json.loads((ROOT / "benchmarks/results/models.json").read_text())["figures"]["unet_small 64 px"]
    assert float(work) == pytest.approx(known["flops_of_1000_steps"] / 64e12, rel=0.01)
    assert re.search(r"\n  T4 +16 GB +64 +432 +3 min 28 s\n", said)
    assert not cli.output("nothing").exists() and not cli.output().exists()
    assert "train.batch_size=0" in cli.train("--plan", "train.batch_size=0", expect=2)
    assert "--plan: shows what one run would take" in cli.train("--plan", "--multirun", "seed=1,2", expect=2)
    assert "--plan: no such flag" in cli.sample("--plan", "pipeline=x", expect=2)
