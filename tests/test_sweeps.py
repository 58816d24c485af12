"""Sweeps through the real command line: jobs in processes and folders of their own, and what is left of them all."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from filelock import FileLock
from helpers.cli import FORK_CHILDREN, Cli, Once
from helpers.runs import steps_written, wait_for
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from ddpm_train.cli.sweeps.devices import shares
from ddpm_train.cli.sweeps.jobs import chosen
from ddpm_train.cli.sweeps.summary import summarize
from ddpm_train.config.naming import MAX_LENGTH, folder_name
from ddpm_train.config.objective import Criterion

# What a job's config may be that the command line of TINY leaves open.
EXPERIMENTS = {
    "good": {},
    "better": {"noise_scheduler": {"prediction_type": "v_prediction"}},
    "diverges": {"optimizer": {"weight_decay": 1e30}},
    "cannot_begin": {"resume": "mine"},  # a folder, but no checkpoint
}
QUICK = ("train.max_steps=3", "tracker=none")


def table(sweep: Path) -> dict[str, dict[str, str]]:
    """The lines of `sweep.csv` in their order, by the jobs' folders."""
    with open(sweep / "sweep.csv", newline="") as file:
        return {Path(line["folder"]).name: line for line in csv.DictReader(file)}


def result(job: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads((job / "result.json").read_text())
    return read


@pytest.fixture
def swept(once: Once, tmp_path: Path) -> tuple[Cli, str]:
    """A sweep over three experiments: one is finished, one diverged, one could not begin. And what it said.

    A copy, to be changed.
    """

    def sweep(cli: Cli) -> str:
        for name, config in EXPERIMENTS.items():
            path = cli.folder / "mine/experiment" / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("# @package _global_\n" + yaml.safe_dump(config))
        return cli.train(
            *sweep_of("good,diverges,cannot_begin"), "hydra.launcher.max_parallel=2", expect=1, **FORK_CHILDREN
        )

    cli, said = once("swept", sweep)
    return Cli(shutil.copytree(cli.folder, tmp_path / "swept")), said


def sweep_of(experiments: str) -> tuple[str, ...]:
    return ("--multirun", "--config-dir", "mine", f"experiment={experiments}", "name=trial", *QUICK)


@pytest.mark.slow
def test_a_failed_or_diverged_job_does_not_end_the_sweep(swept: tuple[Cli, str]) -> None:
    cli, said = swept
    sweep = cli.folder / "sweeps/trial"
    jobs = table(sweep)
    assert next(iter(jobs)) == "experiment=good" and set(jobs) == {
        f"experiment={name}" for name in ("good", "diverges", "cannot_begin")
    }
    assert [jobs[f"experiment={name}"]["status"] for name in ("good", "diverges", "cannot_begin")] == [
        "finished",
        "diverged",
        "failed",
    ]
    good = sweep / "experiment=good"
    assert float(jobs["experiment=good"]["objective"]) == result(good)["value"]
    assert result(good)["objective"] == "held_out_loss" and f"held_out_loss {result(good)['value']:.4g}" in said
    assert jobs["experiment=diverges"]["objective"] == jobs["experiment=cannot_begin"]["objective"] == ""
    assert float(jobs["experiment=good"]["seconds"]) > 0 and jobs["experiment=good"]["experiment"] == "good"
    # Mirrors and trackers know a run by its name alone.
    assert yaml.safe_load((good / "config.yaml").read_text())["name"] == "trial,experiment=good"
    assert "error: resume=mine: not a whole checkpoint" in said
    assert (
        "started   1/3  experiment=" in said and "3/3  experiment=" in said and re.search(r"; about \d.* left\n", said)
    )
    assert "done: step 3" in (good / "job.log").read_text()


def test_runs_of_another_length_are_not_compared(swept: tuple[Cli, str], capsys: pytest.CaptureFixture[str]) -> None:
    """They stand below the others, and are marked; and the table is as wide as the terminal, at most."""
    sweep = swept[0].folder / "sweeps/trial"
    good, longer = (sweep / f"experiment={name}" for name in ("good", "longer"))
    shutil.copytree(good, longer)
    (longer / "config.yaml").write_text((good / "config.yaml").read_text().replace("max_steps: 3", "max_steps: 9"))
    (longer / "job.json").write_text((good / "job.json").read_text().replace("good", "longer"))
    (longer / "result.json").write_text(json.dumps(result(good) | {"value": 0.001}))
    for width in (60, 80):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", str(width))
            summarize(sweep, [good], Criterion("held_out_loss", lower_is_better=True))
        said = capsys.readouterr().out
        header, *lines = said.splitlines()[:5]
        assert all(len(line) <= width for line in [header, *lines]), said
        assert lines[0].split()[2] == "3" and lines[3].split()[:3] == ["0.001", "3", "9"]
        assert (
            "  the last 1 run in the table: of another length than this command's, and not compared with the others\n"
            in said
        )
    assert header.split() == ["held_out_loss", "best_step", "steps", "status", "seconds", "experiment"]
    names = list(table(sweep))
    assert names[0] == "experiment=good" and names[-1] == "experiment=longer"
    assert table(sweep)["experiment=longer"]["steps"] == "9"


def test_a_sweep_is_drawn(swept: tuple[Cli, str]) -> None:
    with Image.open(swept[0].folder / "sweeps/trial/sweep.png") as picture:
        assert picture.width >= 300 and picture.height >= 150  # a plot above a grid
        assert len(picture.convert("L").getcolors(2**16) or []) > 10


def test_tensorboard_shows_the_jobs_with_their_objective(swept: tuple[Cli, str]) -> None:
    """As its HParams tab reads them."""
    sweep = swept[0].folder / "sweeps/trial"
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(sweep / "tensorboard"))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(sweep / "tensorboard"))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider, multiplexer=multiplexer))
    statuses = [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE]
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=9, allowed_statuses=statuses)
    listed = list_session_groups.Handler(context.RequestContext(), backend, "", request).run()
    shown = {group.hparams["experiment"].string_value: group for group in listed.session_groups}
    assert set(shown) == {"good", "diverges", "cannot_begin"}
    (metric,) = shown["good"].metric_values
    assert metric.name.tag == "held_out_loss"
    assert metric.value == pytest.approx(result(sweep / "experiment=good")["value"], rel=1e-6)
    assert not shown["diverges"].metric_values
    assert shown["diverges"].sessions[0].status == api_pb2.STATUS_FAILURE


@pytest.mark.slow
def test_the_same_command_skips_what_has_ended_and_adds_what_is_new(swept: tuple[Cli, str]) -> None:
    """Here, that is started as the system does."""
    cli, _ = swept
    sweep = cli.folder / "sweeps/trial"
    logs = {path: path.read_bytes() for path in sweep.glob("*/job.log")}
    said = cli.train(*sweep_of("good,diverges,better"))
    assert "skipped   experiment=good: finished before" in said
    assert "skipped   experiment=diverges: diverged before" in said
    assert {path: path.read_bytes() for path in logs} == logs  # no process was started for them
    assert set(table(sweep)) == {f"experiment={name}" for name in EXPERIMENTS}
    assert (sweep / "experiment=better/result.json").exists()


def test_a_job_that_is_under_way_elsewhere_is_left_alone(cli: Cli) -> None:
    job = cli.folder / "sweeps/default/seed=1"
    job.mkdir(parents=True)
    with FileLock(job / ".lock"):  # as a run holds it that a killed sweep has left behind
        for sweep in ("seed=choice(1)", "seed=1"):  # with one choice it is a sweep, too
            said = cli.python("-m", "ddpm_train.cli.train", "--multirun", sweep, expect=75)
            assert "running   seed=1: in another process already" in said and "the same command continues" in said
    assert not (job / "job.log").exists()


def test_a_folder_that_holds_another_run_is_told_before_anything_starts(swept: tuple[Cli, str]) -> None:
    cli, _ = swept
    before = sorted(cli.folder.rglob("*"))
    said = cli.train(*sweep_of("good,better"), "dataset.random_flip=true", expect=2)
    assert "error: this config would make another run than the one in sweeps/trial/experiment=good:" in said
    assert "dataset.random_flip" in said and "allow_change" in said
    assert sorted(cli.folder.rglob("*")) == before


@pytest.mark.slow
def test_a_sweep_that_is_stopped_saves_and_goes_on(cli: Cli) -> None:
    """Its jobs differ in precision, which one process could not change."""
    command = ["train.max_steps=50", "tracker=none"]
    command += ["--multirun", "train.mixed_precision=no,bf16", "evaluation.every_steps=null"]
    first, second = (cli.folder / f"sweeps/default/train.mixed_precision={choice}" for choice in ("no", "bf16"))
    process = cli.start_training(*command, **FORK_CHILDREN)
    wait_for(lambda: steps_written(first) > 0, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "stopping (SIGTERM): the jobs save" in said and "the same command continues" in said
    saved = [int(path.name.removeprefix("step_")) for path in (first / "checkpoints").iterdir()]
    assert len(saved) == 1 and 0 < saved[0] < 50
    assert [line["status"] for line in table(cli.folder / "sweeps/default").values()] == ["stopped", "waiting"]

    said = cli.train(*command, **FORK_CHILDREN)
    assert f"resumes at step {saved[0]}" in (first / "job.log").read_text()
    assert "bf16 on cpu" in (second / "job.log").read_text() and "fp32 on cpu" in (first / "job.log").read_text()
    assert [result(job)["step"] for job in (first, second)] == [50, 50]
    lines = table(cli.folder / "sweeps/default")
    assert [line["status"] for line in lines.values()] == ["finished", "finished"]
    assert [float(line["objective"]) for line in lines.values()] == sorted(
        result(job)["value"] for job in (first, second)
    )


@pytest.mark.slow
def test_a_job_of_several_processes(cli: Cli) -> None:
    """`accelerate launch` ends with code 1 whatever the run's own was; the sweep knows better."""
    launch = ("hydra/launcher=accelerate", "hydra.launcher.num_processes=2")
    said = cli.train("--multirun", *launch, "optimizer.weight_decay=choice(1e30)", *QUICK, CUDA_VISIBLE_DEVICES="")
    job = cli.folder / "sweeps/default/optimizer.weight_decay=1e+30"
    assert "16 = 8 x 2 processes" in (job / "job.log").read_text()
    assert [line["status"] for line in table(job.parent).values()] == ["diverged"]
    assert "error: the loss or gradient is not finite" in said


def test_each_place_has_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,GPU-7,5")
    taken = [share["CUDA_VISIBLE_DEVICES"] for share in shares(None, 2)]
    assert taken == ["0,2", "GPU-7,5"]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares(6, 1)] == ["0", "2", "GPU-7", "5", "0", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads = [int(share["OMP_NUM_THREADS"]) for share in shares(2, 1)]
    assert len(threads) == 2 and threads[0] == max(1, len(os.sched_getaffinity(0)) // 2)
    assert len(shares(None, 1)) == 1


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stopped_and_prunes(cli: Cli) -> None:
    """With this seed, of two learning rates the second is the lower one, and the run learns less."""
    command = ["--multirun", "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-9,1e-3))"]
    command += [f"hydra.sweeper.{key}" for key in ("num_trials=2", "num_startup_trials=1", "seed=3")]
    command += ["tracker=none", "train.max_steps=120", "evaluation.every_steps=20"]
    sweep = cli.folder / "sweeps/default"
    process = cli.start_training(*command, **FORK_CHILDREN)
    wait_for(lambda: any(steps_written(run) for run in sweep.glob("optimizer.lr=*")), process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    (good,) = sweep.glob("optimizer.lr=*")
    cli.train(*command, **FORK_CHILDREN)
    (bad,) = set(sweep.glob("optimizer.lr=*")) - {good}
    assert "resumes at step" in (good / "job.log").read_text()
    assert result(good)["step"] == 120
    lines = table(sweep)
    assert [(name, line["status"]) for name, line in lines.items()] == [(good.name, "finished"), (bad.name, "pruned")]
    storage = JournalStorage(JournalFileBackend(str(sweep / "optuna.journal")))
    finished, pruned = optuna.load_study(study_name="sweep", storage=storage).trials
    assert finished.value == result(good)["value"] and pruned.state == optuna.trial.TrialState.PRUNED
    assert (bad / "checkpoints").is_dir() and not (bad / "result.json").exists()


@pytest.mark.slow
def test_a_requeued_job_goes_on(cli: Cli) -> None:
    """submitit warns its process and, as Slurm does, all that it has started; then starts the job again."""
    command = ["--multirun", "hydra/launcher=submitit_local", "seed=choice(3)", "train.max_steps=100", "tracker=none"]
    process = cli.start_training(*command, **FORK_CHILDREN)
    job = cli.folder / "sweeps/default/seed=3"
    wait_for(lambda: steps_written(job) > 0, process)
    run = psutil.Process(json.loads((job / ".heartbeat").read_text())["pid"])
    task = run.parent()
    assert process.pid in (each.pid for each in task.parents())
    for each in (task, run):
        each.send_signal(signal.SIGUSR2)
    said, complaints = process.communicate(timeout=240)
    assert process.returncode == 0, said + complaints
    log = (job / "job.log").read_text()
    assert "stopped (SIG" in log and "resumes at step" in log
    assert result(job)["step"] == 100
    assert [line["status"] for line in table(job.parent).values()] == ["finished"]


def test_names() -> None:
    overrides = ["model.block_out_channels=[8,16]", "seed=1", "dataset.path=/data/my cats", "train.epochs=null"]
    overrides += ["+experiment=mine", "optimizer.lr=0.0001"]
    choices = chosen(overrides, ["model.block_out_channels", "dataset.path", "train.epochs", "experiment"])
    name = folder_name(choices)
    prefix = "model.block_out_channels=8-16,dataset.path=data-my-cats-"
    assert name.startswith(prefix) and name.endswith(",train.epochs=null,experiment=mine")
    assert len(name) == len(prefix + ",train.epochs=null,experiment=mine") + 6  # of a hash


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": "x/y"}, {"a": "x-y"}),
        ({"a": "x/y"}, {"a": "x y"}),
        ({"a": "[1,2]"}, {"a": "[12]"}),
        ({"a": "[-1,2]"}, {"a": "[1,-2]"}),
        ({"a": ""}, {"a": "''"}),
        ({"a": "x" * 200}, {"a": "x" * 201}),
        ({f"key{i}": "1" for i in range(40)}, {f"key{i}": "1" for i in range(41)}),
        ({"a": "é"}, {"a": "è"}),
    ],
)
def test_other_choices_have_other_names(one: dict[str, str], other: dict[str, str]) -> None:
    names = {folder_name(one), folder_name(other)}
    assert len(names) == 2
    for name in names:
        assert len(name) <= MAX_LENGTH and not set(name) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.=,+-"
        )
