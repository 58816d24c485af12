"""Whole runs through the real command line."""

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.cli import ROOT, TINY, Cli, Once
from helpers.runs import relative_difference, weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

GRID = "samples/step_00000006.png"


@pytest.fixture(scope="module")
def one(once: Once) -> tuple[Cli, str]:
    """A finished run of six steps, and what it printed."""
    return once("one", lambda cli: cli.train("evaluation.every_steps=3", "checkpoint.every_steps=3"))


@pytest.mark.fast
def test_says_what_will_run_and_what_is_next(one: tuple[Cli, str]) -> None:
    cli, said = one
    assert "fashion_tiny: 2,000 images 8x8x1, 500 held out" in said
    assert "16 = 16 x 1 process x 1 accumulated" in said
    assert "fp32 on cpu" in said and "outputs/default (new run)" in said
    assert re.search(r"^\d\d:\d\d:\d\d  step 2/6  ETA \d:\d\d  ", said, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d  step 6/6  loss ", said, re.MULTILINE) and "\r" not in said
    assert f"outputs/default/{GRID}" in said and 'DDPMPipeline.from_pretrained("outputs/default/pipeline")' in said
    again = cli.train("evaluation.every_steps=3", "checkpoint.every_steps=3")
    assert again == "default: finished at step 6; nothing to do (outputs/default)\n"


@pytest.mark.fast
def test_run_folder(one: tuple[Cli, str]) -> None:
    cli, _ = one
    run = cli.output()
    assert {entry.name for entry in run.iterdir()} >= {"checkpoints", "pipeline", "samples", "tensorboard"}
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_00000003.png", "step_00000006.png"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["train"]["batch_size"] == 16 and config["model"]["block_out_channels"] == [8, 16]
    records = cli.metrics()
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["images_seen"] for record in records] == [16, 32, 48, 64, 80, 96]
    for record in records:
        assert record.keys() >= {"loss", "lr", "grad_norm", "images_per_second"}
    assert ["checkpoint_stall_seconds" in record for record in records] == [False] * 3 + [True] + [False] * 2
    assert ["held_out_loss" in record for record in records] == [False, False, True] * 2
    assert 0.3 < records[-1]["held_out_loss"] < records[2]["held_out_loss"] < 1.3


@pytest.mark.fast
def test_tensorboard_shows_the_same_numbers(one: tuple[Cli, str]) -> None:
    cli, _ = one
    events = EventAccumulator(str(cli.output() / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {f"train/{key}" for key in ("loss", "lr", "grad_norm", "images_per_second")}
    records = cli.metrics()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(record["step"], pytest.approx(record["loss"])) for record in records]
    held_out = [(event.step, event.value) for event in events.Scalars("evaluation/held_out_loss")]
    assert held_out == [(step, pytest.approx(records[step - 1]["held_out_loss"])) for step in (3, 6)]
    assert [event.step for event in events.Images("samples")] == [3, 6]
    hparams = [path for path in (cli.output() / "tensorboard").iterdir() if path.is_dir()]
    assert any("train.batch_size: 16" in file.read_text() for path in hparams for file in path.glob("hparams.yml"))


@pytest.mark.slow
def test_plain_diffusers_loads_the_pipeline_and_repeats_the_grid(cli: Cli) -> None:
    """The lines of docs/models-and-configs.md, in a process that never imports this project."""
    cli.train("name=average")
    cli.train("name=raw", "ema=none", "train.mixed_precision=bf16", "model.dropout=0.1")
    lines = (ROOT / "docs/models-and-configs.md").read_text().split("```python\n")[1].split("```")[0]
    for long, short in (("range(64)", "range(4)"), ("batch_size=64", "batch_size=4"), ("steps=25", "steps=2")):
        assert long in lines
        lines = lines.replace(long, short)
    program = "import sys, numpy\n"
    for name in ("average", "raw"):
        program += lines.replace("outputs/default", f"outputs/{name}")
        program += f"numpy.save('{name}.npy', numpy.stack([numpy.asarray(image) for image in images]))\n"
    program += "assert 'ddpm_train' not in sys.modules"
    cli.run([sys.executable, "-c", program], PYTHONPATH="")
    for name in ("average", "raw"):
        images = np.load(cli.folder / f"{name}.npy")
        with Image.open(cli.output(name) / GRID) as grid:
            pixels = np.asarray(grid)
        tiles = [pixels[2 + 66 * row : 66 * row + 66, 2 + 66 * col : 66 * col + 66] for row in (0, 1) for col in (0, 1)]
        assert np.array_equal(np.stack(tiles)[:, ::8, ::8], images)


@pytest.mark.slow
def test_processes_and_accumulation_change_nothing(cli: Cli) -> None:
    """The same batches with the same noise: 1 process, 2 processes, 2 x accumulation, over 20 steps in fp32."""
    long = ("train.max_steps=20", "model.dropout=0", "dataset.random_flip=true", "dataset.crop=random")
    cli.train(*long, "name=one")
    cli.train(*long, "name=accumulated", "train.micro_batch_size=4")
    said = cli.together(*long, "name=two", "train.micro_batch_size=4", num_processes=2)
    assert "16 = 4 x 2 processes x 2 accumulated" in said
    reference = weights(cli.output("one"), step=20)
    for name in ("accumulated", "two"):
        assert relative_difference(reference, weights(cli.output(name), step=20)) <= 1e-5
        for ours, theirs in zip(cli.metrics("one"), cli.metrics(name), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    grids = [(cli.output(name) / "samples/step_00000020.png").read_bytes() for name in ("one", "two")]
    grid_one, grid_two = (np.asarray(Image.open(cli.output(name) / "samples/step_00000020.png")).astype(int)
                          for name in ("one", "two"))  # fmt: skip
    # The weights differ in the last bits of a float, so a pixel may round to its neighbour.
    assert grids[0] == grids[1] or abs(grid_one - grid_two).max() <= 1
    assert cli.metrics("one")[-1]["held_out_loss"] == pytest.approx(cli.metrics("two")[-1]["held_out_loss"], rel=1e-5)


@pytest.mark.slow
def test_accelerate_launch_to_the_end(cli: Cli) -> None:
    """By its other name, with the config for CPUs; for its first name, and as a module, see test_signals.py."""
    (cli.folder / "launch").symlink_to(ROOT / "launch")
    launch = (str(Path(sys.executable).with_name("accelerate-launch")), "--config_file", "launch/accelerate/cpu.yaml")
    said = cli.run([*launch, "--num_processes", "2", str(ROOT / "train.py"), *TINY, "evaluation=none"])
    assert "16 = 8 x 2 processes x 1 accumulated" in said and "done: step 6" in said


@pytest.mark.slow
def test_evaluation_is_the_same_on_any_number_of_processes(cli: Cli) -> None:
    """From equal weights (one checkpoint) the grid and the held-out loss are equal to the bit."""
    few = ("dataset.validation_split=null", "dataset.validation_fraction=0.0035")  # seven held-out images
    cli.train(*few, "evaluation=none", "evaluation.num_images=4")
    start = str(cli.output() / "checkpoints/step_00000006")
    shared = (
        f"resume={start}",
        "optimizer.lr=1e-30",
        "optimizer.weight_decay=0",
        "train.max_steps=7",
        "allow_change=[optimizer]",
    )
    shared = (*shared, *few, "evaluation.num_images=5", "evaluation.batch_size=2")
    cli.train(*shared, "name=one")
    cli.together(*shared, "name=two", num_processes=2)
    grids = [(cli.output(name) / "samples/step_00000007.png").read_bytes() for name in ("one", "two")]
    assert grids[0] == grids[1]
    assert cli.metrics("one")[-1]["held_out_loss"] == cli.metrics("two")[-1]["held_out_loss"]


@pytest.mark.parametrize("perturbation", [0.0, 0.1])
def test_parity_with_the_tutorial_loop(cli: Cli, perturbation: float) -> None:
    """The tutorial's loop around the same images and noise gets the same losses, weights and average."""
    cli.train("lr_scheduler=constant", "train.max_steps=8", "evaluation=none", f"noise.perturbation={perturbation}")
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    from ddpm_train.data.order import image_indices
    from ddpm_train.seeding import Purpose, derived_seed, integers, normal

    with Image.open(ROOT / "ddpm_train/data/fashion_tiny/train.png") as mosaic:
        tiles = np.asarray(mosaic).reshape(40, 28, 50, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)
    small = [np.asarray(Image.fromarray(tile).resize((8, 8), Image.Resampling.LANCZOS)) for tile in tiles]
    dataset = torch.from_numpy(np.stack(small))[:, None].float() / 127.5 - 1
    torch.manual_seed(derived_seed(0, Purpose.INIT, 0))
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )
    config = yaml.safe_load((cli.output() / "config.yaml").read_text())
    assert config["noise_scheduler"].pop("log_snr_shift") == 0  # the one key that is no argument of diffusers'
    noise_scheduler = DDPMScheduler(**config["noise_scheduler"])
    settings = config["optimizer"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=settings["betas"], eps=settings["eps"],
                                  weight_decay=settings["weight_decay"])  # fmt: skip
    average = config["ema"]
    ema = EMAModel(model.parameters(), decay=average["max_decay"], min_decay=average["min_decay"],
                   use_ema_warmup=True, inv_gamma=average["inv_gamma"], power=average["power"])  # fmt: skip
    losses = []
    for step in range(8):
        positions = torch.arange(step * 16, step * 16 + 16)
        clean_images = dataset[image_indices(positions.numpy(), 2000, 0)]
        noise = normal(0, Purpose.NOISE, positions, (1, 8, 8))
        timesteps = integers(0, Purpose.TIMESTEP, positions, 1000)
        input_noise = noise + perturbation * normal(0, Purpose.PERTURBATION, positions, (1, 8, 8))
        noisy_images = noise_scheduler.add_noise(clean_images, input_noise, timesteps)
        prediction = model(noisy_images, timesteps, return_dict=False)[0]
        velocity = noise_scheduler.get_velocity(clean_images, noise, timesteps)
        loss = torch.nn.functional.mse_loss(prediction, velocity)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["train"]["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        losses.append(loss.item())
    assert [record["loss"] for record in cli.metrics()] == pytest.approx(losses, rel=1e-5)
    assert relative_difference(weights(cli.output(), step=8), dict(model.state_dict())) < 1e-5
    ema.copy_to(model.parameters())
    assert relative_difference(weights(cli.output(), "ema", step=8), dict(model.state_dict())) < 1e-5


def test_a_non_finite_loss_stops_before_it_is_saved(cli: Cli) -> None:
    said = cli.train(
        "optimizer=sgd", "optimizer.lr=1e30", "train.max_grad_norm=null", "checkpoint.every_steps=1", expect=3
    )
    assert "error: the loss or gradient is not finite at step 2; nothing of it was saved." in said
    assert (
        "To go on from step_00000001 with a lower learning rate, give the same command with optimizer.lr=3.3e+29"
        in said
    )
    assert [path.name for path in (cli.output() / "checkpoints").iterdir()] == ["step_00000001"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("noise_scheduler=zero_snr", "loss=min_snr", "optimizer=adam", "lr_scheduler=linear", "ema=none"),
        ("noise_scheduler=cosine", "noise_scheduler.prediction_type=sample", "optimizer=sgd", "sampler=dpm_solver"),
        ("model.dropout=0.1", "train.gradient_checkpointing=true", "train.mixed_precision=bf16", "sampler=unipc"),
        ("model.time_embedding_type=learned", "sampler=euler", "sampler.timestep_spacing=linspace"),
        ("dataset.resolution=[8,12]", "dataset.channels=4", "train.micro_batch_size=4", "train.max_steps=null",
         "train.epochs=0.048", "sampler=heun", "noise_scheduler=linear", "tracker=none"),
    ],
)  # fmt: skip
def test_options_train(cli: Cli, overrides: tuple[str, ...]) -> None:
    said = cli.train(*overrides)
    records = cli.metrics()
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(0 < record["loss"] < 50 for record in records)
    assert ("bf16 on cpu" in said) == any("bf16" in override for override in overrides)
    with Image.open(cli.output() / GRID) as grid:
        assert grid.mode == ("RGBA" if "dataset.channels=4" in overrides else "L")
    assert (cli.output() / "tensorboard").exists() == ("tracker=none" not in overrides)


@pytest.mark.slow
def test_a_terminal_gets_one_live_bar(cli: Cli) -> None:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "evaluation=none", "train.log_every_steps=6"]
    # Each step is drawn, and the OpenMP library shows what it has read when torch was imported.
    shows = {**cli.environment, "TQDM_MININTERVAL": "0", "OMP_DISPLAY_ENV": "verbose"}
    process = subprocess.Popen(command, cwd=cli.folder, env=shows, stderr=terminal, stdout=subprocess.PIPE)
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(controller, 65536):
            shown += block
    except OSError:  # Linux answers the closed terminal with EIO
        pass
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and b"step 6/6" not in out
    assert out.startswith(b"loading torch and diffusers") and b"GOMP_SPINCOUNT = '10000'" in shown
    assert all(b"%d/6" % step in shown for step in range(7)) and b"ETA 0:0" in shown
    assert b"100%" in shown and b"loss 0." in shown and b"lr " in shown and b"img/s" in shown
