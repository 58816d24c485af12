"""The programs, and the Hub's real clients, against the test hub: no request may leave this machine."""

import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import ROOT, TINY, Cli
from loopback_hub import LoopbackHub

TOKEN = "hf_right"
GUARD = ROOT / "tests/only_loopback"
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

    def started(self, *overrides: str, **environment: str) -> "subprocess.Popen[str]":
        """`python train.py OVERRIDES` with the tiny model, under way."""
        return self.start([sys.executable, str(ROOT / "train.py"), *TINY, *PUSH_SECONDS, *overrides], **environment)

    def train(self, *overrides: str, expect: int = 0, **environment: str) -> str:
        """The same to its end, in a fork of this process, which has paid for the imports already."""
        return self.forked("train", *TINY, *PUSH_SECONDS, *overrides, expect=expect, **environment)

    def push(self, *arguments: str, expect: int = 0, **environment: str) -> str:
        """`ddpm-push ARGUMENTS`, likewise."""
        return self.forked("push", *arguments, expect=expect, **environment)

    def forked(self, program: str, *arguments: str, expect: int = 0, **environment: str) -> str:
        for module in ("train", "push", "training", "pushing"):
            importlib.import_module(f"ddpm_train.cli.{module}")
        said = self.folder / "said.txt"
        child = os.fork()
        if child == 0:
            _become(program, arguments, self.folder, said, {**self.environment, **environment})
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == expect, f"exit {code}, not {expect}\n{said.read_text()}"
        return said.read_text()

    def python(self, code: str, expect: int = 0, **environment: str) -> str:
        """Run Python code in a process of its own, as a user of the repository would."""
        return self.run([sys.executable, "-c", code], expect, **environment)

    def pretrained(self, repo_id: str, revision: str = "main") -> str:
        """What plain diffusers makes of the repository: three images, as the hash of their pixels."""
        return self.python(
            "import hashlib, torch\nfrom diffusers import DDPMPipeline\n"
            f"pipeline = DDPMPipeline.from_pretrained({repo_id!r}, revision={revision!r})\n"
            "images = pipeline(3, generator=torch.Generator().manual_seed(0), num_inference_steps=2,\n"
            "                  output_type='np').images\n"
            "print(hashlib.sha256(images.tobytes()).hexdigest())"
        ).splitlines()[0]

    def check_hosts(self) -> None:
        assert not self.strays.exists(), self.strays.read_text()
        self.hub.check_hosts()


def _become(
    program: str, arguments: Sequence[str], folder: Path, said: Path, environment: dict[str, str]
) -> NoReturn:
    code: object = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        runpy.run_path(str(GUARD / "sitecustomize.py"))
        # The clients read the environment when they are imported, which this process has done long ago.
        for module in ("huggingface_hub.constants", "datasets.config"):
            if module in sys.modules:
                importlib.reload(sys.modules[module])
        sys.argv = [f"ddpm-{program}", *arguments]
        importlib.import_module(f"ddpm_train.cli.{program}").main()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        yield hub


@pytest.fixture
def hub_cli(tmp_path: Path, hub: LoopbackHub) -> Iterator[HubCli]:
    """Also sees to it that nothing was asked of any other host, nor the token shown to the storage."""
    cli = HubCli(tmp_path, hub)
    yield cli
    cli.check_hosts()


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
