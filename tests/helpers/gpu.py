"""Tests see no GPU: a fork could not use it, and what they expect is the CPU's. The tests for GPUs ask for it."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from helpers.cli import Cli

# What CUDA, ROCm and SYCL read. Apple's GPU cannot be hidden so, but the fork server needs Linux anyway.
HIDDEN = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "ONEAPI_DEVICE_SELECTOR": "!*:gpu"}
_before: dict[str, str] = {}
# The tests for GPUs run to their end on the CPU, so that no typo waits for a GPU.
REHEARSING = bool(os.environ.get("REHEARSE"))


def hide() -> None:
    """Hide all GPUs from this process, and so from every program that it starts; call before torch is imported."""
    _before.update({key: os.environ[key] for key in HIDDEN if key in os.environ})
    os.environ.update(HIDDEN)


class GpuCli(Cli):
    """The programs on the GPU, each in a process that has done its own imports; otherwise as `Cli`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if not REHEARSING:
            self.environment = visible(self.environment)

    def fork(self, *python: str, session: bool = False, **environment: str) -> "subprocess.Popen[str]":
        assert not session
        return self.start([sys.executable, *python], **environment)


def visible(environment: dict[str, str]) -> dict[str, str]:
    """The environment in which the GPUs are seen that were seen before `hide`."""
    return {key: value for key, value in environment.items() if key not in HIDDEN} | _before


@cache
def is_there() -> bool:
    """Whether there is a GPU that the tests for GPUs can run on."""
    asked = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], env=visible(dict(os.environ))).returncode == 0


def skip_without_gpu() -> None:
    if not REHEARSING and not is_there():
        pytest.skip("there is no GPU")
