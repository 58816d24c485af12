"""Workers that load images: wherever there is no shared memory, and where they die or hang."""

import os
import signal
from contextlib import closing

import psutil
import pytest
import torch
from helpers.cli import TINY, Cli, Process
from helpers.runs import REQUEUE, saved_whole, steps_written, wait_for
from torch import Tensor

from ddpm_train.data import workers
from ddpm_train.data.workers import LoadingFailed, Workers

CPU = torch.device("cpu")
LONG = (
    *("dataset.cache=none", "train.max_steps=100000", "evaluation=none", "tracker=none"),
    *("lr_scheduler=constant", "train.log_every_steps=1"),
)
# /dev/shm as small as a file system can be, for this process and its children alone.
NO_SHARED_MEMORY = """
import ctypes, subprocess
if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
    raise SystemExit("skip")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/dev/shm"], check=True)
from ddpm_train.cli.train import main
"""
WORKERS_AT_ONCE = "from ddpm_train.data import decode_all\ndecode_all._ALONE_SECONDS = decode_all._PACE_SECONDS = 0\n"


def children(process: Process) -> list[psutil.Process]:
    return [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]


def test_a_run_needs_no_shared_memory(cli: Cli) -> None:
    """Containers have 64 MB of it by default; here there is not even room for a lock, which workers that prepare images
    would need."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    small = ("train.max_steps=2", "evaluation=none", "tracker=none")
    small = (*TINY, *small, "dataset.resolution=32", "dataset.cache=none")
    said = cli.python("-c", NO_SHARED_MEMORY + WORKERS_AT_ONCE + "main()", *small)
    assert "done: step 2" in said
    assert (
        "warning: no worker to prepare images can be started (No space left on device); they would be prepared sooner "
        "with room in /dev/shm\n"
    ) in said


def test_a_run_whose_worker_is_killed_saves_and_says_so(cli: Cli) -> None:
    process = cli.start_training(*LONG)
    wait_for(lambda: steps_written(cli.output()) >= 5, process)
    loading = children(process)
    assert len(loading) == 2
    loading[0].kill()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and saved_whole(cli.output()), err
    assert err == (
        "error: dataset.num_workers=2: a worker was killed (SIGKILL) while it loaded images, perhaps because "
        "memory ran out. The same command continues, also with fewer workers\n"
    )
    assert not any(each.is_running() for each in loading)


def test_a_run_whose_workers_hang_answers_signals(cli: Cli) -> None:
    """As on a disk that does not answer; stopped workers do not hear SIGTERM either."""
    process = cli.start_training(*LONG)
    wait_for(lambda: steps_written(cli.output()) >= 5, process)
    loading = children(process)
    for each in loading:
        each.suspend()
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == REQUEUE and saved_whole(cli.output()), err
    assert "stopped (SIGTERM); the same command continues\n" in out and err == ""
    assert not any(each.is_running() for each in loading)


def hang(positions: Tensor) -> Tensor:
    signal.pause()
    return positions


def fail(positions: Tensor) -> Tensor:
    if positions[0] == 3:
        raise KeyError("the third")
    return positions.to(torch.uint8)


def test_waiting_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE_SECONDS", 0.5)
    seconds: list[float] = []
    hanging = Workers(hang, iter([torch.arange(3)]), num_workers=1, device=CPU, waiting=seconds.append)
    with (
        closing(hanging),
        pytest.raises(LoadingFailed, match=r"dataset\.num_workers=1: no worker has loaded a batch for "),
    ):
        next(iter(hanging))
    assert seconds and seconds[-1] > 0.5


def test_an_error_in_a_worker_is_told_where_its_batch_would_stand() -> None:
    """Those before it come whole and in order, whatever else is done at the time."""
    positions = (torch.arange(start, start + 300_000) for start in range(5))
    failing = Workers(fail, positions, num_workers=2, device=CPU, waiting=lambda seconds: None)
    found = []
    with (
        closing(failing),
        pytest.raises(RuntimeError, match=r"in a worker that loads images:\n(.|\n)*KeyError: 'the th"),
    ):
        for asked, loaded in failing:
            assert torch.equal(asked.to(torch.uint8), loaded)
            found.append(int(asked[0]))
    assert found == [0, 1, 2]
