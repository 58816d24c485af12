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
FAST = ("train.mixed_precision=bf16", "train.channels_last=true", "train.attention=math", "tracker=none")


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
    saver = Saver(tmp_path, Retention(1, None), 1, *[lambda path: None] * 3, print)
    saver.save(1, {"unet": {"weight": torch.ones(2)}}, {})
    saver.close()
    saver.check_saved()


@pytest.mark.slow
@pytest.mark.parametrize(("micro_batch_size", "device_cache"), [("null", "true"), ("4", "false")])
def test_a_step_never_waits_for_the_gpu(gpu_cli: GpuCli, micro_batch_size: str, device_cache: str) -> None:
    run = ("tracker=none", "dataset.random_flip=true", "model.dropout=0.1", f"dataset.device_cache={device_cache}")
    said = gpu_cli.python(WATCHED, "syncs", *TINY, *run, f"train.micro_batch_size={micro_batch_size}")
    assert "'waiting': 0" in said and (" on cpu" in said) == REHEARSING


@pytest.mark.slow
def test_a_deterministic_run_on_the_gpu_resumes_to_the_bit(gpu_cli: GpuCli) -> None:
    run = (*FAST, "evaluation=none", "lr_scheduler=constant", "train.deterministic=true", "model.dropout=0.1")
    gpu_cli.train(*run, "name=whole")
    gpu_cli.train(*run, "name=parts", "train.max_steps=3")
    said = gpu_cli.train(*run, "name=parts")
    assert "bf16 + channels_last + math attention on " in said and (" on cpu" in said) == REHEARSING
    same_checkpoint(gpu_cli.output("parts"), gpu_cli.output("whole"), step=6)


@pytest.mark.slow
def test_the_gpu_makes_the_images_of_the_cpu(gpu_cli: GpuCli) -> None:
    gpu_cli.train("tracker=none", "evaluation=none", "train.max_steps=2")
    sample = ("-m", "ddpm_train.cli.sample", f"pipeline={gpu_cli.output()}", "num_images=4", "mixed_precision=no")
    for name, environment in (("gpu", {}), ("cpu", HIDDEN)):
        gpu_cli.python(*sample, f"output={name}", **environment)
    pictures = sorted(path.relative_to(gpu_cli.folder / "cpu") for path in (gpu_cli.folder / "cpu").rglob("*.png"))
    assert len(pictures) >= 4
    for picture in pictures:
        ours, theirs = (np.asarray(Image.open(gpu_cli.folder / name / picture), float) for name in ("gpu", "cpu"))
        assert np.abs(ours - theirs).mean() < 2  # of 255
