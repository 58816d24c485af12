"""The programs, and the Hub's real clients, against the test hub: no request may leave this machine."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from conftest import ROOT, TINY, Cli
from forked import become
from loopback_hub import LoopbackHub

TOKEN = "hf_right"
GUARD = ROOT / "tests/only_loopback"
_numbers = count()
PUSH_SECONDS = ("hub.retry_minutes=0.1", "hub.stall_seconds=2", "hub.finish_minutes=1")


class HubCli(Cli):
    """Runs programs as a user does whose Hub is `hub` and who is logged in there."""

    def __init__(self, folder: Path, hub: LoopbackHub) -> None:
        super().__init__(folder)
        self.hub = hub
        self.strays = folder / "strays.txt"
        kept = {key: self.environment[key] for key in ("XDG_CACHE_HOME", "OMP_NUM_THREADS")}
        self.environment = {
            **hub.environment(folder / "hf", TOKEN),
            **kept,
            "PYTHONPATH": f"{GUARD}:{ROOT}",
            "STRAYS": str(self.strays),
        }

    def train(self, *overrides: str, expect: int = 0, **environment: str) -> str:
        return super().train(*PUSH_SECONDS, *overrides, expect=expect, **environment)

    def started(self, *overrides: str) -> "Fork":
        """The same, under way."""
        return self.fork(lambda: _main("train", *TINY, *PUSH_SECONDS, *overrides))

    def push(self, *arguments: str, expect: int = 0, **environment: str) -> str:
        """`ddpm-push ARGUMENTS`."""
        return self.run_main("push", *arguments, expect=expect, **environment)

    def run_main(self, program: str, *arguments: str, expect: int = 0, **environment: str) -> str:
        return self._forked(f"ddpm_train.cli.{program}", arguments, expect, environment)

    def fork(self, action: Callable[[], None], **environment: str) -> "Fork":
        """Do something in a fork of this process."""
        for module in ("ddpm_train.training.train", "torch.utils.tensorboard"):
            importlib.import_module(module)
        said = self.folder / f"said_{next(_numbers)}.txt"
        said.write_text("")
        child = os.fork()
        if child == 0:
            become(action, self.folder, {**self.environment, **environment}, said)
        return Fork(child, said)

    def images(self, repo_id: str, revision: str = "main") -> str:
        """What plain diffusers makes of the repository in a new process: three images, as the hash of their pixels."""
        code = f"import sys; sys.path.append({str(ROOT / 'tests')!r}); import hub_client\n"
        return self.python(f"{code}print(hub_client.hash_of_images({repo_id!r}, {revision!r}))").splitlines()[0]

    def python(self, code: str, **environment: str) -> str:
        """Run Python code in a new process, as a user of the repository would."""
        return self.run([sys.executable, "-c", code], **environment)

    def check_hosts(self) -> None:
        assert not self.strays.exists(), self.strays.read_text()
        self.hub.check_hosts()


def hash_of_images(pipeline: str, revision: str = "main") -> str:
    import torch
    from diffusers import DDPMPipeline

    loaded = DDPMPipeline.from_pretrained(pipeline, revision=revision)
    generator = torch.Generator().manual_seed(0)
    images = loaded(3, generator=generator, num_inference_steps=2, output_type="np").images
    return hashlib.sha256(images.tobytes()).hexdigest()


@dataclass
class Fork:
    """A process that was forked from this one."""

    pid: int
    said: Path
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        self.wait(None)
        return self.said.read_text(), ""

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, expect: int | None) -> str:
        """Wait for its end, which must be that exit code if one is given; returns what it said."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said = self.said.read_text()
        assert expect in (None, self.returncode), f"exit {self.returncode}, not {expect}\n{said}"
        return said


def _main(program: str, *arguments: str) -> None:
    sys.argv = [f"ddpm-{program}", *arguments]
    importlib.import_module(f"ddpm_train.cli.{program}").main()


def start_push(hub: LoopbackHub, folder: Path, home: Path, **values: object) -> "subprocess.Popen[str]":
    """The process that pushes beside a run, given `folder`."""
    target = {"repo_id": "tester/x", "private": None, "revision": "main", "retry_seconds": 20.0, "stall_seconds": 2.0}
    environment = {**hub.environment(home, TOKEN), "PYTHONPATH": f"{GUARD}:{ROOT}", "STRAYS": f"{home}-strays.txt"}
    if values.pop("xet", False):
        del environment["HF_HUB_DISABLE_XET"]
    environment |= values.pop("environment", {})  # type: ignore[arg-type]
    job = {"target": target | values, "folder": str(folder), "message": "Step 7", "owned": ["unet"], "last": "end.json"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "ddpm_train.hub.push"],
        env={**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    return process


def outcome(process: "subprocess.Popen[str]") -> dict[str, str]:
    """How that ended."""
    assert process.stdout is not None
    said = process.stdout.read()
    process.wait(timeout=60)
    result: dict[str, str] = json.loads(said.splitlines()[-1])
    return result
