"""Sampling from Python gives what the command line gives."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import ROOT, Cli
from PIL import Image

import ddpm_train
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.overrides import as_overrides


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


def lines_of(call: Callable[..., object], *arguments: Any, **keys: Any) -> list[str]:
    with pytest.raises(Mistakes) as caught:
        call(*arguments, **keys)
    return sorted(caught.value.lines)


def test_the_lines_of_the_command_line(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what `load` takes, and of what a loaded model is asked for."""
    monkeypatch.chdir(cli.folder)
    (cli.folder / "outputs/cats").mkdir(parents=True)
    loading = {"weights": "emma", "mixed_precision": "fp8", "compile": "perhaps"}
    said = cli.sample("pipeline=outputs/cat", *as_overrides(loading), expect=2)
    assert lines_of(ddpm_train.load, "outputs/cat", **loading) == sorted(told(said))
    assert lines_of(ddpm_train.sample, "outputs/cat", 3, **loading) == sorted(told(said))
    # On the command line this is a text.
    assert lines_of(ddpm_train.load, "outputs/cat", revision=[3])[-1] == "revision=[3]: must be a text"
    asked: dict[str, Any] = {"seed": 2**32, "num_images": 0, "seeed": 3, "strength": 0.5, "resolution": [8]}
    asked |= {"inpaint": "nowhere.png", "batch_size": "many", "compare": {"samplers": ["ddim"]}}
    asked |= {"sampler": {"name": "ddim", "etaa": 0.5}}
    said = cli.sample(f"pipeline={trained}", *as_overrides(asked), expect=2)
    pipeline = ddpm_train.load(trained)
    assert lines_of(lambda: pipeline._open(asked.pop("num_images"), asked)) == sorted(told(said))
    assert len(told(said)) == 10
    said = cli.sample(f"pipeline={trained}", "sampler=ddmi", expect=2)
    assert lines_of(pipeline.sample, sampler="ddmi") == told(said)
    secret = lines_of(ddpm_train.load, "owner/name", revision="hf_abcdefghijklmnop")
    assert "hf_abc" not in secret[0] and "HF_TOKEN" in secret[0]


def told(said: str) -> list[str]:
    return [line.removeprefix("error: ") for line in said.splitlines()]


def test_keys_that_do_nothing_from_python(trained: Path, garments: list[Image.Image]) -> None:
    pipeline = ddpm_train.load(trained, device="cpu")
    sample = pipeline.sample
    assert lines_of(sample, weights="unet") == ["weights=unet: the model is loaded already; give it to ddpm_train.load"]
    assert lines_of(sample, format="npz", sampler="ddim", num_images=2) == [
        "format=npz: nothing is written to files here; leave it out"
    ]
    assert lines_of(sample, output="jpg") == ["output=jpg: not one of pil, np"]
    assert lines_of(sample, trajectory=True) == ["trajectory=true: gives no images; call trajectory(…)"]
    assert lines_of(sample, inpaint=garments[0])[0].startswith("inpaint=<image>: the mask of which picture?")
    (line,) = lines_of(ddpm_train.load, trained, device="gpu9")
    assert line.startswith("device=gpu9: ") and line.endswith("; give another, such as cpu")
    # What is loaded for one call takes the keys of both.
    keys: dict[str, Any] = {"mixed_precision": "no", "num_inference_steps": 2, "output": "np"}
    raw, average = (ddpm_train.sample(trained, weights=weights, **keys) for weights in ("unet", "ema"))
    assert not np.array_equal(raw, average)


def test_importing_the_package_is_cheap() -> None:
    program = "import sys, ddpm_train; ddpm_train.__version__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    with pytest.raises(AttributeError):
        _ = ddpm_train.nothing
