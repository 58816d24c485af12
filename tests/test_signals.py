"""A run that is asked to stop before there is anything to save, that loses its terminal, or whose launcher dies."""

import os
import pty
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.cli import ROOT, TINY, Cli, launch_command
from helpers.runs import REQUEUE, saved_whole, steps_written, wait_for

from ddpm_train.runs.lock import is_held

LONG = ("train.max_steps=100000", "evaluation=none", "tracker=none", "lr_scheduler=constant", "train.log_every_steps=1")
MAIN = "from ddpm_train.cli.train import main\n"
# Tells of each backward pass: of this network it is one call of C that takes some ten seconds.
TELLS = """
import torch
backward = torch.Tensor.backward
def telling(self, *arguments, **options):
    print("backward", flush=True)
    backward(self, *arguments, **options)
torch.Tensor.backward = telling
"""
# Goes on for ever in C at a call of the network: no handler of Python runs any more.
ENDLESS = """
import ctypes
from diffusers import UNet2DModel
forward, calls = UNet2DModel.forward, 0
def endless(self, *arguments, **options):
    global calls
    calls += self.training == {training}
    if calls == {calls}:
        libc, lock = ctypes.CDLL(None), ctypes.c_int()
        libc.pthread_spin_init(ctypes.byref(lock), 0)
        print("endless", flush=True)
        libc.pthread_spin_lock(ctypes.byref(lock)), libc.pthread_spin_lock(ctypes.byref(lock))
    return forward(self, *arguments, **options)
UNet2DModel.forward = endless
"""
SLOW = (
    *("dataset.resolution=96", "model.block_out_channels=[256,256]", "train.mixed_precision=auto"),
    *("train.batch_size=4", "evaluation=none", "tracker=none"),
)
# A session of its own whose terminal is argument 1, as a login shell has one.
IN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
terminal = os.open(sys.argv.pop(1), os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for number in (0, 1, 2):
    os.dup2(terminal, number)
"""
UNDER_NOHUP = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
IN_BACKGROUND = "import os\nif os.fork():\n    os._exit(0)\n"


@pytest.mark.slow
def test_a_signal_while_auto_is_measured_is_answered_in_seconds(cli: Cli) -> None:
    process = cli.fork("-c", TELLS + MAIN + "main()", *TINY, *SLOW)
    assert process.stdout.readline().startswith("measuring ") and process.stdout.readline() == "backward\n"
    cpu_times = psutil.Process(process.pid).cpu_times
    begun = cpu_times().user
    wait_for(lambda: cpu_times().user > begun + 0.5, process)  # that call is under way
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping; press Ctrl-C again to leave at once\n"
    out, err = process.communicate(timeout=60)
    assert process.returncode == REQUEUE and time.monotonic() - asked < 5, err
    assert out == "stopped (SIGINT); the same command continues\n" and err == ""
    assert not is_held(cli.output())


SAVING = "finishing the step, saving; press Ctrl-C again to leave at once\n"
STOPPING = "stopping; press Ctrl-C again to leave at once\n"


@pytest.mark.parametrize(
    ("program", "training", "answer"),
    [("train", True, SAVING), ("train", False, SAVING), ("sample", False, STOPPING), ("evaluate", False, STOPPING)],
    ids=["in a step", "in an evaluation", "ddpm-sample", "ddpm-evaluate"],
)
def test_ctrl_c_is_answered_at_once_and_a_second_one_leaves(
    cli: Cli, trained: Path, program: str, training: bool, answer: str
) -> None:
    """Also while the program is in a call that lets no handler of Python run, and does not end."""
    arguments = {
        "train": (*TINY, *LONG, "evaluation=grid", "evaluation.every_steps=3"),
        "sample": (f"pipeline={trained}", "output=samples"),
        "evaluate": (f"pipeline={trained}", "metrics=held_out_loss", "output=evaluation"),
    }[program]
    endless = ENDLESS.format(calls=5 if program == "train" else 1, training=training)
    process = cli.fork("-c", f"{endless}\nfrom ddpm_train.cli.{program} import main\nmain()", *arguments)
    assert "endless\n" in iter(process.stdout.readline, "")
    cpu_times = psutil.Process(process.pid).cpu_times
    begun = cpu_times().user
    wait_for(lambda: cpu_times().user > begun + 0.2, process)  # that call is under way
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == answer
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_closed_terminal_asks_a_run_to_stop(cli: Cli) -> None:
    ours, theirs = pty.openpty()
    process = cli.fork("-c", IN_TERMINAL + MAIN + "main()", os.ttyname(theirs), *TINY, *LONG, session=True)
    wait_for(lambda: steps_written(cli.output()) >= 5, process)
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=30) == REQUEUE
    assert saved_whole(cli.output())


def test_a_run_under_nohup_outlives_its_terminal(cli: Cli) -> None:
    process = cli.fork("-c", UNDER_NOHUP + MAIN + "main()", *TINY, *LONG)
    wait_for(lambda: steps_written(cli.output()) >= 5, process)
    process.send_signal(signal.SIGHUP)
    seen = steps_written(cli.output())
    wait_for(lambda: steps_written(cli.output()) >= seen + 10, process)
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == REQUEUE and "stopped (SIGTERM)" in out


def test_a_run_in_the_background_outlives_its_shell(cli: Cli) -> None:
    cli.python("-c", IN_BACKGROUND + MAIN + "main()", *TINY, "train.max_steps=40", "evaluation=none")
    wait_for((cli.output() / "result.json").exists)
    assert steps_written(cli.output()) == 40


@pytest.mark.parametrize("closed", ["out", "err"])
def test_a_reader_that_leaves_does_not_end_the_run(cli: Cli, closed: str) -> None:
    """`ddpm-train | head`: nothing that is printed is worth a run."""
    process = cli.start_training("train.max_steps=30", "evaluation=none", "train.log_every_steps=1")
    (process.stdout if closed == "out" else process.stderr).close()
    assert process.wait(timeout=60) == 0
    assert steps_written(cli.output()) == 30 and (cli.output() / "result.json").exists()


CPU_CONFIG = str(ROOT / "launch/accelerate/cpu.yaml")
LAUNCHERS = {
    "accelerate, two processes": (launch_command(2), "16 = 8 x 2 processes", signal.SIGTERM),
    "accelerate, the config for CPUs": (
        [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", CPU_CONFIG],
        "16 = 16 x 1 process x 1 accumulated",
        signal.SIGTERM,
    ),
    "torchrun": (
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--standalone"],
        "16 = 16 x 1 process x 1 accumulated",
        signal.SIGKILL,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_saves_and_leaves_when_its_launcher_dies(cli: Cli, launcher: str) -> None:
    command, batch, number = LAUNCHERS[launcher]
    process = cli.start([*command, str(ROOT / "train.py"), *TINY, *LONG], ACCELERATE_USE_CPU="True")
    try:
        wait_for(lambda: steps_written(cli.output()) >= 5, process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(timeout=30) == -number
        assert psutil.wait_procs(family, timeout=30)[1] == []
    finally:
        for left in psutil.wait_procs(family, timeout=0)[1]:
            left.kill()
    out, _ = process.communicate()
    assert batch in out and "stopped (" in out and "; the same command continues" in out
    assert saved_whole(cli.output()) and not is_held(cli.output())
