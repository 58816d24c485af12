"""A disk that is full, for real: a line and the exit code 4, and what was on it stays whole."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.cli import Cli, ended
from helpers.runs import steps_written, wait_for

from ddpm_train.runs.folder import read_records
from ddpm_train.system.failures import disk_remedy, is_refused_by_disk
from ddpm_train.training.records import Records


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Leave so many bytes free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        status = os.statvfs(disk)
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - leave)))
    return filler


def refused(said: str) -> bool:
    """Whether the last line says why, and there is no traceback."""
    last = said.splitlines()[-1]
    return last.startswith("error: ") and "No space left on device" in said and "Traceback" not in said


def test_a_run(cli: Cli, disk: Path, trained: Path) -> None:
    """At its start; at its end, when the pipeline is saved; given the same command again, it is done."""
    where = (f"output_dir={disk}/run", "tracker=none", "checkpoint.keep_last=1", "evaluation=none")
    filler = fill(disk, leave=0)
    said = cli.train(*where, expect=4)
    assert refused(said) and said.count("\n") == 1
    assert said.endswith(". Make room, or choose another folder; the same command continues\n")
    filler.unlink()
    cli.train(*where)
    shutil.rmtree(disk / "run/pipeline")
    filler = fill(disk, leave=40_000)
    said = cli.train(*where, expect=4)
    assert refused(said) and "resumes at step 6" in said
    filler.unlink()
    assert "done: step 6" in cli.train(*where)
    assert (disk / "run/pipeline/model_index.json").exists()


def test_a_disk_that_turns_read_only_under_a_run(cli: Cli, disk: Path) -> None:
    """As a file system does after an error of its device; once it is mended, the same command goes on."""
    run = disk / "run"
    long = (f"output_dir={run}", "tracker=none", "evaluation=none", "train.max_steps=100000", "checkpoint.keep_last=1")
    process = cli.start_training(*long, "checkpoint.every_steps=20")
    wait_for(lambda: steps_written(run) >= 10, process)
    process.send_signal(signal.SIGSTOP)  # where a file is open for writing, nothing can be made read-only
    subprocess.run(["mount", "--bind", run, run], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", run], check=True)
    process.send_signal(signal.SIGCONT)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        subprocess.run(["umount", "-l", run], check=True)
    assert process.returncode == 4 and "Traceback" not in err, out + err
    assert err.splitlines()[-1].startswith("error: ") and "Read-only file system" in err
    cli.train(*long, f"train.max_steps={steps_written(run) + 1}")


def test_tensorboard(cli: Cli, disk: Path) -> None:
    """A disk of its own that is full does not end the run, and is told in lines."""
    cli.output().mkdir(parents=True)
    (cli.output() / "tensorboard").symlink_to(disk)
    fill(disk, leave=0)
    said = cli.train("train.max_steps=2", "train.log_every_steps=1", "evaluation=none")
    assert "done: step 2" in said and "No space left on device" in said and "Traceback" not in said


def test_samples_and_scores(cli: Cli, disk: Path, trained: Path) -> None:
    """Also of two processes, which both end with that code; what is there is completed later."""
    sample = (f"pipeline={trained}", "num_inference_steps=1", "mixed_precision=no", f"output={disk}/samples")
    filler = fill(disk, leave=20_000)
    assert refused(cli.sample(*sample, "num_images=16", expect=4))
    processes = cli.start_together("-m", "ddpm_train.cli.sample", *sample, "num_images=16", count=2)
    assert "No space left on device" in "".join(ended(process, 4) for process in processes)
    fill(disk, leave=0)
    evaluate = ("metrics=[held_out_loss]", f"output={disk}/scores")
    assert refused(cli.evaluate(f"pipeline={trained}", *evaluate, expect=4))
    filler.unlink()
    assert "of 16 images" in cli.sample(*sample, "num_images=16")


def test_a_sweep(disk: Path) -> None:
    fill(disk, leave=0)
    said = Cli(disk).train("--multirun", "seed=1,2", expect=4)
    assert refused(said) and said.endswith(". Make room, then give the same command again\n")


def test_records(disk: Path) -> None:
    """What the disk has taken of them is not there twice once it takes the rest."""
    accelerator, said = Accelerator(cpu=True), []
    path = disk / "metrics.jsonl"
    records = Records(path, accelerator, 0, log=lambda records: None, warn=said.append)

    def note(steps: range) -> None:
        for step in steps:
            records.record(step, 16 * step, 1e-3, torch.tensor(0.5), torch.tensor(1.0))
        records.read_back()
        records.write()

    note(range(1, 11))
    filler = fill(disk, leave=8192)
    note(range(11, 211))
    assert records.unwritten is not None and "No space left on device" in said[0]
    assert 10 < path.read_bytes().count(b"\n") < 210
    note(range(211, 221))
    filler.unlink()
    note(range(221, 231))
    assert records.unwritten is None and len(said) == 1
    assert [record["step"] for record in read_records(disk)] == list(range(1, 231))
    AcceleratorState._reset_state(reset_partial_state=True)


WAIT = "Wait until the disk works again"


def test_what_helps() -> None:
    """Making room does not help against a server of files that has lost them."""
    for number, remedy in {errno.EDQUOT: "Make room", **dict.fromkeys((errno.ESTALE, errno.ENOTCONN), WAIT)}.items():
        error = OSError(number, os.strerror(number))
        assert is_refused_by_disk(error) and disk_remedy(error) == remedy
