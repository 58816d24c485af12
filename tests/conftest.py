"""Fixtures: the real command line, real images, runs that are made once."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from filelock import FileLock
from helpers import gpu
from helpers.cli import ROOT, Cli, Once
from PIL import Image

if TYPE_CHECKING:
    from helpers.hub.client import HubCli

# Who asks for one of these starts programs.
PROGRAMS = {"cli", "gpu_cli", "hub_cli", "once", "proxy"}
# One thread each: the tests run side by side on few cores. Set before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"
gpu.hide()
# A shell has what it starts in the background ignore Ctrl-C, and programs would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="let the fuzzers run at their large size")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests come first, so that all workers end together; what starts no program and is not slow is fast."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    rest = [item for item in items if not item.get_closest_marker("slow")]
    for item in rest:
        if not PROGRAMS & set(getattr(item, "fixturenames", ())):
            item.add_marker("fast")
    # A worker begins with a piece of the list: the pieces are as long as each other.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        first = slow[worker::workers]
        length = max(0, (len(items) - len(ordered)) // (workers - worker) - len(first))
        ordered += first + rest[:length]
        del rest[:length]
    items[:] = ordered


@pytest.fixture
def cli(tmp_path: Path, prepared: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path, prepared)
    yield cli
    cli.close()


@pytest.fixture
def gpu_cli(tmp_path: Path) -> Iterator[gpu.GpuCli]:
    """The same on the GPU; without one the test is skipped."""
    gpu.skip_without_gpu()
    cli = gpu.GpuCli(tmp_path)
    yield cli
    cli.close()


@pytest.fixture
def hub_cli(tmp_path: Path, prepared: Path) -> "Iterator[HubCli]":
    """The programs and a Hub of their own, `hub_cli.hub`; no request may have been meant for any other host."""
    from helpers.hub.client import TOKEN, HubCli
    from helpers.hub.server import LoopbackHub

    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        cli = HubCli(tmp_path, hub, prepared)
        yield cli
        cli.close()
        cli.check_hosts()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: the `Cli` of a folder and what `make` said when it filled that, for all workers of pytest.

    Tests read what is there and add to it under names of their own; who changes anything works on a copy.
    """
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def once(name: str, make: Callable[[Cli], str]) -> tuple[Cli, str]:
        cli, said = Cli(shared / f"once_{name}"), shared / f"once_{name}.txt"
        with FileLock(f"{said}.lock"):
            if not said.exists():
                shutil.rmtree(cli.folder, ignore_errors=True)  # of one that failed
                cli.folder.mkdir()
                said.write_text(make(cli))
        return cli, said.read_text()

    return once


@pytest.fixture(scope="session")
def trained(once: Once) -> Path:
    """A finished run of six steps with checkpoints at 3 and 6."""
    cli, _ = once("trained", lambda cli: cli.train("checkpoint.every_steps=3"))
    return cli.output()


@pytest.fixture(scope="session")
def prepared(trained: Path) -> Path:
    """The cache of that run: its images are prepared once for all tests."""
    return trained.parent.parent / "cache/ddpm-train"


@pytest.fixture(scope="session")
def garments() -> list[Image.Image]:
    """Real images: the embedded validation set as 28 x 28 grey pictures."""
    with Image.open(ROOT / "ddpm_train/data/fashion_tiny/validation.png") as mosaic:
        pixels = np.asarray(mosaic).reshape(10, 28, 50, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)
    return [Image.fromarray(tile) for tile in pixels]


@pytest.fixture(scope="session")
def write_images(garments: list[Image.Image]) -> Callable[[Path, int], Path]:
    """Writes the first `count` garments as PNG files into a folder, half of them one level deeper."""

    def write(folder: Path, count: int) -> Path:
        (folder / "deeper").mkdir(parents=True)
        for index, image in enumerate(garments[:count]):
            image.save((folder if index % 2 else folder / "deeper") / f"{index:03}.png")
        return folder

    return write
