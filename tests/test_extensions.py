"""Code that the command line names is imported; a config that names code runs none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.cli import ROOT, Cli

TRAIN = (str(ROOT / "train.py"),)
SAMPLE = ("-m", "ddpm_train.cli.sample")
# Says that it was imported, and adds a choice to each of two groups.
MODULE = """
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddpm_train.config.losses import LOSSES, Loss
from ddpm_train.config.samplers import SAMPLERS, SamplerClass

Path("imported").touch()


@LOSSES.choice
@dataclass(frozen=True)
class Huber(Loss):
    name: Literal["huber"]
    delta: float = 0.25


SAMPLERS.add("mine", SamplerClass("diffusers.schedulers.scheduling_ddim:DDIMScheduler", "DDIM by another name"))
"""

METRIC = """
from PIL import Image

from ddpm_train.config.metrics import METRICS, Metric


def spread(inputs):
    yield "spread", inputs.generated.std() / inputs.reference.std()
    yield "spread", Image.new("L", (4, 4))


METRICS.add("spread", Metric("Spread", "How varied the samples are.", ("features",), spread, lower_is_better=False))
"""


@pytest.fixture
def mine(cli: Cli) -> Cli:
    """A folder of one's own, with a module and a choice that needs it."""
    write(cli.folder / "mine/my_choices.py", MODULE)
    write(cli.folder / "mine/loss/huber.yaml", "name: huber\ndelta: 0.5\n")
    return cli


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def refused(cli: Cli, *command: str) -> list[str]:
    """The lines of a command that is wrong; it may have left nothing."""
    lines = cli.python(*command, expect=2).splitlines()
    assert not (cli.folder / "imported").exists() and not (cli.folder / "outputs").exists()
    return [line.removeprefix("error: ") for line in lines]


@pytest.mark.parametrize("extensions", ["extensions=[my_choices]", "+extensions=[my_choices]"])
def test_what_the_command_line_names_is_imported(mine: Cli, extensions: str) -> None:
    command = (*TRAIN, "--config-dir", "mine", extensions, "loss=huber", "sampler=mine", "sampler.eta=0.5")
    values = yaml.safe_load(mine.python(*command, "--cfg", "job"))
    assert (values["loss"], values["extensions"]) == ({"name": "huber", "delta": 0.5}, ["my_choices"])
    assert values["sampler"] == {"name": "mine", "eta": 0.5} and (mine.folder / "imported").exists()
    wrong = mine.python(*command, "loss.delta=abc", "loss.gamma=5", "sampler.etaa=1", expect=2)
    assert wrong.splitlines() == [
        "error: loss.gamma=5: no such key; did you mean 'loss.name'?",
        "error: loss.delta=abc: must be a number",
        "error: sampler.etaa=1: no argument of DDIMScheduler; did you mean 'eta'?",
    ]


def test_the_current_folder_is_searched_too(cli: Cli) -> None:
    write(cli.folder / "my_choices.py", MODULE)
    text = cli.python(*SAMPLE, "extensions=[my_choices]", "--help")
    assert "  mine                   DDIM by another name" in text
    # A choice whose class has all the values needs no file.
    shown = cli.python(*TRAIN, "extensions=[my_choices]", "loss=huber", "--cfg", "job")
    assert yaml.safe_load(shown)["loss"] == {"name": "huber", "learned_uncertainty": False, "delta": 0.25}


def test_a_metric_of_ones_own(cli: Cli, write_images: Callable[[Path, int], Path]) -> None:
    """One row and one function: measured in a run and after it, with its label in the report."""
    write(cli.folder / "my_metric.py", METRIC)
    images = ("dataset=imagefolder", f"dataset.path={write_images(cli.folder / 'garments', 60)}", "dataset.channels=1")
    full = (
        *images,
        "name=default",
        "dataset.validation_fraction=0.2",
        "evaluation=full",
        "evaluation.metrics=[kid,spread]",
        "evaluation.num_samples=10",
        "train.max_steps=1",
    )
    cli.train("extensions=[my_metric]", *full, "objective=spread")
    record = cli.metrics()[-1]
    assert record["spread_efficientnet_lite0_n10"] > 0 and "kid_efficientnet_lite0_n10" in record
    assert json.loads((cli.output() / "result.json").read_text())["value"] == record["spread_efficientnet_lite0_n10"]
    assert (cli.output() / "evaluation/spread.png").is_file()
    steps = ("num_images=10", "num_inference_steps=2", "metrics=[spread]")
    said = cli.evaluate("pipeline=outputs/default", "extensions=[my_metric]", *steps)
    assert "spread_efficientnet_lite0_n10" in said and "Spread" in (cli.output() / "report.html").read_text()
    (score,) = json.loads((cli.output() / "evaluation/scores.json").read_text())["scores"]
    assert score["metric"] == "spread" and not score["lower_is_better"]
    assert "metrics.0=spread: not one of fid, kid" in cli.evaluate("pipeline=outputs/default", *steps, expect=2)


def test_what_nobody_names_is_unknown(mine: Cli) -> None:
    assert refused(mine, *TRAIN, "--config-dir", "mine", "loss=huber") == [
        "loss.name=huber: not one of mse, min_snr, p2, edm, sigmoid"
    ]
    (line,) = refused(mine, *TRAIN, "--config-dir", "mine", "sampler=mine")
    assert line.startswith("sampler=mine: no such config;")


def test_a_config_that_names_code_runs_none(mine: Cli) -> None:
    """Neither an experiment nor the saved config of a run."""
    needed = (
        "extensions=[my_choices]: this config names code, which runs only if the command names it too; "
        "if you trust it, add 'extensions=[my_choices]'"
    )
    evil = {"extensions": ["my_choices"], "loss": {"name": "huber", "delta": 0.5}}
    write(mine.folder / "mine/experiment/evil.yaml", "# @package _global_\n" + yaml.safe_dump(evil))
    assert refused(mine, *TRAIN, "--config-dir", "mine", "experiment=evil") == [needed]
    sweep = ("--multirun", "--config-dir", "mine", "experiment=evil", "seed=1,2")
    assert refused(mine, *TRAIN, *sweep) == [needed]

    composed = yaml.safe_load(mine.python(*TRAIN, "--cfg", "job"))
    write(mine.folder / "run/config.yaml", yaml.safe_dump({**composed, **evil}))
    write(mine.folder / "run/my_choices.py", MODULE)
    assert refused(mine, *TRAIN, "--config-path", "run") == [needed]
    # Named, it is trusted; it is found in this folder or in that of --config-dir, but not in the run's.
    run = (*TRAIN, "--config-path", "run", "extensions=[my_choices]")
    assert refused(mine, *run) == [
        "extensions=[my_choices]: there is no module my_choices; put it into this folder or that of --config-dir, "
        "or install it"
    ]
    wrong = mine.python(*run, "--config-dir", "mine", "train.max_steps=-1", expect=2)
    assert wrong == "error: train.max_steps=-1: must be greater than 0\n"


def test_what_hydra_would_call_is_refused(cli: Cli) -> None:
    composed = yaml.safe_load(cli.python(*TRAIN, "--cfg", "job"))
    touch = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["called"]}}
    write(cli.folder / "run/config.yaml", yaml.safe_dump({**composed, "hydra": {"callbacks": {"evil": touch}}}))
    said = cli.train("--config-path", "run", "train.max_steps=1", "evaluation.batch_size=4", expect=2)
    assert "hydra.callbacks.evil._target_" in said and len(said.splitlines()) == 1
    assert not (cli.folder / "called").exists()


def test_a_config_from_before_extensions_takes_them(mine: Cli) -> None:
    composed = yaml.safe_load(mine.python(*TRAIN, "--cfg", "job"))
    del composed["extensions"]
    write(mine.folder / "run/config.yaml", yaml.safe_dump(composed))
    shown = mine.python(
        *TRAIN, "--config-path", "run", "--config-dir", "mine", "--cfg", "job", "extensions=[my_choices]"
    )
    assert yaml.safe_load(shown)["extensions"] == ["my_choices"]


def test_what_cannot_be_imported_is_told_in_one_line(cli: Cli) -> None:
    write(cli.folder / "broken.py", "import math\n\n1 / 0\n")
    write(cli.folder / "needy.py", "import nowhere_to_be_found\n")
    broken, needy = (cli.folder.resolve() / name for name in ("broken.py", "needy.py"))
    assert refused(cli, *TRAIN, "extensions=[nowhere,broken,needy]", "model=unet_x") == [
        "extensions=[nowhere,broken,needy]: there is no module nowhere; put it into this folder or that of "
        "--config-dir, or install it",
        f"extensions=[nowhere,broken,needy]: broken fails in {broken}, line 3 (ZeroDivisionError: division by zero); "
        "correct it",
        f"extensions=[nowhere,broken,needy]: needy fails in {needy}, line 1 (ModuleNotFoundError: No module named "
        "'nowhere_to_be_found'); correct it",
    ]
    write(cli.folder / "taken.py", "from ddpm_train.config.losses import LOSSES\n\nLOSSES.add('mse', int)\n")
    write(cli.folder / "torn.py", "x = 1\ndef\n")
    taken, torn = (cli.folder.resolve() / name for name in ("taken.py", "torn.py"))
    assert refused(cli, *TRAIN, "extensions=[taken,torn]") == [
        f"extensions=[taken,torn]: taken fails in {taken}, line 3 (ValueError: there is a loss named mse already; "
        "choose another name); correct it",
        f"extensions=[taken,torn]: torn fails in {torn}, line 2 (SyntaxError: invalid syntax (torn.py, line 2)); "
        "correct it",
    ]
    (line,) = refused(cli, *TRAIN, "extensions=broken")
    assert line.startswith("extensions=[broken]: broken fails in ")
