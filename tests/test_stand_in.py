"""The programs on a stand-in for a GPU, which refuses and notes what a GPU refuses and waits for."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.utils.backend_registration
from helpers.cli import TINY, Cli
from helpers.runs import records, relative_difference, weights

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices that are written in Python",
)
COPIED = "copies to the device"
AUGMENTED = ("dataset.channels=3", "augmentation=edm", "augmentation.hue=20", "loss.learned_uncertainty=true")
FEW = ("dataset=imagefolder", "dataset.path=garments", "dataset.channels=1", "dataset.validation_fraction=0.25")
# Tiny versions of conf/model: resolution, channels of each level, and what else is particular.
LAYOUTS = {
    "unet_tiny": ("[8,4]", "[8,8,16]", ("noise.perturbation=0.1", "noise.nearest_of=3")),
    "unet2d": ("[16,8]", "[8,8,8,16]", ("train.attention=math",)),
    "unet_32": ("[16,8]", "[8,8,8,16]", ("loss=min_snr", "noise_scheduler=zero_snr")),  # it has dropout
    "unet_64": ("[16,8]", "[8,8,8,16]", ("ema=none", "optimizer=muon", *AUGMENTED)),
    "unet_128": ("[64,32]", "[8,8,8,8,8,16]", ("optimizer=adam",)),
    "unet_256": ("[64,32]", "[8,8,8,8,8,16]", ("noise_scheduler.prediction_type=sample",)),
}


def on_stand_in(cli: Cli, program: str, *arguments: str) -> str:
    return cli.python("-m", "helpers.stand_in", f"ddpm_train.cli.{program}", *arguments)


def noted(said: str, function: str) -> list[dict[str, int]]:
    """For each call of the function, how often the host waited for what, or copied what."""
    lines = (line.partition(": ") for line in said.splitlines())
    return [ast.literal_eval(found) for name, _, found in lines if name == function]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_and_samples_without_waiting(
    cli: Cli, write_images: Callable[[Path, int], Path], layout: str
) -> None:
    """Crops, flips, micro-batches and channels_last; images that lie on the device, as `auto` has them there."""
    resolution, channels, others = LAYOUTS[layout]
    write_images(cli.folder / "garments", 80)
    said = on_stand_in(
        cli,
        "train",
        *(f"model={layout}", f"model.block_out_channels={channels}", "model.norm_num_groups=4"),
        *("model.attention_head_dim=4", "model.layers_per_block=1", "train.mixed_precision=no"),
        *("train.compile=false", "tracker=none", *FEW),
        *(f"dataset.resolution={resolution}", "dataset.crop=random", "dataset.random_flip=true"),
        *("train.batch_size=4", "train.micro_batch_size=2", "train.channels_last=true", "train.max_steps=2"),
        *("evaluation.num_images=2", "evaluation.num_inference_steps=2", *others),
    )
    # The first step also brings all images to the device. In each: two micro-batches' positions and numbers.
    assert noted(said, "train_step") == [{COPIED: 7}, {COPIED: 4}]
    assert noted(said, "denoised") == [{COPIED: 1}]  # the timesteps


def test_a_run_on_a_device_is_the_run_of_the_cpu(cli: Cli) -> None:
    """But for rounding; with everything that is measured on the way, saved, and resumed."""
    run = ("train.attention=math", "evaluation=full", "evaluation.metrics=[]", "lr_scheduler=constant")
    run = (*run, "dataset.num_workers=0", "dataset.device_cache=false", "dataset.random_flip=true")
    cli.train(*run, "name=cpu")
    on_stand_in(cli, "train", *TINY, *run, "name=device", "train.max_steps=3")
    said = on_stand_in(cli, "train", *TINY, *run, "name=device")
    assert "resumes at step 3" in said and noted(said, "train_step") == [{COPIED: 2}] * 3
    for ours, theirs in zip(records(cli.output("device")), records(cli.output("cpu")), strict=True):
        assert ours.keys() >= {"loss", "grad_norm"}
        for key in ours.keys() & theirs.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    for file in ("unet", "ema", "optimizer"):
        one, other = (weights(cli.output(name), file) for name in ("device", "cpu"))
        assert relative_difference(one, other) < 1e-4


@pytest.mark.slow
def test_auto_measures_and_evaluates_on_a_device(cli: Cli, write_images: Callable[[Path, int], Path]) -> None:
    write_images(cli.folder / "garments", 80)
    auto = ("train.channels_last=auto", "train.attention=auto", "train.micro_batch_size=auto", "tracker=none")
    said = on_stand_in(cli, "train", *TINY, *FEW, *auto, "name=device")
    assert "fp32 + channels_last" in said and "16 = 16 x 1 process x 1 accumulated" in said
    metrics = "metrics=[held_out_loss,bits_per_dim,kid]"
    evaluated = ("pipeline=outputs/device", metrics, "num_images=40", "num_reference_images=40")
    evaluated = (*evaluated, "num_inference_steps=2", "bound_timesteps=3")
    cli.evaluate(*evaluated, "output=cpu")
    on_stand_in(cli, "evaluate", *evaluated, "output=device")
    ours, theirs = (json.loads((cli.folder / name / "scores.json").read_text())["scores"] for name in ("device", "cpu"))
    assert [score["name"] for score in ours] == [score["name"] for score in theirs] and len(ours) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-3, abs=1e-4), one["name"]


SAMPLE = """
import ddpm_train
from ddpm_train.config.samplers import SAMPLERS
from helpers.stand_in import noted, stand_in

with stand_in():
    here = ddpm_train.load("outputs/default", mixed_precision="no")  # on the device that there is
    on_cpu = ddpm_train.load("outputs/default", mixed_precision="no", device="cpu")
    # Brownian motion needs a generator on the device, and a fit waits for it.
    for sampler in SAMPLERS.keys() - {"dpm_solver_sde", "fitted"}:
        keys = {"output": "np", "sampler": sampler, "num_inference_steps": 5}
        expected = on_cpu.sample(**keys).astype(int)
        noted.clear()
        made = here.sample(**keys)
        assert abs(made - expected).max() <= 1, sampler
        assert noted.keys() == {"copies to the device", "copies from the device"}, (sampler, noted)
        assert noted["copies from the device"] == 1, (sampler, noted)  # the images
        print("sampled with", sampler)
"""


@pytest.mark.slow
def test_no_sampler_waits_for_the_device(cli: Cli) -> None:
    cli.train("tracker=none", "evaluation=none", "train.max_steps=2", "noise_scheduler=linear")
    assert cli.python("-c", SAMPLE).count("sampled with") == 14


def test_the_stand_in_has_teeth(cli: Cli) -> None:
    code = """
import torch
from helpers.stand_in import noted, stand_in

def refuses(kind, function):
    try:
        function()
    except kind as error:
        return str(error)
    raise AssertionError("not refused")

with stand_in() as device:
    here, there = torch.arange(4, device=device), torch.arange(4)
    assert here.device.type == "stand_in" and not noted
    assert "found stand_in and cpu" in refuses(RuntimeError, lambda: here + there)
    assert "found stand_in and cpu" in refuses(RuntimeError, lambda: torch.stack((here[0], there[0])))
    assert "float64" in refuses(TypeError, here.double) and (here * there[1]).sum().device == here.device
    assert not noted
    for waits in (lambda: here[0].item(), lambda: bool(here[0] < 1), lambda: here[here > 1], lambda: here.nonzero()):
        waits()
        assert sum(noted.values()) == 1 and "waits for" in next(iter(noted)), noted
        noted.clear()
    assert here.cpu().tolist() == [0, 1, 2, 3] and noted == {"copies from the device": 1}
    there.to(device)
    assert noted["copies to the device"] == 1
    for copies in (lambda: there.to(device, non_blocking=True), lambda: there.copy_(here, non_blocking=True)):
        assert "does not wait" in refuses(RuntimeError, copies)
"""
    cli.python("-c", code)
