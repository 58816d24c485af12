"""What the tests share: the real command line, real images, a small model that trains in seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from forked import run_forked
from PIL import Image

if TYPE_CHECKING:
    from hub_client import HubCli

ROOT = Path(__file__).resolve().parent.parent
# One thread each: the tests run side by side on few cores. Set before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"
# glibc gives large blocks back at once, so that a limit on the memory is one on what is in use.
LEAN = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
# The smallest UNet with an attention level, 8 x 8 images, a handful of steps: about a second of training.
TINY = (
    "dataset.resolution=8",
    "dataset.num_workers=2",
    "model.block_out_channels=[8,16]",
    "model.down_block_types=[DownBlock2D,AttnDownBlock2D]",
    "model.up_block_types=[AttnUpBlock2D,UpBlock2D]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=8",
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
)


class Cli:
    """Runs programs the way a user does, in an empty folder with a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "ACCELERATE_"))},
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HOME": str(folder / "hf"),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, command: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: Sequence[str], expect: int = 0, **environment: str) -> str:
        """Run to the end; returns stdout and stderr together."""
        process = self.start(command, **environment)
        out, err = process.communicate(timeout=300)
        assert process.returncode == expect, f"exit {process.returncode}, not {expect}\n{out}\n{err}"
        return out + err

    def train(self, *overrides: str, expect: int = 0, **environment: str) -> str:
        """`ddpm-train OVERRIDES` with the tiny model."""
        return self._forked("ddpm_train.cli.train", [*TINY, *overrides], expect, environment)

    def together(self, *overrides: str, num_processes: int, expect: int = 0) -> str:
        """The same in several processes, as torchrun starts them."""
        return self._forked("ddpm_train.cli.train", [*TINY, *overrides], expect, {}, num_processes)

    def sample(self, *arguments: str, expect: int = 0) -> str:
        """`ddpm-sample ARGUMENTS`."""
        return self._forked("ddpm_train.cli.sample", arguments, expect, {})

    def evaluate(self, *arguments: str, expect: int = 0, num_processes: int = 1, **environment: str) -> str:
        """`ddpm-evaluate ARGUMENTS`."""
        return self._forked("ddpm_train.cli.evaluate", arguments, expect, environment, num_processes)

    def _forked(
        self,
        module: str,
        arguments: Sequence[str],
        expect: int,
        environment: dict[str, str],
        num_processes: int = 1,
    ) -> str:
        environment = {**self.environment, **environment}
        code, said = run_forked(module, arguments, self.folder, environment, num_processes)
        assert code == expect, f"exit {code}, not {expect}\n{said}"
        return said

    def metrics(self, name: str = "default") -> list[dict[str, Any]]:
        lines = (self.folder / "outputs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def output(self, name: str = "default") -> Path:
        return self.folder / "outputs" / name


def launch_command(num_processes: int, *program_arguments: str) -> list[str]:
    program = str(Path(sys.executable).with_name("accelerate"))
    port = str(20000 + os.getpid() % 20000)
    return [
        *(program, "launch", "--cpu", "--num_processes", str(num_processes), "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port),
        *(program_arguments or (str(ROOT / "train.py"),)),
    ]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def hub_cli(tmp_path: Path) -> "Iterator[HubCli]":
    """The programs and a Hub of their own, `hub_cli.hub`; no request may have been meant for any other host."""
    from hub_client import TOKEN, HubCli
    from loopback_hub import LoopbackHub

    with LoopbackHub(tmp_path / "hub", token=TOKEN) as hub:
        cli = HubCli(tmp_path, hub)
        yield cli
        cli.check_hosts()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps with checkpoints at 3 and 6."""
    cli = Cli(tmp_path_factory.mktemp("trained"))
    cli.train("checkpoint.every_steps=3")
    return cli.output()


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
