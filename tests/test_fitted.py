"""Steps that are fitted to a model: nearer to its many-step result, kept, and of use without this project."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from helpers.cli import Cli
from PIL import Image

import ddpm_train
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.diffusion.pixels import to_uint8
from ddpm_train.sampling.fitted_sampler import FittedSteps
from ddpm_train.sampling.fitting import read_steps, write_steps
from ddpm_train.sampling.loop import image_generators
from ddpm_train.training.preflight import PROGRAM as TRAIN

FAST = ("sampler=fitted", "num_inference_steps=6", "mixed_precision=no")


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted((folder / "images").glob("*.png"))])


def test_nearer_to_many_steps_than_any_other(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an early checkpoint guides. The noise is not that of the fit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipeline = ddpm_train.load(trained, mixed_precision="no", device="cpu")
    samplers = ["fitted", "dpm_solver", "unipc", "ddim"]
    guidance = {"guidance": {"pipeline": str(trained / "checkpoints/step_00000003")}}
    for steps, keys in ((5, {}), (8, guidance)):
        _, rows = pipeline.compare(samplers, [steps], 8, **keys)
        fitted, *stock = [row.distance for row in rows]
        assert fitted is not None and fitted < min(filter(None, stock)) / 2, (steps, fitted, stock)
    assert len(list((tmp_path / "ddpm-train/fitted").iterdir())) == 2


def test_fitted_once_and_of_use_without_this_project(cli: Cli, trained: Path) -> None:
    fitting = "fitting 6 steps to this model: the network is called 106 times with 32 images"
    cli.environment["XDG_CACHE_HOME"] = str(cli.folder / "kept")
    assert fitting in cli.sample(f"pipeline={trained}", *FAST, "num_images=3", "output=made")
    first = pixels(cli.folder / "made")
    said = cli.sample(f"pipeline={trained}", *FAST, "num_images=4", "output=made")
    assert fitting not in said and "found      3 of 4 images" in said
    (kept,) = (cli.folder / "kept/ddpm-train/fitted").iterdir()
    kept.write_text(kept.read_text()[:-9])  # half of a file: it is fitted anew, to the same
    assert fitting in cli.sample(f"pipeline={trained}", *FAST, "num_images=3", "output=again")
    made = pixels(cli.folder / "made")
    assert np.array_equal(made[:3], first) and np.array_equal(pixels(cli.folder / "again"), first)

    # The lines of the documentation.
    steps = json.loads((cli.folder / "made/steps.json").read_text())
    unet = DDPMPipeline.from_pretrained(trained / "pipeline").unet
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=each) for each in image_generators(0, range(4))])
    known = [x]
    with torch.no_grad():
        for t, row in zip(steps["timesteps"], steps["coefficients"], strict=True):
            known.append(unet(x, t).sample)
            x = sum(weight * each for weight, each in zip(row, known, strict=True))
    assert np.abs(to_uint8(x)[:, 0].numpy().astype(int) - made).max() <= 1


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]])
def test_steps_that_are_not_whole(tmp_path: Path, rows: list[list[float]]) -> None:
    path = tmp_path / "steps.json"
    path.write_text(json.dumps({"timesteps": [9, 4], "coefficients": rows}))
    assert read_steps(path) is None
    whole = FittedSteps((9, 4), ((1.0, 2.0), (1.0, 2.0, 3.0)))
    write_steps(path, whole)
    assert read_steps(path) == whole


def test_where_they_cannot_be(cli: Cli, trained: Path, garments: list[Image.Image]) -> None:
    garments[0].save(cli.folder / "a.png")
    said = cli.sample(f"pipeline={trained}", *FAST, "from_image=a.png", expect=2)
    assert "sampler=fitted: its steps begin with noise, and from_image with a picture; leave one of them out" in said
    said = cli.sample(f"pipeline={trained}", "sampler=fitted", "num_inference_steps=60", expect=2)
    assert "in 60 steps: it fits at most 50 steps; use one of" in said
    with pytest.raises(Mistakes, match="sampler=fitted: is fitted to a finished model; use another"):
        compose_configs(TRAIN, ["sampler=fitted"])
