"""torchrun with a number of nodes that may change: workers die, nodes join and leave, the run ends where it would have.

Two nodes are two launchers on one machine, which meet at a loopback port as they would over a network.
"""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers.cli import FORK_CHILDREN, ROOT, TINY, Cli
from helpers.forked import free_port
from safetensors.torch import load_file

RUN = (
    *("train.max_steps=120", "checkpoint.every_steps=10", "evaluation=none", "lr_scheduler=constant"),
    *("dataset.crop=random", "dataset.random_flip=true", "tracker=none"),
)
# By default the launchers share a store, and one that joins later waits in it for an address that nobody puts there
# (torch 2.15; the variable comes from pytorch/pytorch#135712).
ELASTIC = {"ACCELERATE_USE_CPU": "True", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **FORK_CHILDREN}


# `python -c INTO_A_FILE LOG MODULE ARGUMENTS…`
INTO_A_FILE = """
import os, runpy, sys
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


class Node:
    """One `torchrun`, with one worker."""

    def __init__(self, cli: Cli, name: str, port: int) -> None:
        self.log = cli.folder / f"{name}.log"
        self.log.touch()
        torchrun = ["torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"]
        torchrun += ["--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
        # One that may still come is waited for so many seconds; by default 30. Who is silent for 15 s has vanished,
        # which is the default: a launcher may have to wait long for a processor.
        torchrun += ["--rdzv-conf=last_call_timeout=3", "--local-addr=127.0.0.1", "--monitor-interval=0.2"]
        command = [*torchrun, str(ROOT / "train.py"), *TINY, *RUN]
        self.launcher = cli.fork("-c", INTO_A_FILE, str(self.log), *command, session=True, **ELASTIC)

    def worker(self) -> psutil.Process:
        """The newest child: others fork what the launcher starts, or loaded images for a worker that died."""
        return max(psutil.Process(self.launcher.pid).children(), key=lambda child: child.pid)

    def leave(self) -> None:
        """Vanish, as a machine does whose power fails."""
        family = [psutil.Process(self.launcher.pid), *psutil.Process(self.launcher.pid).children(recursive=True)]
        for process in family:
            process.kill()
        self.launcher.wait()


def wait_for(condition: Callable[[], bool], *nodes: Node, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        for node in nodes:
            assert node.launcher.poll() is None, node.log.read_text()
        assert time.monotonic() < deadline, [node.log.read_text() for node in nodes]
        time.sleep(0.01)


def is_asked_to_stop(process: psutil.Process) -> bool:
    pending = re.findall(r"(?:SigPnd|ShdPnd):\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in pending)


@pytest.mark.slow
def test_workers_die_and_nodes_join_and_leave(cli: Cli) -> None:
    def steps() -> int:
        metrics = cli.output() / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def count(text: str) -> int:
        return sum(node.log.read_text().count(text) for node in nodes)

    def newest() -> str:
        return f"{int(sorted((cli.output() / 'checkpoints').glob('step_*'))[-1].name.removeprefix('step_')):,}"

    port = free_port()
    first = Node(cli, "first", port)
    nodes = [first]
    try:
        wait_for(lambda: steps() >= 20, first)
        victim = first.worker()
        victim.kill()
        victim.wait(timeout=60)
        killed_after = newest()
        wait_for(lambda: count("resumes at step ") == 1, first)
        killed_at = steps()
        wait_for(lambda: steps() >= killed_at + 10, first)

        frozen = first.worker()
        frozen.suspend()  # until the other node is there, so that the run does not end before
        second = Node(cli, "second", port)
        nodes.append(second)
        wait_for(lambda: is_asked_to_stop(frozen), first, second)
        frozen.resume()
        frozen.wait(timeout=60)
        stopped_at = newest()
        wait_for(lambda: count("16 = 8 x 2 processes") == 1, first, second)
        # A node that joins costs no step: the workers are asked to stop, and save.
        wait_for(lambda: count(f"resumes at step {stopped_at}") == 1, first, second)

        joined_at = steps()
        wait_for(lambda: steps() >= joined_at + 10, first, second)
        second.leave()
        assert first.launcher.wait(timeout=180) == 0, first.log.read_text()
    finally:
        for node in nodes:
            if node.launcher.poll() is None:
                node.leave()
    assert count(f"resumes at step {killed_after}") >= 1 and count("stopped (SIGTERM)") == 1
    assert count("resumes at step ") == 3 and count("done: step 120") == 1
    assert [record["step"] for record in cli.metrics()] == list(range(1, 121))
    cli.train(*RUN, "name=undisturbed")
    ours, theirs = (load_file(cli.output(name) / "checkpoints/step_00000120/unet.safetensors") for name in
                    ("default", "undisturbed"))  # fmt: skip
    difference = sum(float((ours[key] - theirs[key]).square().sum()) for key in ours) ** 0.5
    assert difference <= 1e-4 * sum(float(value.square().sum()) for value in theirs.values()) ** 0.5
    for disturbed, undisturbed in zip(cli.metrics(), cli.metrics("undisturbed"), strict=True):
        assert disturbed["loss"] == pytest.approx(undisturbed["loss"], rel=1e-4)
