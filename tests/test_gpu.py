"""What a GPU alone can show, and that no other test sees one."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers.cli import ROOT, TINY, Cli
from helpers.gpu import HIDDEN, REHEARSING, GpuCli
from helpers.runs import same_checkpoint
from PIL import Image

from ddpm_train.runs.checkpoint import Retention
from ddpm_train.training.saving import Saver

WATCHED = str(ROOT / "tests/helpers/watched_train.py")
SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
BRIEF = ("tracker=none", "evaluation=none", "lr_scheduler=constant")


def test_no_program_of_a_test_sees_a_gpu(cli: Cli) -> None:
    process = cli.fork("-c", SHOW)
    environments = [
        dict(os.environ),
        psutil.Process(process.pid).parent().environ(),  # the fork server, which has imported diffusers
        json.loads(process.communicate()[0]),
        json.loads(cli.run([sys.executable, "-c", SHOW])),
        *map(json.loads, cli.python_together("-c", SHOW, count=2).splitlines()),
    ]
    assert all(environment.items() >= HIDDEN.items() for environment in environments)


def test_saving_what_is_on_the_cpu_waits_for_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and yet nothing is on it
    saver = Saver(tmp_path, Retention(1, None), 1, lambda path: None, print)
    saver.save(1, {"unet": {"weight": torch.ones(2)}}, {})
    saver.close()
    saver.check()


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", ["null", "4"])
def test_a_step_never_waits_for_the_gpu(gpu_cli: GpuCli, micro_batch_size: str) -> None:
    run = ("tracker=none", "dataset.random_flip=true", "model.dropout=0.1", f"train.micro_batch_size={micro_batch_size}")
    for device_cache in ("true", "false"):
        watched = (*TINY, *run, f"dataset.device_cache={device_cache}", f"name={device_cache}")
        assert "'waiting': 0" in gpu_cli.python(WATCHED, "syncs", *watched)


@pytest.mark.slow
def test_a_run_on_the_gpu_computes_as_it_was_asked_and_resumes(gpu_cli: GpuCli) -> None:
    fast = ("train.mixed_precision=bf16", "train.channels_last=true", "train.attention=math", "dataset.crop=random")
    said = gpu_cli.train(*BRIEF, *fast, "train.max_steps=3")
    assert "bf16 + channels_last + math attention on " in said and (" on cpu" in said) == REHEARSING
    gpu_cli.train(*BRIEF, *fast)
    assert [record["step"] for record in gpu_cli.metrics()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_deterministic_run_on_the_gpu_resumes_to_the_bit(gpu_cli: GpuCli) -> None:
    run = (*BRIEF, "train.deterministic=true", "dataset.random_flip=true", "model.dropout=0.1")
    gpu_cli.train(*run, "name=whole")
    gpu_cli.train(*run, "name=parts", "train.max_steps=3")
    gpu_cli.train(*run, "name=parts")
    same_checkpoint(gpu_cli.output("parts"), gpu_cli.output("whole"), step=6)


@pytest.mark.slow
def test_the_gpu_makes_the_images_of_the_cpu(gpu_cli: GpuCli, trained: Path) -> None:
    sample = (f"pipeline={trained}", "num_images=4", "mixed_precision=no", "num_inference_steps=5")
    gpu_cli.sample(*sample, "output=gpu")
    ended = Cli(gpu_cli.folder).sample(*sample, "output=cpu")
    assert "4 images" in ended
    for picture in sorted((gpu_cli.folder / "cpu").rglob("*.png")):
        ours = np.asarray(Image.open(gpu_cli.folder / "gpu" / picture.relative_to(gpu_cli.folder / "cpu")), float)
        assert np.abs(ours - np.asarray(Image.open(picture), float)).mean() < 2
