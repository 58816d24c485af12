"""The programs, and the Hub's real clients, against the test hub: no request may leave this machine."""

import hashlib
import json
import sys
from pathlib import Path

from helpers.cli import AT_START, FORK_CHILDREN, ROOT, Cli
from helpers.forked import TESTS, Fork
from helpers.hub.server import LoopbackHub

TOKEN = "hf_right"
PUSH_SECONDS = ("hub.retry_minutes=0.1", "hub.stall_seconds=2", "hub.finish_minutes=1")


class HubCli(Cli):
    """Runs programs as a user does whose Hub is `hub` and who is logged in there."""

    def __init__(self, folder: Path, hub: LoopbackHub, prepared: Path | None = None) -> None:
        super().__init__(folder, prepared)
        self.hub = hub
        self.strays = folder / "strays.txt"
        kept = {key: self.environment[key] for key in ("XDG_CACHE_HOME", "OMP_NUM_THREADS")}
        self.environment = {
            **hub.environment(folder / "hf", TOKEN),
            **kept,
            "PYTHONPATH": f"{AT_START}:{ROOT}",
            "STRAYS": str(self.strays),
            **FORK_CHILDREN,
        }

    def start_training(self, *overrides: str, session: bool = False, **environment: str) -> Fork:
        return super().start_training(*PUSH_SECONDS, *overrides, session=session, **environment)

    def train(self, *overrides: str, expect: int = 0, **environment: str) -> str:
        return super().train(*PUSH_SECONDS, *overrides, expect=expect, **environment)

    def push(self, *arguments: str, expect: int = 0, **environment: str) -> str:
        """`ddpm-push ARGUMENTS`."""
        return self.run_main("push", *arguments, expect=expect, **environment)

    def run_main(self, program: str, *arguments: str, expect: int = 0, **environment: str) -> str:
        """`ddpm-PROGRAM ARGUMENTS`."""
        return self.python("-m", f"ddpm_train.cli.{program}", *arguments, expect=expect, **environment)

    def images(self, repo_id: str, revision: str = "main") -> str:
        """What plain diffusers makes of the repository in a new process: three images, as the hash of their pixels."""
        code = f"from helpers.hub.client import hash_of_images\nprint(hash_of_images({repo_id!r}, {revision!r}))"
        # Not forked: diffusers has read the Hub's address while it was imported.
        path = f"{self.environment['PYTHONPATH']}:{TESTS}"
        return self.run([sys.executable, "-c", code], PYTHONPATH=path).splitlines()[0]

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


def start_push(hub: LoopbackHub, folder: Path, home: Path, **values: object) -> Fork:
    """The process that pushes beside a run, given `folder`."""
    target = {"repo_id": "tester/x", "private": None, "revision": "main", "retry_seconds": 20.0, "stall_seconds": 2.0}
    environment = {**hub.environment(home, TOKEN), "PYTHONPATH": f"{AT_START}:{ROOT}", "STRAYS": f"{home}-strays.txt"}
    if values.pop("xet", False):
        del environment["HF_HUB_DISABLE_XET"]
    environment |= values.pop("environment", {})  # type: ignore[arg-type]
    job = {"folder": str(folder), "message": "Step 7", **target, **values}
    environment = {**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    process = Fork(["-m", "ddpm_train.hub.push"], TESTS.parent, environment, stdin=True)
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    return process


def outcome(process: Fork) -> dict[str, str]:
    """How that ended."""
    said = process.stdout.read()
    process.wait(timeout=60)
    result: dict[str, str] = json.loads(said.splitlines()[-1])
    return result
