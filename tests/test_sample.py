"""`ddpm-sample` through its command line, on a run trained here and on folders that plain diffusers wrote."""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DConditionModel, UNet2DModel
from helpers.cli import LEAN, Cli
from helpers.hub.server import LoopbackHub
from PIL import Image

from ddpm_train.config.samplers import FITTED, SAMPLERS
from ddpm_train.sampling.loop import image_seed

FAST = ("num_inference_steps=5", "mixed_precision=no")
# For 64 images of 64 x 128 the UNet needs more than 200 MB, for 8 less.
IN_LITTLE_MEMORY = """
import torch
from ddpm_train.cli import sample
from ddpm_train.config.samplers import SAMPLERS
from helpers.watched_train import give_back_at_once, limit
give_back_at_once()
SAMPLERS["dpm_solver"].load()  # the limit is for computing, not for imports
torch.nn.Conv2d(1, 8, 3)(torch.zeros(1, 1, 64, 128))
limit(50)
sample.main()
"""
PROGRAM = ("-m", "ddpm_train.cli.sample")


def pixels(folder: Path, count: int) -> np.ndarray:
    """The first images of an output, [N, H, W] or [N, H, W, C]."""
    return np.stack([np.asarray(Image.open(folder / f"images/{index:06}.png")) for index in range(count)])


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(image_seed(seed, index)) for index in range(count)]


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as diffusers 0.1 left them on the Hub: parts side by side, old keys, pickled weights, old names."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(1)
    unet = UNet2DModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )
    unet.save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in unet.state_dict().items():
        for new, old in old_names.items():
            name = name.replace(f".{new}.", f".{old}.")
        weights[name] = tensor
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    newer = ("add_attention", "attn_norm_num_groups", "class_embed_type", "num_class_embeds", "dropout")
    config = {key: value for key, value in config.items() if key not in (*newer, "num_train_timesteps")}
    (folder / "config.json").write_text(json.dumps({**config, "_diffusers_version": "0.1.1"}))
    scheduler = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "num_train_timesteps": 1000}
    scheduler |= {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
    scheduler |= {"variance_type": "fixed_large", "clip_sample": True, "tensor_format": "pt", "predict_epsilon": True}
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet2DModel"]}))
    return folder


def their_images(folder: Path, count: int, steps: int) -> np.ndarray:
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(count, generators(count), num_inference_steps=steps).images
    return np.stack([np.asarray(image) for image in images])


def test_a_run_its_checkpoints_and_its_pipeline(cli: Cli, trained: Path) -> None:
    again = ("num_images=4", "num_inference_steps=2", "mixed_precision=no")
    said = cli.sample(f"pipeline={trained}", *again, "output=run")
    assert f"{trained}, step 6, EMA weights" in said and "made 4 images" in said
    # The run's own grid, of the same seed, sampler and steps.
    grids = [cli.folder / "run/grid.png", trained / "samples/step_00000006.png"]
    assert np.array_equal(*(np.asarray(Image.open(path)) for path in grids))
    checkpoints = trained / "checkpoints"
    # The same model wherever it comes from: the same folder takes its images.
    for same in (checkpoints / "step_00000006", trained / "pipeline", trained / "pipeline/unet"):
        said = cli.sample(f"pipeline={same}", *again, "output=run")
        assert "found      4 of 4 images" in said and "made 0 images" in said
    said = cli.sample(f"pipeline={checkpoints / 'step_00000003'}", *again, "output=early")
    assert "step 3, EMA weights" in said
    said = cli.sample(f"pipeline={trained}", "weights=unet", *again, "output=raw")
    assert "step 6, raw weights" in said
    made = [pixels(cli.folder / name, 4) for name in ("run", "early", "raw")]
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_a_folder_of_old_diffusers(cli: Cli, foreign: Path) -> None:
    said = cli.sample(f"pipeline={foreign}", "sampler=ddpm", "num_images=3", *FAST, "output=old", "batch_size=2")
    assert "8x8x3" in said
    assert np.array_equal(pixels(cli.folder / "old", 3), their_images(foreign, 3, 5))
    # A model that predicts x_0, as diffusers 0.1 to 0.3 said it, and as they say it now.
    for name, key in (("then", {"predict_epsilon": False}), ("now", {"prediction_type": "sample"})):
        folder = shutil.copytree(foreign, cli.folder / name)
        config = json.loads((folder / "scheduler_config.json").read_text())
        (folder / "scheduler_config.json").write_text(json.dumps({**config, **key}))
        cli.sample(f"pipeline={folder}", "num_images=2", "sampler=ddim", *FAST, f"output={name}_images")
    then, now = (pixels(cli.folder / f"{name}_images", 2) for name in ("then", "now"))
    assert np.array_equal(then, now)
    # A DDIMPipeline of today, and its UNet alone, for which DDPM's linear schedule has to be assumed.
    unet = UNet2DModel.from_pretrained(foreign)
    from diffusers import DDIMPipeline

    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(cli.folder / "ddim")
    cli.sample("pipeline=ddim", "num_images=2", "sampler=ddim", *FAST, "output=of_ddim")
    unet.save_pretrained(cli.folder / "alone")
    said = cli.sample("pipeline=alone", "num_images=2", "sampler=ddim", *FAST, "output=of_unet")
    assert "no scheduler beside it (assumed: beta_schedule=linear, 1,000 steps, prediction_type=epsilon)" in said
    assert np.array_equal(pixels(cli.folder / "of_ddim", 2), pixels(cli.folder / "of_unet", 2))


@pytest.mark.slow
def test_every_sampler_by_name(cli: Cli, trained: Path) -> None:
    """A sweep over all of them, at enough steps for each on the run's cosine schedule; and one with arguments."""
    names = [name for name in SAMPLERS if SAMPLERS[name].package is None and name != FITTED]  # which takes a fit
    sweep = ("--multirun", f"sampler={','.join(names)}", "num_images=2", "num_inference_steps=50")
    cli.sample(*sweep, f"pipeline={trained}", "mixed_precision=no")
    folders = {name: [] if name == "dpm_solver" else [f"sampler={name}"] for name in names}
    fixed = ("num_inference_steps=50", "mixed_precision=no")
    of_the_run = cli.folder / f"samples/{trained.name}/step_00000006"
    made = {name: pixels(of_the_run / ",".join([*folder, *fixed]), 2) for name, folder in folders.items()}
    different = {images.tobytes() for images in made.values()}
    assert len(different) == len(names)
    arguments = ("sampler.eta=0.5", "sampler.timestep_spacing=trailing")
    said = cli.sample(f"pipeline={trained}", "sampler=ddim", *arguments, "num_images=2", *FAST, "output=eta")
    assert "ddim eta=0.5 timestep_spacing=trailing, 5 steps" in said
    pipeline = DDPMPipeline.from_pretrained(trained / "pipeline")
    from diffusers import DDIMPipeline

    theirs = DDIMPipeline(pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config))
    theirs.set_progress_bar_config(disable=True)
    images = theirs(2, generators(2), eta=0.5, num_inference_steps=5).images
    assert np.array_equal(pixels(cli.folder / "eta", 2), np.stack([np.asarray(image) for image in images]))


def test_formats_and_further_images(cli: Cli, trained: Path) -> None:
    from datasets import load_dataset

    command = (f"pipeline={trained}", *FAST, "output=out", "sampler=ddpm")
    cli.sample(*command, "num_images=3", "batch_size=2")
    first = pixels(cli.folder / "out", 3)
    said = cli.sample(*command, "num_images=5", "format=npz")
    assert "found      3 of 5 images" in said and "made 2 images" in said
    array = np.load(cli.folder / "out/images.npz")["arr_0"]
    assert array.shape == (5, 8, 8, 1) and array.dtype == np.uint8 and np.array_equal(array[:3, ..., 0], first)
    cli.sample(*command, "num_images=5", "format=parquet")
    files = str(cli.folder / "out/images.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(cli.folder / "hf"))
    assert rows["index"] == [0, 1, 2, 3, 4] or list(rows["index"]) == [0, 1, 2, 3, 4]
    assert np.array_equal(np.stack([np.asarray(row["image"]) for row in rows]), array[..., 0])
    # An image that a full disk or a lost machine left torn is made again, the others are not touched.
    torn, kept = (cli.folder / f"out/images/{index:06}.png" for index in (1, 2))
    torn.write_bytes(torn.read_bytes()[:40])
    written = kept.stat().st_mtime_ns
    assert "found      4 of 5 images" in cli.sample(*command, "num_images=5")
    assert np.array_equal(pixels(cli.folder / "out", 3), first) and kept.stat().st_mtime_ns == written


def test_output_of_another_making_is_refused(cli: Cli, trained: Path) -> None:
    command = (f"pipeline={trained}", *FAST, "output=out", "num_images=2")
    cli.sample(*command)
    before = {path: path.read_bytes() for path in (cli.folder / "out").rglob("*.png")}
    older = trained / "checkpoints/step_00000003"
    others = {
        "seed=3": "(seed=0, not 3)",
        "sampler=ddim": "(sampler=dpm_solver, not ddim)",
        "sampler.solver_order=1": "(sampler=dpm_solver, not dpm_solver solver_order=1)",
        "resolution=16": "(resolution=[8,8], not [16,16])",
        f"pipeline={older}": f"(made by {trained}, step 6, EMA weights, not {older}, step 3, EMA weights)",
        "mixed_precision=bf16": "(precision=fp32, not bf16)",
    }
    for override, told in others.items():
        said = cli.sample(*command, override, expect=2)
        assert said.startswith("error: output=out: holds images of another kind ") and told in said
        assert said.endswith("; give another output, or remove that folder\n") and said.count("\n") == 1
    assert before == {path: path.read_bytes() for path in (cli.folder / "out").rglob("*.png")}
    (cli.folder / "mine").mkdir()
    (cli.folder / "mine/notes.txt").write_text("mine")
    said = cli.sample(f"pipeline={trained}", "output=mine", expect=2)
    assert said == "error: output=mine: holds files that are not ddpm-sample's; give another output\n"


def test_each_kind_of_images_has_a_folder_of_its_own(cli: Cli, trained: Path) -> None:
    """By the run, the step, and what is not as it is by default; the same command goes on in it."""
    shutil.copytree(trained, cli.output("cats"))
    few = ("num_images=2", "num_inference_steps=2,3", "--multirun")
    of_cats, older = "pipeline=outputs/cats", "outputs/cats/checkpoints/step_00000003"
    cli.sample(*few, f"{of_cats},{older}", "trajectory=true,false")
    cli.sample(*few, f"{of_cats}/pipeline", "sampler=ddim", "sampler.eta=0,0.5")
    said = cli.sample(*few, f"{of_cats},{older}", "num_images=3")
    assert said.count("found      2 of 3 images") == 4
    samples, steps = cli.folder / "samples/cats", [f"num_inference_steps={count}" for count in (2, 3)]
    ddim = {f"sampler=ddim,sampler.eta={eta},{count}" for eta in ("0", "0.5") for count in steps}
    both = {*steps, *(f"trajectory,{count}" for count in steps)}
    made = {path.name: {each.name for each in path.iterdir()} for path in samples.iterdir()}
    assert made == {"step_00000006": both | ddim, "step_00000003": both}
    # By default it lies beside the others, and what is of another name says nothing of them.
    said = cli.sample(of_cats, "num_images=1", "num_inference_steps=25")
    assert "  output     samples/cats/step_00000006\n" in said and (samples / "step_00000006/grid.png").exists()


@pytest.mark.slow
def test_two_processes_and_a_kill_leave_the_same_images(cli: Cli, trained: Path) -> None:
    command = (f"pipeline={trained}", "num_images=16", "batch_size=1", "num_inference_steps=30", "mixed_precision=no")
    cli.sample(*command, "output=whole")
    process = cli.fork(*PROGRAM, *command, "output=parts")
    images = cli.folder / "parts/images"
    deadline = time.monotonic() + 60
    while len(list(images.glob("0*.png")) if images.exists() else []) < 3:
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    made = {path: path.stat().st_mtime_ns for path in images.glob("0*.png")}
    assert 3 <= len(made) < 16
    # Two processes make what is missing; what is there is left alone.
    said = cli.python_together(*PROGRAM, *command, "output=parts", count=2)
    assert "2 processes" in said and f"found      {len(made)} of 16 images" in said
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (np.abs(pixels(cli.folder / "parts", 16).astype(int) - pixels(cli.folder / "whole", 16)) <= 1).all()
    assert sorted(os.listdir(images)) == [f"{index:06}.png" for index in range(16)]


def test_looks(cli: Cli, trained: Path) -> None:
    command = (f"pipeline={trained}", "mixed_precision=no", "num_images=2")
    plain = ("num_inference_steps=10", "sampler=ddim")
    cli.sample(*command, *plain, "output=images")
    expected = pixels(cli.folder / "images", 2)
    cli.sample(*command, *plain, "trajectory=true", "trajectory_every_steps=2", "output=watched", "batch_size=1")
    strip = np.asarray(Image.open(cli.folder / "watched/trajectory.png"))
    # Five looks and the result; for each image a row of x_t and one of x_0, tiles of 64 and a gap of 2.
    assert strip.shape == (2 + 4 * 66, 2 + 6 * 66)
    for row in range(4):
        assert np.array_equal(strip[2 + 66 * row :: 8][:8, 2 + 66 * 5 :: 8][:, :8], expected[row // 2])
    with Image.open(cli.folder / "watched/trajectory.gif") as animation:
        assert animation.is_animated and animation.info["loop"] == 0
    cli.sample(*command, *plain, "interpolate=true", "interpolate_frames=4", "animation=webp", "output=walk")
    walk = np.asarray(Image.open(cli.folder / "walk/interpolation.png"))
    assert walk.shape == (2 + 2 * 66, 2 + 4 * 66)
    cli.sample(*command, *plain, "seed=1", "output=there")
    for column, ends in ((0, expected), (3, pixels(cli.folder / "there", 2))):
        for row in range(2):
            tile = walk[2 + 66 * row :: 8][:8, 2 + 66 * column :: 8][:, :8]
            assert np.abs(tile.astype(int) - ends[row]).max() <= 1
    with Image.open(cli.folder / "walk/interpolation.webp") as animation:
        assert animation.n_frames >= 4
    said = cli.sample(*command, "compare.samplers=[ddim,kdpm2,ddpm]", "compare.steps=[5,100]", "output=table")
    table = json.loads((cli.folder / "table/compare.json").read_text())
    figures = {(row["sampler"], row["steps"]): row for row in table["results"]}
    assert table["distance_to"] == "dpm_solver at 200 steps" and len(figures) == 6
    assert figures["ddim", 100]["distance"] < figures["ddim", 5]["distance"] and "stochastic" in said
    assert figures["kdpm2", 5]["model_calls"] == 9 and figures["ddpm", 5]["distance"] is None
    with Image.open(cli.folder / "table/compare.png") as picture:
        assert picture.width > picture.height


def test_beginning_with_a_picture(cli: Cli, trained: Path, garments: list[Image.Image]) -> None:
    garments[0].save(cli.folder / "coat.png")
    mask = Image.new("L", (28, 28))
    mask.paste(255, (14, 0, 28, 28))
    mask.save(cli.folder / "mask.png")
    command = (f"pipeline={trained}", "from_image=coat.png", "num_images=2", "mixed_precision=no", "sampler=ddim")
    coat = np.asarray(garments[0].resize((8, 8), Image.Resampling.LANCZOS)).astype(int)
    distances = []
    for strength in (0.1, 0.9):
        cli.sample(*command, f"strength={strength}", "num_inference_steps=20", f"output=noised_{strength}")
        made = pixels(cli.folder / f"noised_{strength}", 2).astype(int)
        assert not np.array_equal(made[0], made[1])
        distances.append(np.abs(made - coat).mean())
    assert 2 * distances[0] < distances[1]
    said = cli.sample(*command, "inpaint=mask.png", "num_inference_steps=10", "output=filled")
    filled = pixels(cli.folder / "filled", 2)
    assert np.array_equal(filled[0, :, :4], coat[:, :4]) and np.array_equal(filled[1, :, :4], coat[:, :4])
    assert not np.array_equal(filled[0, :, 4:], filled[1, :, 4:]) and "made 2 images" in said
    # The same mask by its opacity, as drawn on a transparent layer; the colour behind what is transparent is not seen.
    for colour, behind in ((0, 0), (255, 0)):
        layer = Image.new("LA", (28, 28), (behind, 0))
        layer.paste((colour, 255), (14, 0, 28, 28))
        layer.save(cli.folder / "layer.png")
        said = cli.sample(*command, "inpaint=layer.png", "num_inference_steps=10", "output=filled")
        assert "found      2 of 2 images" in said
        assert (
            "mask       layer.png shows one colour: what is opaque in it is painted anew, as white would be\n" in said
        )
    other = cli.sample(*command, "inpaint=coat.png", "num_inference_steps=10", "output=filled", expect=2)
    assert other.startswith("error: output=filled: holds images of another kind (with another mask, or none); ")


def test_a_batch_that_does_not_fit_is_halved(cli: Cli, trained: Path) -> None:
    command = (
        f"pipeline={trained}",
        "num_images=16",
        "num_inference_steps=1",
        "resolution=[64,128]",
        "mixed_precision=no",
    )
    program = ("-c", IN_LITTLE_MEMORY, *command)
    said = cli.python(*program, "batch_size=16", "output=fixed", expect=2, **LEAN)
    assert said.endswith("error: batch_size=16: does not fit in the memory of cpu; use less, or auto\n")
    assert "made 16 images" in cli.python(*program, "output=halved", **LEAN)


def test_the_trainer_takes_a_samplers_arguments(cli: Cli) -> None:
    cli.train("sampler=ddim", "sampler.eta=0.5", "train.max_steps=2")
    keys = ("sampler=ddim", "sampler.eta=0.5", "num_images=4", "num_inference_steps=2", "mixed_precision=no")
    cli.sample("pipeline=outputs/default", *keys, "output=again")
    grids = [cli.folder / "again/grid.png", cli.output() / "samples/step_00000002.png"]
    assert np.array_equal(*(np.asarray(Image.open(path)) for path in grids))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiling_makes_the_same(cli: Cli, trained: Path) -> None:
    # The last batch of one image is filled up to two.
    command = (f"pipeline={trained}", "num_images=3", "batch_size=2", "num_inference_steps=2", "mixed_precision=no")
    cli.sample(*command, "output=eager")
    assert "fp32 + compiled on cpu" in cli.sample(*command, "compile=true", "output=compiled")
    eager, compiled = (pixels(cli.folder / name, 3).astype(int) for name in ("eager", "compiled"))
    assert np.abs(eager - compiled).max() <= 1


def test_bf16_makes_nearly_the_same(cli: Cli, trained: Path) -> None:
    command = (f"pipeline={trained}", "num_images=4", "num_inference_steps=10")
    cli.sample(*command, "mixed_precision=no", "output=fp32")
    said = cli.sample(*command, "mixed_precision=bf16", "output=bf16")
    assert "bf16 on cpu" in said
    exact, rounded = (pixels(cli.folder / name, 4).astype(int) for name in ("fp32", "bf16"))
    assert not np.array_equal(exact, rounded) and np.abs(exact - rounded).mean() < 4
    said = cli.sample(*command, "mixed_precision=auto", "output=auto", "num_images=4", "num_inference_steps=40")
    chosen = json.loads((cli.folder / "auto/sampling.json").read_text())["precision"]
    assert f"{chosen} on cpu" in said


@pytest.fixture
def hub(tmp_path: Path, foreign: Path) -> Callable[[], LoopbackHub]:
    shutil.copytree(foreign, tmp_path / "hub/models/someone/cats")
    other = tmp_path / "hub/models/someone/stable"
    (other / "unet").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (other / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKL"]}))
    (other / "unet/config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    (other / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"not for us")
    return lambda: LoopbackHub(tmp_path / "hub")


@pytest.mark.slow
def test_a_hub_repository(cli: Cli, hub: Callable[[], LoopbackHub], foreign: Path) -> None:
    with hub() as server:
        environment = {**cli.environment, **server.environment(cli.folder / "hf")}
        cli.environment = environment | {"PYTHONPATH": cli.environment["PYTHONPATH"]}
        command = ("num_images=3", "sampler=ddpm", *FAST)
        cli.sample(*command, "pipeline=someone/cats", "output=cats")
        assert np.array_equal(pixels(cli.folder / "cats", 3), their_images(foreign, 3, 5))
        said = cli.sample(*command, "pipeline=someone/stable", expect=2)
        assert said == (
            "error: pipeline=someone/stable: a StableDiffusionPipeline; ddpm-sample is for unconditional pixel models "
            "(UNet2DModel); use diffusers' StableDiffusionPipeline\n"
        )
        assert not any("stable" in request.path and "safetensors" in request.path for request in server.requests)
        said = cli.sample(*command, "pipeline=someone/absent", expect=2)
        assert said.startswith("error: pipeline=someone/absent: no such model on the Hub without a token")
        unwritable = {"expect": 2, "HF_HOME": "/proc/nowhere"}
        said = cli.python("-m", "ddpm_train.cli.sample", *command, "pipeline=someone/cats", "output=no", **unwritable)
        said += cli.train("model.pretrained=someone/cats", **unwritable)
        told = [line for line in said.splitlines() if line.startswith("error: ")]  # beside what the client says
        for key, line in zip(("pipeline", "model.pretrained"), told, strict=True):
            assert line.startswith(f"error: {key}=someone/cats: /proc/nowhere")
            assert line.endswith(": No such file or directory; set HF_HOME to a folder that can be written")
    # No network: what is in the cache serves, what is not is one line.
    assert "found      3 of 3" in cli.sample(*command, "pipeline=someone/cats", "output=cats")
    said = cli.sample(*command, "pipeline=someone/dogs", expect=2)
    assert said.startswith("error: pipeline=someone/dogs: no such folder; the Hub cannot be reached (")
    assert said.endswith("check the network, HF_ENDPOINT and HF_HUB_OFFLINE\n") and said.count("\n") == 1


def test_what_cannot_be_sampled(cli: Cli, trained: Path, foreign: Path) -> None:
    """One line for each mistake that only the model shows."""
    half = shutil.copytree(trained, cli.folder / "half")
    (half / "checkpoints/step_00000006/ema.safetensors").unlink()
    (half / "checkpoints/step_00000003/ema.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    UNet2DConditionModel(
        8, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        cross_attention_dim=8, norm_num_groups=4,
    ).save_pretrained(cli.folder / "conditional")  # fmt: skip
    torn = shutil.copytree(trained / "pipeline", cli.folder / "torn")
    weights = torn / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    kept = shutil.copytree(foreign, cli.folder / "lacking")
    state = torch.load(kept / "diffusion_pytorch_model.bin")
    del state["conv_in.weight"]
    torch.save(state, kept / "diffusion_pytorch_model.bin")
    (cli.folder / "empty").mkdir()
    (cli.folder / "text.png").write_text("no picture")
    only = "ddpm-sample is for unconditional pixel models (UNet2DModel); use diffusers' own pipelines"
    cases = {
        ("pipeline=half/checkpoints/step_00000006",): [
            "pipeline=half/checkpoints/step_00000006: step_00000006 is not a whole checkpoint: "
            "ema.safetensors is missing"
        ],
        ("pipeline=half/checkpoints/step_00000003",): [
            "pipeline=half/checkpoints/step_00000003: 1 of its files is a Git LFS pointer (ema.safetensors first); "
            "run `git lfs pull` in the clone"
        ],
        ("pipeline=conditional",): [f"pipeline=conditional: a UNet2DConditionModel; {only}"],
        ("pipeline=lacking",): ["pipeline=lacking: its weights lack 1 tensors, conv_in.weight first"],
        ("pipeline=empty",): [
            "pipeline=empty: no run, checkpoint or model; give the folder of a run, a checkpoint, or one with "
            "model_index.json"
        ],
        (f"pipeline={trained}", "num_inference_steps=1001", "resolution=9"): [
            "resolution=9: the model's 2 levels need multiples of 2; use resolution=8",
            "num_inference_steps=1001: more than the model's 1000 training timesteps; use at most 1000",
        ],
        (f"pipeline={trained}", "from_image=text.png"): ["from_image=text.png: not an image; give a picture"],
        (f"pipeline={trained}", "sampler.solver_type=nothing"): [
            "sampler.solver_type=nothing: nothing is not implemented for <class 'diffusers.schedulers."
            "scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler'>; leave it out or change it"
        ],
    }
    for command, lines in cases.items():
        assert cli.sample(*command, expect=2).splitlines() == [f"error: {line}" for line in lines]
    said = cli.sample("pipeline=torn", expect=2)
    weights = "torn/unet/diffusion_pytorch_model.safetensors"
    assert said.startswith(f"error: pipeline=torn: {weights} cannot be read: ") and said.count("\n") == 1
    said = cli.sample(f"pipeline={trained}", "sampler=heun", "num_inference_steps=10", expect=2)
    assert "sampler=heun: cannot sample this model (prediction_type=v_prediction" in said and "it diverges" in said
    assert re.search(r"use num_inference_steps=\d+, or use one of ddpm, ddim, pndm, dpm_solver, ", said)


def test_what_the_command_line_shows(cli: Cli) -> None:
    """All at once, before torch is imported."""
    (cli.folder / "outputs/cats").mkdir(parents=True)
    command = (
        "pipeline=outputs/cat sampler=ddim sampler.etaa=0.5 sampler.beta_end=1 num_image=3 strength=2 "
        "output=/proc/x trajectory=true interpolate=true from_image=nowhere.png weights=emma"
    )
    said = cli.run([sys.executable, "-X", "importtime", *PROGRAM, *command.split()], expect=2)
    told = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    assert told == [
        "num_image=3: no such key; did you mean 'num_images'?",
        "weights=emma: not one of auto, ema, unet, ema@WIDTH; did you mean 'ema'?",
        "strength=2: must be at most 1",
        "sampler.etaa=0.5: no argument of DDIMScheduler; did you mean 'eta'?",
        "sampler.beta_end=1: decided by the model, which was trained with it; leave it out",
        "trajectory=true interpolate=true: one picture at a time; leave out all but one",
        "output=/proc/x: cannot write in /proc (No such file or directory); choose another output",
        "from_image=nowhere.png: no such file",
        "pipeline=outputs/cat: no such folder; did you mean 'outputs/cats'?",
    ]
    imported = {line.rsplit("|", 1)[-1].strip() for line in said.splitlines() if line.startswith("import time:")}
    assert "ddpm_train.config.sample" in imported and not imported & {"torch", "diffusers", "datasets", "accelerate"}


def test_help_lists_every_sampler(cli: Cli) -> None:
    text = cli.python(*PROGRAM, "--help")
    listed = text.split("Keys people use")[0].splitlines()
    for name in SAMPLERS:
        assert any(line.startswith(f"  {name} ") and len(line.split(name, 1)[1].strip()) > 20 for line in listed), name
