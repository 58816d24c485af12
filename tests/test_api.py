"""Sampling from Python gives what the command line gives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.cli import ROOT, Cli
from PIL import Image

import ddpm_train
from ddpm_train.config.mistakes import Mistakes


def test_the_same_as_the_command_line(cli: Cli, trained: Path) -> None:
    keys = {"num_inference_steps": 5, "seed": 3}
    options = [f"{key}={value}" for key, value in keys.items()]
    cli.sample(f"pipeline={trained}", "num_images=3", "mixed_precision=no", "sampler=ddim", "sampler.eta=0.5", *options)
    files = sorted((cli.folder / "samples").rglob("images/*.png"))
    pipeline = ddpm_train.load(trained, mixed_precision="no")
    sampler = {"name": "ddim", "eta": 0.5}
    array = ddpm_train.sample(pipeline, 3, output="np", sampler=sampler, **keys)
    assert array.shape == (3, 8, 8, 1) and array.dtype == np.uint8
    assert np.array_equal(array[..., 0], np.stack([np.asarray(Image.open(path)) for path in files]))
    images = pipeline.sample(3, sampler=sampler, batch_size=1, **keys)
    assert [image.mode for image in images] == ["L"] * 3
    # Another batch size may round differently in the last bit of a float.
    assert np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - array[..., 0]).max() <= 1


def test_looks_from_python(trained: Path, garments: list[Image.Image]) -> None:
    pipeline = ddpm_train.load(str(trained), mixed_precision="no")
    assert len(pipeline.trajectory(2, num_inference_steps=5, trajectory_every_steps=1)) == 6
    assert len(pipeline.interpolate(2, num_inference_steps=5, interpolate_frames=3)) == 3
    picture, results = pipeline.compare(["ddim", "unipc"], [3, 6], num_images=2)
    assert isinstance(picture, Image.Image) and [result.model_calls for result in results] == [3, 6, 3, 6]
    (near,) = pipeline.sample(1, from_image=garments[0], strength=0.1, num_inference_steps=20)
    assert np.abs(np.asarray(near).astype(int) - np.asarray(garments[0].resize((8, 8)))).mean() < 20


def test_mistakes_from_python(trained: Path) -> None:
    pipeline = ddpm_train.load(trained)
    with pytest.raises(Mistakes) as caught:
        pipeline.sample(2, sampler="ddmi", seeed=3, num_inference_steps=0)
    assert len(caught.value.lines) == 3 and "did you mean 'ddpm'?" in str(caught.value)
    with pytest.raises(Mistakes, match="no such folder"):
        ddpm_train.sample(trained.parent / "nothing")


def test_importing_the_package_is_cheap() -> None:
    program = "import sys, ddpm_train; ddpm_train.__version__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    with pytest.raises(AttributeError):
        _ = ddpm_train.nothing
