"""What is done to training images, and what trains beside a network: augmentation and the learned uncertainty."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.cli import TINY, Cli
from helpers.runs import records, relative_difference, same_checkpoint, weights
from torch import Tensor

import ddpm_train
from ddpm_train.config.augmentation import EDM
from ddpm_train.config.losses import MSE
from ddpm_train.config.parts import CONF
from ddpm_train.config.timesteps import LogNormal
from ddpm_train.diffusion.objective import Objective
from ddpm_train.diffusion.timesteps import Timesteps, timestep_edges
from ddpm_train.models.denoiser import Denoiser, Uncertainty
from ddpm_train.seeding import Purpose, bits

GEOMETRY = {"scale": 0.2, "rotation": 180, "stretch": 0.2, "shift": 0.125}
COLORS = {"brightness": 0.2, "contrast": 0.5, "hue": 180, "saturation": 1.0}
FLIPS = {"horizontal_flip": True, "vertical_flip": True}


def edm(probability: float = 1.0, **parts: Any) -> EDM:
    """Of the parts that are named only."""
    off = {**dict.fromkeys([*GEOMETRY, *COLORS], 0.0), **dict.fromkeys(FLIPS, False)}
    return EDM("edm", probability, **{**off, **parts})


def drawn(count: int) -> Tensor:
    return bits(3, Purpose.AUGMENTATION, torch.arange(count), EDM.num_draws)


def picture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Something smooth without a symmetry, at coordinates in pixels from the middle."""
    return np.sin(0.1 * x + 0.05 * y) + 0.5 * np.cos(0.13 * y - 0.05 * x) + 0.02 * x


def test_geometry_is_what_the_label_says() -> None:
    """From matrices of its own: where each pixel comes from, and what the picture is there."""
    height, width = 24, 32
    y, x = np.mgrid[:height, :width] + 0.5 - np.array([height, width])[:, None, None] / 2
    whole = torch.from_numpy(picture(x, y)).float().expand(64, 1, height, width)
    moved, labels = edm(**GEOMETRY)(whole, drawn(64))
    compared = 0
    for image, label in zip(moved[:, 0].numpy(), labels.double().numpy(), strict=True):
        scale, cos, sin, axes, diagonals, right, down = label[2:9]
        stretch = torch.linalg.matrix_exp(
            torch.tensor(0.2 * math.log(2) * np.array([[axes, diagonals], [diagonals, -axes]]))
        )
        forward = stretch.numpy() @ np.array([[cos + 1, -sin], [sin, cos + 1]]) * 2 ** (0.2 * scale)
        assert np.linalg.det(forward) == pytest.approx(4 ** (0.2 * scale), rel=1e-5)
        shift = 0.125 * np.array([right * width, down * height])
        source = np.linalg.inv(forward) @ (np.stack([x.ravel(), y.ravel()]) - shift[:, None])
        there = (np.abs(source[0]) < width / 2 - 2) & (np.abs(source[1]) < height / 2 - 2)
        assert np.abs(image.ravel() - picture(*source))[there].max() < 0.01
        compared += there.sum()
    assert compared > 0.5 * 64 * height * width
    assert 0.15 < (0.2 * labels[:, 2]).std() < 0.25 and 0.1 < (0.125 * labels[:, 7:9]).std() < 0.15
    assert (labels[:, 3] + 1).square().add(labels[:, 4].square()).allclose(torch.ones(64))


def test_colors_are_the_authors_matrices() -> None:
    """EDM's `augment.py`: matrices of homogeneous colours, multiplied from the left."""
    images = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    colored, labels = edm(**COLORS)(images, drawn(64))
    v = np.array([1, 1, 1, 0]) / math.sqrt(3)
    cross = np.zeros((4, 4))
    cross[:3, :3] = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    only_colors = np.diag([1.0, 1, 1, 0])
    for before, after, label in zip(images.numpy(), colored.numpy(), labels.double().numpy(), strict=True):
        brightness, contrast, cos, sin, saturation = label[9:]
        matrix = np.eye(4)
        matrix[:3, 3] = 0.2 * brightness
        matrix = np.diag([*[2 ** (0.5 * contrast)] * 3, 1]) @ matrix
        axis = np.outer(v, v)
        matrix = (np.eye(4) + cos * (only_colors - axis) + sin * cross) @ matrix  # Rodrigues
        matrix = (axis + (np.eye(4) - axis) @ np.diag([*[2**saturation] * 3, 1])) @ matrix
        wanted = np.einsum("ij,jhw->ihw", matrix[:3, :3], before) + matrix[:3, 3:, None]
        assert np.abs(after - wanted).max() < 1e-4


def test_each_part_happens_as_often_as_asked_and_the_rest_keeps_every_bit() -> None:
    images = torch.rand(4000, 3, 6, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made, labels = edm(0.1, **GEOMETRY, **COLORS, vertical_flip=True)(images, drawn(4000))
    changed = (made != images).flatten(1).any(1)
    assert torch.equal(changed, labels.any(1)) and not labels[:, 0].any()
    wanted = torch.tensor([0.0, 0.05, *[0.1] * 12])
    assert ((labels != 0).float().mean(0) - wanted).abs().max() < 0.025  # five standard deviations
    assert abs(changed.float().mean() - (1 - 0.95 * 0.9**8)) < 0.04
    flipped, labels = edm(0.0, **GEOMETRY, **COLORS, **FLIPS)(images, drawn(4000))
    assert torch.equal(flipped, torch.where(labels[:, :1, None, None] > 0, images.flip(-1), images))
    assert abs(labels[:, 0].mean() - 0.5) < 0.04 and not labels[:, 1:].any()


def test_an_image_is_augmented_alike_in_any_batch() -> None:
    images, integers = torch.rand(67, 3, 16, 16), drawn(67)
    augment = edm(0.5, **GEOMETRY, **COLORS, **FLIPS)
    whole = augment(images, integers)
    for size in (1, 7, 32):
        parts = [augment(*part) for part in zip(images.split(size), integers.split(size), strict=True)]
        assert all(torch.equal(torch.cat(part), one) for part, one in zip(zip(*parts, strict=True), whole, strict=True))


def test_a_label_of_zeros_is_no_label_to_the_bit() -> None:
    keys: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
    keys |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(in_channels=1, out_channels=1, **keys)
    names, x_t, timesteps = list(unet.state_dict()), torch.randn(5, 1, 8, 8), torch.arange(0, 1000, 200)
    alone = unet(x_t, timesteps).sample
    denoiser = Denoiser(unet, EDM.label_size, uncertainty=True)
    labels = torch.randn(5, EDM.label_size)
    assert torch.equal(denoiser(x_t, timesteps, labels).sample, alone)  # as long as nothing is learned
    torch.nn.init.normal_(denoiser.helpers.label)
    assert torch.equal(denoiser(x_t, timesteps).sample, alone) and torch.equal(unet(x_t, timesteps).sample, alone)
    assert torch.equal(denoiser(x_t, timesteps, 0 * labels).sample, alone)
    assert (denoiser(x_t, timesteps, labels).sample - alone).abs().flatten(1).max(1).values.min() > 1e-3
    assert list(unet.state_dict()) == names


def test_the_uncertainty_learns_how_large_the_loss_is() -> None:
    """Of losses that are given, exp(u) becomes the mean at each timestep, however often that is drawn."""
    schedule, distribution = DDPMScheduler(beta_schedule="squaredcos_cap_v2"), LogNormal("lognormal", False, True, 0, 1)
    edges = timestep_edges(distribution, schedule, lambda: torch.ones(1))
    objective = Objective(schedule, MSE("mse"), 0, Timesteps.of(distribution, edges, schedule, 0))
    uncertainty, timesteps = Uncertainty(), torch.arange(1000)
    assert objective.timesteps.importance is not None
    mean, share = 1 / (1 + timesteps / 50), 0.001 / objective.timesteps.importance
    optimizer = torch.optim.Adam(uncertainty.parameters(), 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        losses = mean * objective.timesteps.importance
        (objective.balanced(losses, uncertainty(timesteps), timesteps) * share).sum().backward()
        optimizer.step()
    assert (uncertainty(timesteps).exp() / mean - 1).abs().max() < 0.1
    assert objective.balanced(mean, None, timesteps) is mean


def test_a_run_with_helpers_resumes_exactly_and_leaves_a_plain_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keys = {key: yaml.safe_load(value) for key, value in (override.split("=", 1) for override in TINY)}
    keys |= {"lr_scheduler": "constant", "tracker": "none", "evaluation": "none", "train.mixed_precision": "no"}
    keys |= {"train.micro_batch_size": 8}
    helped = {"augmentation": "edm", "augmentation.probability": 0.5, "loss.learned_uncertainty": True}

    def run(name: str, max_steps: int, **more: Any) -> Path:
        return ddpm_train.train(tmp_path / name, {**keys, "train.max_steps": max_steps, **more}).folder

    whole = run("whole", 4, **helped)
    run("parts", 2, **helped)
    same_checkpoint(run("parts", 4, **helped), whole, 4, "helpers")
    helpers = weights(whole, "helpers", 4)
    assert helpers["label"].shape == (8, EDM.label_size) and helpers["uncertainty.weight"].shape == (128,)
    assert helpers["label"][:, :9].abs().min() > 0 and not helpers["label"][:, 9:].any()  # its pictures are grey
    assert helpers["uncertainty.weight"].any()
    left, average = DDPMPipeline.from_pretrained(whole / "pipeline").unet.state_dict(), weights(whole, "ema", 4)
    assert left.keys() == average.keys() and all(torch.equal(left[key], average[key]) for key in left)
    # What begins to help later begins at nothing, and the loss that is recorded is the network's alone.
    plain = run("plain", 2, **{"checkpoint.every_steps": 1})
    assert not (plain / "checkpoints/step_00000002/helpers.safetensors").exists()
    more = {"resume": str(plain / "checkpoints/step_00000001"), "loss.learned_uncertainty": True}
    with pytest.raises(ddpm_train.Mistakes, match=r"loss.learned_uncertainty +None +True"):
        run("balanced", 2, **more)
    balanced = run("balanced", 2, **more, allow_change=["loss"])
    first, second = records(plain)
    assert [each["loss"] for each in records(balanced)][-1] == second["loss"] != first["loss"]
    assert weights(balanced, "helpers", 2)["uncertainty.weight"].any()
    assert relative_difference(weights(balanced, step=2), weights(plain, step=2)) > 0
    assert records(whole)[0]["loss"] != first["loss"]


@pytest.mark.slow
def test_two_processes_train_the_same_helpers(cli: Cli) -> None:
    keys = (
        *("augmentation=edm", "augmentation.probability=0.5", "loss.learned_uncertainty=true", "evaluation=none"),
        *("lr_scheduler=constant", "train.max_steps=2", "tracker=none"),
    )
    cli.train(*keys, "name=one")
    cli.together(*keys, "name=two", num_processes=2)
    for name in ("unet", "helpers"):
        one, two = (weights(cli.output(folder), name, 2) for folder in ("one", "two"))
        assert relative_difference(one, two) < 1e-5


def test_the_choice_is_the_authors_without_colors() -> None:
    keys = yaml.safe_load((CONF / "augmentation/edm.yaml").read_text())
    assert EDM(**keys) == edm(0.12, **GEOMETRY, **FLIPS)
