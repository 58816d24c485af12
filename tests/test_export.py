"""`ddpm-export`: the file, run by ONNX Runtime and by the sampler beside it."""

import re
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.cli import Cli
from PIL import Image

from ddpm_train.cli.export import preflight
from ddpm_train.config.export import ExportConfig
from ddpm_train.config.parts import Sampler
from ddpm_train.diffusion.pixels import to_uint8
from ddpm_train.models.load import load_model
from ddpm_train.sampling.engine import Engine
from ddpm_train.sampling.export import TOLERANCE, _difference, _Prediction
from ddpm_train.sampling.recipe import Recipe


@pytest.mark.slow
def test_the_file_and_its_sampler(cli: Cli, trained: Path) -> None:
    said = cli.python("-m", "ddpm_train.cli.export", f"pipeline={trained}")
    folder = cli.folder / "exports/default/step_00000006"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "sample.py"}
    differs = re.search(r"differs from the pipeline by at most (\S+)", said)
    assert differs and float(differs[1]) <= 1e-4
    # Another batch than those that the program has tried, through the whole of DDIM.
    model, noise = load_model(str(trained)), torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(0, Sampler("ddim", {"timestep_spacing": "trailing"}), 8, (8, 8))
    expected = to_uint8(Engine(model.unet, model.noise_scheduler).denoised(recipe, noise, []))
    sampler = runpy.run_path(str(folder / "sample.py"))
    worse = _Prediction(load_model(str(trained), weights="unet").unet)
    # A network that computes something else does not pass.
    assert _difference(worse, folder / "model.onnx", (1, 8, 8), 3) > TOLERANCE
    import onnxruntime  # which is told first to report nothing to its makers

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    made = sampler["sample"](session, noise.numpy(), 8)
    assert np.abs(made.astype(int) - expected.numpy()).max() <= 1
    # The script as a user starts it, elsewhere: it imports neither torch nor this project.
    blocked = cli.folder / "blocked"
    for name in ("torch", "diffusers", "ddpm_train"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError")
    script = [sys.executable, str(folder / "sample.py"), "3", "4"]
    cli.run(script, PYTHONPATH=str(blocked))
    assert "steps must be above 0" in cli.run([*script[:3], "0"], expect=2, PYTHONPATH=str(blocked))
    assert np.array_equal(
        sampler["sample"](session, noise.numpy()[:1], 5000), sampler["sample"](session, noise.numpy()[:1], 1000)
    )
    (blocked / "onnxruntime.py").write_text("import os; raise ImportError(os.environ['ORT_DISABLE_TELEMETRY'])")
    assert "ImportError: 1" in cli.run(script, expect=1, PYTHONPATH=str(blocked))
    images = [np.asarray(Image.open(cli.folder / f"00000{index}.png")) for index in range(3)]
    noise_of_its_own = np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32)
    assert np.array_equal(images, sampler["sample"](session, noise_of_its_own, 4)[:, 0])
    colours = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(4, 2, 3)
    (cli.folder / "rgba.png").write_bytes(sampler["png"](colours))
    assert np.array_equal(np.asarray(Image.open(cli.folder / "rgba.png")), colours.transpose(1, 2, 0))


def test_what_is_missing_is_named_before_anything_slow(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExportConfig(str(trained), None, "auto", "onnx", None, None)
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "onnxscript", ModuleType("onnxscript"))
    sys.modules["onnxscript"].__spec__ = ModuleSpec("onnxscript", None)
    assert list(preflight(config)) == [
        "format=onnx: onnx, onnxruntime are not installed; pip install 'ddpm-train[export]'"
    ]
