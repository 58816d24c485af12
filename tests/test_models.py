"""A run's model is loaded by the parts of its config that describe it, whatever else stands there."""

import math
import shutil
from pathlib import Path

import pytest
from helpers.cli import Cli
from safetensors.torch import load_file, save_file

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.models.load import load_model
from ddpm_train.runs.folder import CONFIG, config_yaml, read_config


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run without `pipeline/`, so that its checkpoints are what there is."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("pipeline"))
    return tmp_path / "run"


def test_of_a_loss_and_a_tracker_that_are_not_known_here(run: Path, trained: Path) -> None:
    elsewhere = {"loss": {"name": "somebodys_own", "power": 2}, "tracker": {"theirs": {}}, "new_section": {"key": 1}}
    (run / CONFIG).write_bytes(config_yaml({**read_config(run / CONFIG), **elsewhere}))
    model = load_model(str(run))
    assert model.digest == load_model(str(trained)).digest and model.step == 6
    assert load_model(str(run / "checkpoints/best")).step in (3, 6)


def test_what_describes_the_model_is_checked(run: Path) -> None:
    values = read_config(run / CONFIG)
    values["model"]["layers_per_block"] = 0
    values["dataset"]["resolution"] = "large"
    (run / CONFIG).write_bytes(config_yaml(values))
    with pytest.raises(Mistakes) as mistakes:
        load_model(str(run))
    assert list(mistakes.value.lines) == [
        "dataset.resolution=large: must be a whole number or [height,width]",
        "model.layers_per_block=0: must be greater than 0",
    ]


def test_weights_that_are_no_numbers_are_refused(cli: Cli, trained: Path) -> None:
    """By all that loads a model, in a line that names the first tensor and how many there are."""
    shutil.copytree(trained / "pipeline", cli.folder / "nan")
    file = cli.folder / "nan/unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = math.nan
    tensors["conv_out.bias"][0] = math.inf
    save_file(tensors, file, metadata={"format": "pt"})
    reason = f"its weights are no numbers: 2 of {len(tensors)} tensors hold NaN or infinity, conv_in.weight first; "
    with pytest.raises(Mistakes) as mistakes:
        load_model(str(cli.folder / "nan"))
    assert mistakes.value.lines == (f"pipeline={cli.folder}/nan: {reason}give an earlier checkpoint or another model",)
    assert f"error: pipeline=nan: {reason}" in cli.sample("pipeline=nan", expect=2)
    assert f"error: model.pretrained=nan: {reason}" in cli.train("model.pretrained=nan", expect=2)
