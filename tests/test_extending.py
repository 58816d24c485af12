"""docs/extending.md, as it stands there: its files are written, its commands run, from outside the package."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from helpers.cli import ROOT, Cli
from PIL import Image

TEXT = (ROOT / "docs/extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
FILES = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```bash\n(.*?)\n```", re.DOTALL)


def write_files(folder: Path, section: str) -> None:
    for name, text in FILES.findall(SECTIONS[section]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def run_command(cli: Cli, section: str, *further: str) -> str:
    (command,) = COMMANDS.findall(SECTIONS[section])
    program, *arguments = shlex.split(command)
    if program == "ddpm-train":
        return cli.train(*arguments, *further)
    return cli.python("-m", f"ddpm_train.cli.{program.removeprefix('ddpm-')}", *arguments, *further)


@pytest.fixture
def mine(cli: Cli) -> Callable[..., str]:
    """Follows a section of the page in an empty folder; returns what its command says."""

    def follow(section: str, *further: str) -> str:
        write_files(cli.folder, section)
        return run_command(cli, section, *further)

    return follow


def test_every_section_is_followed() -> None:
    followed = re.findall(r'mine\("(.*?)"', Path(__file__).read_text())
    assert set(SECTIONS) == set(followed)


def test_a_loss_that_is_no_weight_and_a_metric_and_a_sampler(
    cli: Cli, mine: Callable[..., str], write_images: Callable[[Path, int], Path]
) -> None:
    """The loss that a run minimises is the class's own: computed here anew for the first batch."""
    images = ("dataset=imagefolder", f"dataset.path={write_images(cli.folder / 'garments', 60)}", "dataset.channels=1")
    images = (*images, "dataset.validation_fraction=0.2")
    mine("A loss", "ema=none", "checkpoint.every_steps=3", *images)
    records = cli.metrics("huber")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    check = """
import json, torch
from ddpm_train.config.extensions import import_modules
import_modules(["my_losses"])
from my_losses import Huber
from torch.nn import functional
prediction, target = torch.randn(2, 5, 1, 8, 8)
ours = Huber("huber", 0.2).error(prediction, target)
theirs = torch.stack([functional.huber_loss(*pair, delta=0.2) for pair in zip(prediction, target)])
assert torch.allclose(ours, theirs)
"""
    cli.python("-c", check)
    assert records[0]["loss"] < 0.2  # a squared error begins at about 1
    # A run whose config names code: read without it where it does not matter, refused in one line where it does.
    cli.sample("pipeline=outputs/huber", "num_images=2", "num_inference_steps=2")
    refused = cli.evaluate("pipeline=outputs/huber", "metrics=[held_out_loss]", expect=2)
    assert "extensions=[my_losses]: this config names code" in refused
    # The same command goes on.
    mine("A loss", "ema=none", "train.max_steps=8", *images)
    assert len(cli.metrics("huber")) == 8

    said = mine("A metric", "num_inference_steps=2", "batch_size=20")
    assert re.search(r"mean_distance_efficientnet_lite0_n20 +\d", said)
    scores = json.loads((cli.output("huber") / "evaluation/scores.json").read_text())["scores"]
    assert [score["metric"] for score in scores] == ["mean_distance"] and scores[0]["value"] > 0
    assert "Mean distance" in (cli.output("huber") / "report.html").read_text()

    mine("A sampler", "num_inference_steps=6", "output=early")
    early = [np.asarray(Image.open(path)) for path in sorted((cli.folder / "early/images").glob("*.png"))]
    assert len(early) == 4
    cli.sample("pipeline=outputs/huber", "sampler=ddim", "num_images=4", "num_inference_steps=6", "output=ddim")
    plain = [np.asarray(Image.open(path)) for path in sorted((cli.folder / "ddim/images").glob("*.png"))]
    assert any((one != other).any() for one, other in zip(early, plain, strict=True))


def test_a_noise_schedule(cli: Cli, mine: Callable[..., str]) -> None:
    """Plain diffusers reads it from the run's pipeline."""
    mine("A noise schedule")
    kept = DDPMPipeline.from_pretrained(cli.output("sqrt") / "pipeline").scheduler.alphas_cumprod
    t = torch.arange(1, 901) / 1000  # beyond, a beta is cut off at 0.999
    assert torch.allclose(kept[:900], 1 - (t + 1e-4).sqrt(), atol=1e-4)
    # And so does this project, without the code.
    cli.sample("pipeline=outputs/sqrt", "num_images=2", "num_inference_steps=2", "output=once")
    checkpoint = "pipeline=outputs/sqrt/checkpoints/step_00000006"
    refused = cli.sample(checkpoint, "num_images=2", "num_inference_steps=2", "output=again", expect=2)
    assert "extensions=[my_schedules]: this config names code" in refused
    cli.sample(checkpoint, "extensions=[my_schedules]", "num_images=2", "num_inference_steps=2", "output=again")
    for index in range(2):
        one, other = (cli.folder / f"{folder}/images/{index:06}.png" for folder in ("once", "again"))
        assert one.read_bytes() == other.read_bytes()


def test_a_distribution_of_timesteps(cli: Cli, mine: Callable[..., str]) -> None:
    mine("A distribution of timesteps", "train.max_steps=1", "evaluation=none", "ema=none")
    assert yaml.safe_load((cli.output("laplace") / "config.yaml").read_text())["timestep_distribution"]["scale"] == 0.5
    check = """
import torch
from ddpm_train.config.extensions import import_modules
import_modules(["my_timesteps"])
from diffusers import DDPMScheduler
from my_timesteps import LaplaceLogSNR
from ddpm_train.diffusion.noise import signal_to_noise
from ddpm_train.diffusion.timesteps import LEAST_SHARE, timestep_edges
schedule = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
edges = torch.tensor(timestep_edges(LaplaceLogSNR("laplace", False, False, 0.0, 0.5), schedule, lambda: None))
share = edges.double().diff(prepend=torch.zeros(1)) / 2**32
log_snr = signal_to_noise(schedule).double().log()
density = (-log_snr.abs() / 0.5).exp() * -log_snr.diff(append=log_snr[-1:])  # of the distribution, over a timestep
expected = (1 - LEAST_SHARE) * density / density.sum() + LEAST_SHARE / 1000
assert (share - expected).abs().sum() < 0.02
"""
    cli.python("-c", check)


def test_a_source_of_images(cli: Cli, mine: Callable[..., str], garments: list[Image.Image]) -> None:
    """The same images from another place are the same run."""
    np.save(cli.folder / "digits.npy", np.stack([np.asarray(image) for image in garments[:40]]))
    said = mine("A source of images")
    assert "digits.npy: 39 images" in said
    for index, image in enumerate(garments[:40]):
        (cli.folder / "files").mkdir(exist_ok=True)
        image.save(cli.folder / f"files/{index:03}.png")
    same = ("dataset.channels=1", "dataset.validation_fraction=0.02")
    cli.train("dataset=imagefolder", "dataset.path=files", *same, "name=files")
    array, files = (cli.output(name) / "checkpoints/step_00000006/unet.safetensors" for name in ("array", "files"))
    assert array.read_bytes() == files.read_bytes()


def test_a_layout(cli: Cli, mine: Callable[..., str]) -> None:
    write_files(cli.folder, "A layout of the network")
    (command,) = COMMANDS.findall(SECTIONS["A layout of the network"])
    short = ("dataset.resolution=8", "train.max_steps=2", "train.batch_size=8", "evaluation=none")
    cli.python("-m", "ddpm_train.cli.train", *shlex.split(command)[1:], *short)
    layout = json.loads((cli.output("slim") / "pipeline/unet/config.json").read_text())
    assert layout["block_out_channels"] == [8, 16] and layout["layers_per_block"] == 1
    assert mine("A layout of the network", "name=again", *short)
