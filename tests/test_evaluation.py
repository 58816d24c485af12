"""What a run measures on its way, and what it makes of it: the best checkpoint, an early end, an objective."""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.cli import TINY, Cli, Once, ended
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_train.config.checks import TRAINING
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.objective import Criterion
from ddpm_train.data.loader import open_data
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.evaluation.held_out import loss_by_timestep, over_timesteps
from ddpm_train.models.load import load_model
from ddpm_train.runs.best import Selection, read_selection
from ddpm_train.runs.clock import RATIO
from ddpm_train.seeding import Purpose

KID = "kid_efficientnet_lite0_n10"
FULL = (
    *("evaluation=full", "evaluation.every_steps=3", "evaluation.num_samples=10", "evaluation.metrics=[kid,isc]"),
    *("evaluation.num_images=4", "evaluation.num_inference_steps=2", "dataset.validation_fraction=0.4"),
)
# A learning rate at which the loss jumps about, evaluated after each step.
WILD = (
    *("optimizer.lr=0.3", "lr_scheduler=constant", "ema=none", "train.max_steps=12", "evaluation.every_steps=1"),
    *("evaluation.num_inference_steps=1", "checkpoint.every_steps=null", "checkpoint.keep_last=1"),
)


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir())


def held_out(cli: Cli, name: str) -> dict[int, float]:
    return {record["step"]: record["held_out_loss"] for record in cli.metrics(name) if "held_out_loss" in record}


def best_of(values: dict[int, float]) -> int:
    return min(values, key=lambda step: values[step])


@pytest.fixture(scope="module")
def full(once: Once, write_images: Callable[[Path, int], Path]) -> tuple[Cli, str]:
    """A run with every evaluation, and the folder of its 48 images."""

    def train(cli: Cli) -> str:
        images = write_images(cli.folder / "images", 48)
        dataset = ("dataset=imagefolder", f"dataset.path={images}", "dataset.channels=1")
        cli.train(*FULL, *dataset, "name=full")
        return cli.train(*FULL, *dataset, "name=plain", "evaluation=none")

    cli, _ = once("full", train)
    return cli, str(cli.folder / "images")


def test_what_an_evaluation_leaves(full: tuple[Cli, str]) -> None:
    cli, images = full
    folder = cli.output("full") / "evaluation"
    assert {path.name for path in folder.iterdir()} == {
        *("step_00000003.json", "step_00000006.json", "loss_by_timestep.png")
    }
    for step in (3, 6):
        stored = json.loads((folder / f"step_{step:08}.json").read_text())
        record = cli.metrics("full")[step - 1]
        counts = ["held_out_images", "training_images"]
        parts = ["loss_by_timestep", "floor", "memorisation", "scores"]
        assert list(stored) == ["step", "held_out_loss", *counts, *parts]
        assert [stored[key] for key in counts] == [19, 29]
        assert stored["step"] == step and stored["held_out_loss"] == record["held_out_loss"]
        bins = stored["loss_by_timestep"]
        assert bins["edges"] == list(range(0, 1001, 100)) and sum(bins["count"]) == 19  # 40 % of 48
        filled = [(loss, count) for loss, count in zip(bins["loss"], bins["count"], strict=True) if count]
        assert sum(loss * count for loss, count in filled) / 19 == pytest.approx(stored["held_out_loss"], rel=1e-9)
        for number, loss in enumerate(bins["loss"]):
            assert record.get(f"held_out_loss_t0{number}00_0{number}99") == loss
        floor = stored["floor"]
        assert floor["loss"] == pytest.approx(stored["held_out_loss"]) and floor["num_images"] == 29
        assert 0 < floor["least"] < floor["naive"] and floor["interval"][0] <= floor["learned"] <= floor["interval"][1]
        assert (record["learned"], record["held_out_loss_floor"]) == (floor["learned"], floor["least"])
        memorised = stored["memorisation"]
        assert memorised["interval"][0] < memorised["ratio"] == record[RATIO] < memorised["interval"][1]
        kid, isc = stored["scores"]
        assert kid["name"] == KID and record[KID] == kid["value"] and kid["lower_is_better"]
        assert isc["name"] == "isc_efficientnet_lite0_n10" and isc["value"] == record[isc["name"]]
        assert isc["value"] >= 1 - 1e-12  # of images alike it is 1, as near as the processor rounds
        about = kid["depends_on"]
        assert (about["step"], about["weights"], about["seed"], about["num_images"]) == (step, "ema", 0, 10)
        assert about["sampler"]["name"] == "dpm_solver" and about["num_inference_steps"] == 2
        assert about["reference"]["dataset"] == images and about["reference"]["num_images"] == 29
    with Image.open(folder / "loss_by_timestep.png") as plot:
        assert np.asarray(plot.convert("L")).std() > 10
    events = EventAccumulator(str(cli.output("full") / "tensorboard"))
    events.Reload()
    for name in (KID, RATIO):
        assert [event.step for event in events.Scalars(f"evaluation/{name}")] == [3, 6]
    assert any(tag.startswith("evaluation/held_out_loss_t") for tag in events.Tags()["scalars"])
    assert [event.step for event in events.Images("loss_by_timestep")] == [3, 6]


def test_evaluation_changes_nothing_of_the_training(full: tuple[Cli, str]) -> None:
    """Weights, average and optimizer to the bit, and so order and noise."""
    cli, _ = full
    for file in ("unet", "ema", "optimizer"):
        path = f"checkpoints/step_00000006/{file}.safetensors"
        assert (cli.output("full") / path).read_bytes() == (cli.output("plain") / path).read_bytes()
    assert [r["loss"] for r in cli.metrics("full")] == [r["loss"] for r in cli.metrics("plain")]
    assert not (cli.output("plain") / "evaluation").exists()


def test_the_held_out_loss_is_the_mean_over_images(full: tuple[Cli, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out, on the weights that the run leaves: to the bit."""
    cli, _ = full
    monkeypatch.setenv("XDG_CACHE_HOME", cli.environment["XDG_CACHE_HOME"])
    values = yaml.safe_load((cli.output("full") / "config.yaml").read_text())
    config = TRAINING.parse({key: value for key, value in values.items() if key not in ("defaults", "hydra")})
    images = open_data(config.dataset, progress=False).validation
    assert images is not None
    noise_scheduler = config.noise_scheduler.build()
    objective = Objective(noise_scheduler, config.loss, config.seed)
    x_0, positions = to_model_range(images.load(range(len(images)))), torch.arange(len(images))
    drawn = objective.draw(tuple(x_0.shape[1:]), positions, (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP))
    with torch.no_grad():
        losses = objective.per_image(load_model(str(cli.output("full"))).unet, x_0, *drawn)
    assert float(losses.double().mean()) == held_out(cli, "full")[6]


def test_bins_that_hold_nothing() -> None:
    measured = (torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 9]))
    found = loss_by_timestep(*measured, num_train_timesteps=10, num_bins=4)
    assert found["edges"] == [0, 2, 5, 8, 10] and found["count"] == [1, 1, 0, 1]
    assert found["loss"] == [1.0, 2.0, None, 4.0]
    schedule = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=10))
    workers = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=False))
    inputs = SimpleNamespace(noise_scheduler=schedule, timestep_bins=4, workers=workers)
    *numbers, (name, stored) = over_timesteps(*measured, inputs)  # type: ignore[arg-type]
    assert dict(numbers) == {
        f"held_out_loss_t{part}": loss
        for part, loss in zip(("0000_0001", "0002_0004", "0008_0009"), (1.0, 2.0, 4.0), strict=True)
    }
    assert (name, stored) == ("loss_by_timestep", found)
    assert loss_by_timestep(*measured, 10, 99)["edges"] == list(range(11))


def test_the_same_for_one_and_two_processes(full: tuple[Cli, str], tmp_path: Path) -> None:
    """From equal weights, every number of the evaluation is equal to the bit."""
    before, images = full
    cli = Cli(tmp_path, before.folder / "cache/ddpm-train")
    same = (
        *(*FULL, "dataset=imagefolder", f"dataset.path={images}", "dataset.channels=1", "train.max_steps=7"),
        *(f"resume={before.output('full')}/checkpoints/step_00000006", "evaluation.batch_size=3"),
        *("optimizer.lr=1e-30", "optimizer.weight_decay=0", "allow_change=[optimizer]"),
    )
    cli.train(*same, "name=one")
    cli.together(*same, "name=two", num_processes=2)
    one, two = (json.loads((cli.output(name) / "evaluation/step_00000007.json").read_text()) for name in ("one", "two"))
    assert one == two and len(one["scores"]) == 2


def test_a_signal_while_scores_are_measured(cli: Cli, write_images: Callable[[Path, int], Path]) -> None:
    """It ends within seconds, and the resumed run measures them as if nothing had been."""
    images = write_images(cli.folder / "images", 40)
    slow = (
        *(*FULL, "dataset=imagefolder", f"dataset.path={images}", "dataset.channels=1", "evaluation.metrics=[kid]"),
        *("evaluation.num_inference_steps=50", "evaluation.num_samples=16", "evaluation.batch_size=4"),
        *("evaluation.every_steps=null", "name=default"),
    )
    process = cli.start_training(*slow)
    features = cli.folder / "cache/ddpm-train/features"  # those of the real images come before the samples
    deadline = time.monotonic() + 120
    while not list(features.glob("*.npy")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert not (cli.output() / "evaluation").exists() and "held_out_loss" not in cli.metrics()[-1]
    cli.train(*slow)
    record = cli.metrics()[-1]
    assert record["step"] == 6 and "kid_efficientnet_lite0_n16" in record and "held_out_loss" in record


@pytest.fixture
def wild(once: Once, tmp_path: Path) -> Cli:
    """A run that does not end at its best, copied to a mirror; and one that patience ends. A copy, to be changed."""

    def train(cli: Cli) -> str:
        cli.train(*WILD, "name=wild", "checkpoint.mirror=mirror")
        return cli.train(*WILD, "name=short", "train.patience=2")

    cli, said = once("wild", train)
    assert "early: held_out_loss has not improved for 2 evaluations" in said
    return Cli(shutil.copytree(cli.folder, tmp_path / "wild"))


def test_the_best_checkpoint_is_kept(wild: Cli) -> None:
    values = held_out(wild, "wild")
    best = best_of(values)
    assert best < 12 and len(values) == 12
    assert checkpoints(wild.output("wild")) == [best, 12]
    mirrored = sorted(path.name for path in (wild.folder / "mirror/wild").glob("step_*"))
    assert mirrored == [f"step_{best:08}", "step_00000012"]
    said = wild.sample("pipeline=outputs/wild/checkpoints/best", "num_images=1", "num_inference_steps=1")
    assert f"outputs/wild/checkpoints/best, step {best}, raw weights" in said
    tensors = load_file(wild.output("wild") / f"checkpoints/step_{best:08}/unet.safetensors")
    loaded = load_model(str(wild.output("wild") / "checkpoints/best")).unet.state_dict()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_an_empty_disk_gets_the_best_back(wild: Cli) -> None:
    before = checkpoints(wild.output("wild"))
    shutil.rmtree(wild.output("wild"))
    said = wild.train(*WILD, "name=wild", "checkpoint.mirror=mirror")
    assert "resumes at step 12" in said and f"best       step {before[0]} (held_out_loss" in said
    assert checkpoints(wild.output("wild")) == before


def test_stopping_and_going_on_changes_nothing_of_the_choice(wild: Cli) -> None:
    """In parts, the run keeps the same best; with patience, it ends at the same step, and goes on with more of it."""
    values = held_out(wild, "wild")
    best, so_far = 0, []
    for end in values:  # the first step with two evaluations behind its best
        so_far.append(values[end])
        best = so_far.index(min(so_far)) + 1
        if end - best >= 2:
            break
    assert end < 12 and held_out(wild, "short") == {step: values[step] for step in range(1, end + 1)}
    assert checkpoints(wild.output("short")) == [best, end]
    finished = f"short: stopped early (held_out_loss has not improved for 2 evaluations) at step {end}; nothing to do"
    assert wild.train(*WILD, "name=short", "train.patience=2").startswith(f"{finished}; to go on, add train.patience=4")
    for steps in (end - 1, 12):
        wild.train(*WILD, "name=parts", f"train.max_steps={steps}", "train.patience=2")
    assert checkpoints(wild.output("parts")) == [best, end]
    said = wild.train(*WILD, "name=parts", "train.patience=12")
    assert f"resumes at step {end}" in said and "train.patience: 2 -> 12" in said
    assert held_out(wild, "parts") == values
    assert checkpoints(wild.output("parts")) == checkpoints(wild.output("wild"))
    for step in checkpoints(wild.output("wild")):
        path = f"checkpoints/step_{step:08}/unet.safetensors"
        assert (wild.output("parts") / path).read_bytes() == (wild.output("wild") / path).read_bytes()


def test_without_keep_best_only_the_last_stays(cli: Cli) -> None:
    said = cli.train(*WILD, "train.max_steps=3", "checkpoint.keep_best=false", "objective=null")
    assert checkpoints(cli.output()) == [3] and "best" not in said
    result = json.loads((cli.output() / "result.json").read_text())
    assert result == {
        "objective": None,
        "value": None,
        "best_step": None,
        "step": 3,
        "stopped_early": False,
        "stopped_before_copying": False,
        "failed_evaluation": None,
    }
    with pytest.raises(Mistakes) as mistakes:
        load_model(f"{cli.output()}/checkpoints/best")
    assert mistakes.value.lines == (
        f"pipeline={cli.output()}/checkpoints/best: none of the checkpoints there has been evaluated by the run's "
        "objective; give one by its name",
    )


def test_the_objective_is_what_programs_that_compare_runs_read(cli: Cli) -> None:
    run = ("evaluation.every_steps=1", "lr_scheduler=constant", "ema=none", "train.max_steps=2")
    cli.train(*run)
    values = held_out(cli, "default")
    result = json.loads((cli.output() / "result.json").read_text())
    assert result == {
        "objective": "held_out_loss",
        "value": min(values.values()),
        "best_step": best_of(values),
        "step": 2,
        "stopped_early": False,
        "stopped_before_copying": False,
        "failed_evaluation": None,
    }


def test_no_held_out_images_after_all(cli: Cli, write_images: Callable[[Path, int], Path]) -> None:
    """1 % of 20 images are none: only who relies on them is told."""
    images = write_images(cli.folder / "images", 20)
    dataset = ("dataset=imagefolder", f"dataset.path={images}", "dataset.channels=1", "train.max_steps=1")
    dataset = (*dataset, "dataset.validation_fraction=0.01", "name=default")
    line = (
        "error: dataset.validation_fraction=0.01: this holds out none of 20 images, and the run is to be judged by "
        "the held-out loss; raise it\n"
    )
    assert cli.train(*dataset, "objective=held_out_loss", expect=2) == line
    cli.train(*dataset)
    assert json.loads((cli.output() / "evaluation/step_00000001.json").read_text())["held_out_loss"] is None


def selection(*values: float, patience: int | None = None, lower_is_better: bool = True) -> Selection:
    return Selection(Criterion("score", lower_is_better), patience, dict(enumerate(values, start=1)))


def test_the_best_step() -> None:
    assert selection().best() is None and selection().value is None and selection(math.nan).value is None
    assert selection(3, 1, 2).best() == 2 and selection(3, 1, 2, lower_is_better=False).best() == 1
    assert selection(2, 1, 1).best() == 2  # of equals the first
    assert selection(math.nan, 5, math.inf).best() == 2 and selection(math.nan).best() is None
    assert selection(3, 1, 2).best(among=[1, 3, 9]) == 3 and selection(3, 1).best(among=[]) is None
    assert Selection(None, 3, {}).best() is None and Selection(None, 3, {}).value is None


def test_patience() -> None:
    assert not selection(patience=1).out_of_patience
    assert not selection(1, 2, 3).out_of_patience
    assert not selection(3, 2, 1, patience=1).out_of_patience
    assert selection(2, 1, 1, patience=1).out_of_patience and not selection(2, 1, 1, patience=2).out_of_patience
    assert selection(math.nan, math.nan, patience=2).out_of_patience


def test_the_records_alone_say_it(full: tuple[Cli, str], tmp_path: Path) -> None:
    """Up to a step, and up to a line that a crash has torn."""
    cli, _ = full
    run = cli.output("full")
    values: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text()) | {"objective": "kid"}
    config = TRAINING.parse({key: value for key, value in values.items() if key not in ("defaults", "hydra")})
    found = read_selection(run, config)
    assert found.criterion == Criterion(KID, lower_is_better=True)
    assert found.values == {step: cli.metrics("full")[step - 1][KID] for step in (3, 6)}
    assert list(read_selection(run, config, until=5).values) == [3]
    assert read_selection(tmp_path, config).values == {}
    (tmp_path / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-5])
    assert list(read_selection(tmp_path, config).values) == [3]


# What goes wrong in an evaluation -------------------------------------------------------------------------------------

# From the second evaluation on, on the last process alone.
FAILING = """
import os
from ddpm_train.cli.train import main
from ddpm_train.sampling.engine import Engine
images, calls = Engine.images, []
last = os.environ.get("RANK") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1) or "RANK" not in os.environ
def failing(self, *arguments, **options):
    calls.append(None)
    if last and len(calls) > 1 and "FAIL" in os.environ:
        raise ArithmeticError("no\\nsuch picture")
    return images(self, *arguments, **options)
Engine.images = failing
main()
"""
EVALUATED = (
    *(*TINY, "train.max_steps=4", "evaluation.every_steps=2", "evaluation.batch_size=2", "lr_scheduler=constant"),
    *("dataset.validation_split=null", "dataset.validation_fraction=0.004"),  # small batches of few images
)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_evaluation_that_fails_ends_no_run(cli: Cli, num_processes: int) -> None:
    """Also on one process of two: it is told, the run comes to its end, and the same command makes up for the last."""
    (cli.folder / "failing.py").write_text(FAILING)
    command = ("failing.py", *EVALUATED, "evaluation.batch_size=4" if num_processes == 1 else "evaluation.batch_size=2")

    def run(**environment: str) -> str:
        if num_processes == 1:
            return cli.python(*command, **environment)
        processes = cli.start_together(*command, count=num_processes, **environment)
        return "".join(ended(process, 0) for process in processes)

    said = run(FAIL="1")
    assert said.count("ERROR: the evaluation of step 4 failed: ") == 1 and "Traceback" not in said
    assert "ArithmeticError: no such picture. The run goes on without it." in said
    assert "NOT done   the evaluation of step 4: " in said and "; the same command tries it again" in said
    assert "done: step 4" in said and (cli.output() / "pipeline/model_index.json").exists()
    result = json.loads((cli.output() / "result.json").read_text())
    assert "ArithmeticError: no such picture" in result["failed_evaluation"] and result["best_step"] == 2
    assert list(held_out(cli, "default")) == [2]

    said = run()
    assert "resumes at step 4" in said and "NOT done" not in said
    assert json.loads((cli.output() / "result.json").read_text())["failed_evaluation"] is None
    assert list(held_out(cli, "default")) == [2, 4] and (cli.output() / "samples/step_00000004.png").exists()
    assert "nothing to do" in run()


# Dies in its first evaluation, as by the kernel's hand, once the step is on the disk.
KILLED = """
import os, signal, time
from ddpm_train.cli.train import main
from ddpm_train.training.evaluation import Evaluation
def die(self):
    deadline = time.monotonic() + 60
    while not (self._run.checkpoints / "step_00000002").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
Evaluation.run = die
main()
"""


def test_a_step_is_saved_before_it_is_evaluated(cli: Cli) -> None:
    (cli.folder / "killed.py").write_text(KILLED)
    process = cli.fork("killed.py", *EVALUATED, "checkpoint.every_steps=2")
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert "resumes at step 2" in cli.train(*EVALUATED, "checkpoint.every_steps=2")
    assert list(held_out(cli, "default")) == [2, 4]


def test_a_tracker_that_fails_ends_no_run(cli: Cli) -> None:
    """Its folder cannot be made."""
    cli.output().mkdir(parents=True)
    (cli.output() / "tensorboard").write_text("")
    said = cli.train("train.max_steps=2", "evaluation=none")
    assert "ERROR: a tracker failed and will be opened again" in said and "done: step 2" in said


def test_a_sampler_is_tried_before_the_start(cli: Cli) -> None:
    """Not in the evaluation, when the steps are done."""
    for given, reason in {
        "sampler.final_sigmas_type=zzz": "sampler.final_sigmas_type=zzz: ",
        "sampler=pndm": "sampler=pndm: cannot sample this model",
    }.items():
        said = cli.train(given, expect=2)
        assert said.startswith(f"error: {reason}") and said.count("\n") == 1 and not cli.output().exists()
    assert "; use evaluation.num_inference_steps=" in said and "or use one of ddpm, ddim," in said
    assert "done: step 2" in cli.train("sampler=pndm", "evaluation=none", "train.max_steps=2")
