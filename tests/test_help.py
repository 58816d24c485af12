"""`--help` says what there is, and neither it nor a mistake pays for the libraries that train."""

import re
import sys

import pytest
import yaml
from helpers.cli import ROOT, Cli

import ddpm_train

TRAIN = str(ROOT / "train.py")


def test_help_lists_every_choice_of_every_group(cli: Cli) -> None:
    text = cli.run([sys.executable, TRAIN, "--help"])
    shown = {group: set(choices.split(", ")) for group, choices in re.findall(r"^(\w+): (.+)$", text, re.MULTILINE)}
    for folder in (ROOT / "conf").iterdir():
        if folder.is_dir() and folder.name != "hydra":
            assert shown[folder.name] == {path.stem for path in folder.glob("*.yaml")}


def test_help_names_only_keys_that_exist(cli: Cli) -> None:
    text = cli.python(TRAIN, "--help")
    assert "--multirun optimizer.lr=1e-4,3e-4" in text
    keys = re.findall(r"\b([a-z]+(?:\.[a-z_]+)?)=", text.split("Keys people use:")[1])
    config = yaml.safe_load(cli.python(TRAIN, "--cfg", "job"))
    assert {"name", "resume", "train.batch_size", "train.max_steps", "dataset.path", "optimizer.lr"} <= set(keys)
    for key in keys:
        section, _, rest = key.partition(".")
        assert rest in config[section] if rest else section in config or (ROOT / "conf" / section).is_dir(), key


def test_each_program_says_which_it_is(cli: Cli) -> None:
    programs = {
        f"ddpm-{name}": f"ddpm_train.cli.{name}"
        for name in ("train", "sample", "evaluate", "data", "push", "export", "refine", "reproduce")
    }
    said = {name: cli.python("-m", module, "--version") for name, module in programs.items()}
    assert said == {name: f"{name} {ddpm_train.__version__}\n" for name in programs}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--cfg", "job"], 0), (["train.max_stepss=3"], 2), (["train.max_steps=-3", "model=unet_x"], 2)],
)
def test_nothing_slow_is_imported(cli: Cli, arguments: list[str], code: int) -> None:
    text = cli.run([sys.executable, "-X", "importtime", TRAIN, *arguments], expect=code)
    imported = {line.rsplit("|", 1)[-1].strip() for line in text.splitlines() if line.startswith("import time:")}
    assert "ddpm_train.config.train" in imported
    slow = {"torch", "torchvision", "diffusers", "datasets", "transformers", "accelerate", "tensorboard"}
    assert not imported & (slow | {"numpy", "PIL", "psutil", "huggingface_hub", "pyarrow", "fsspec"})
