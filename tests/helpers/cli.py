"""The real command lines, in an empty folder, with a small model that trains in a second."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from helpers.forked import TESTS, Fork, free_port

ROOT = TESTS.parent
AT_START = TESTS / "helpers/at_start"
# With one of glibc's settings given, programs leave the others as they are, too: see `helpers/watched_train.py`.
LEAN = {"MALLOC_ARENA_MAX": "1"}
# A forked program forks the Pythons that it starts, too: see `helpers/fork_server.py`.
FORK_CHILDREN = {"FORK_CHILDREN": "1"}
# The smallest UNet with an attention level, 8 x 8 images, a handful of steps: about a second of training.
TINY = (
    "dataset.resolution=8",
    "dataset.num_workers=2",
    "model.block_out_channels=[8,16]",
    "model.down_block_types=[DownBlock2D,AttnDownBlock2D]",
    "model.up_block_types=[AttnUpBlock2D,UpBlock2D]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=8",
    "lr_scheduler=cosine",  # which keeps no checkpoint of its own
    "lr_scheduler.warmup_steps=0",
    "optimizer.lr=1e-3",
    "train.batch_size=16",
    "train.mixed_precision=no",
    "train.channels_last=false",
    "train.attention=fused",
    "train.compile=false",
    "train.max_steps=6",
    "train.log_every_steps=2",
    "evaluation.num_images=4",
    "evaluation.num_inference_steps=2",
    "evaluation.batch_size=512",  # the held-out images at once
)
Process = Fork | subprocess.Popen[str]


class Cli:
    """Runs programs the way a user does, in an empty folder with a cache of its own.

    `start` and `run` start a program as the system does, which takes seconds of imports; all else is forked from a
    process that has paid for them.
    """

    def __init__(self, folder: Path, prepared: Path | None = None) -> None:
        """`prepared`: what the cache begins with."""
        self.folder = folder
        if prepared is not None:
            shutil.copytree(prepared, folder / "cache/ddpm-train")
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "ACCELERATE_"))},
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HOME": str(folder / "hf"),
            "PYTHONPATH": f"{AT_START}:{ROOT}",
        }
        self._started: list[Process] = []

    def start(
        self, command: Sequence[str], pass_fds: Sequence[int] = (), **environment: str
    ) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, command: Sequence[str], expect: int = 0, **environment: str) -> str:
        """Run to the end; returns stdout and stderr together."""
        return ended(self.start(command, **environment), expect)

    def fork(self, *python: str, session: bool = False, **environment: str) -> Fork:
        """`python ARGUMENTS` under way."""
        process = Fork(python, self.folder, {**self.environment, **environment}, session=session)
        self._started.append(process)
        return process

    def python(self, *python: str, expect: int = 0, **environment: str) -> str:
        """`python ARGUMENTS` to its end; returns stdout and stderr together."""
        return ended(self.fork(*python, **environment), expect)

    def start_training(self, *overrides: str, session: bool = False, **environment: str) -> Fork:
        """`ddpm-train OVERRIDES` with the tiny model, under way."""
        return self.fork("-m", "ddpm_train.cli.train", *TINY, *overrides, session=session, **environment)

    def train(self, *overrides: str, expect: int = 0, **environment: str) -> str:
        """`ddpm-train OVERRIDES` with the tiny model."""
        return self.python("-m", "ddpm_train.cli.train", *TINY, *overrides, expect=expect, **environment)

    def together(self, *overrides: str, num_processes: int, expect: int = 0) -> str:
        """The same in several processes."""
        return self.python_together("-m", "ddpm_train.cli.train", *TINY, *overrides, count=num_processes, expect=expect)

    def sample(self, *arguments: str, expect: int = 0) -> str:
        """`ddpm-sample ARGUMENTS`."""
        return self.python("-m", "ddpm_train.cli.sample", *arguments, expect=expect)

    def evaluate(self, *arguments: str, expect: int = 0, num_processes: int = 1, **environment: str) -> str:
        """`ddpm-evaluate ARGUMENTS`."""
        python = ("-m", "ddpm_train.cli.evaluate", *arguments)
        if num_processes == 1:
            return self.python(*python, expect=expect, **environment)
        return self.python_together(*python, count=num_processes, expect=expect, **environment)

    def start_training_together(self, *overrides: str, num_processes: int) -> list[Fork]:
        """The same, under way."""
        return self.start_together("-m", "ddpm_train.cli.train", *TINY, *overrides, count=num_processes)

    def start_together(self, *python: str, count: int, **environment: str) -> list[Fork]:
        """That many processes of `python ARGUMENTS`, which find each other as those that torchrun starts."""
        return [self.fork(*python, **environment, **rank) for rank in ranks(count)]

    def python_together(self, *python: str, count: int, expect: int = 0, **environment: str) -> str:
        """The same to their end; returns what all of them said. Each must end with that exit code."""
        processes = self.start_together(*python, count=count, **environment)
        with ThreadPoolExecutor(count) as pool:
            return "".join(pool.map(lambda process: ended(process, expect), processes))

    def metrics(self, name: str = "default") -> list[dict[str, Any]]:
        lines = (self.folder / "outputs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def output(self, name: str = "default") -> Path:
        return self.folder / "outputs" / name

    def close(self) -> None:
        """Leave no process behind, also where a test fails."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()


# Makes a folder once for all tests that read it: see the fixture of that name.
Once = Callable[[str, Callable[[Cli], str]], tuple[Cli, str]]


def ranks(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of that many CPU processes, in its environment."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "True"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def ended(process: Process, expect: int) -> str:
    """What a process says until its end, to stdout and stderr; it must have that exit code."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == expect, f"exit {process.returncode}, not {expect}\n{out}\n{err}"
    return out + err


def launch_command(num_processes: int) -> list[str]:
    """`accelerate launch` as a module, with so many CPU processes and any port that is free; the program follows."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(num_processes)),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ]
