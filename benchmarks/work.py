"""What the contestants of a benchmark share: one case in words that all of them understand, and where it is done."""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from photographs import write_photographs

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
WINDOW = 10  # steps; the first one is the warm-up
NUM_PHOTOGRAPHS = 1188
# 4.3M parameters: small enough for a laptop's CPU, and for the loop around the network to show on a GPU.
SMALL = (
    *("model=unet2d", "model.layers_per_block=1", "model.block_out_channels=[32,64,128,128]"),
    "model.down_block_types=[DownBlock2D,DownBlock2D,DownBlock2D,AttnDownBlock2D]",
    *("model.up_block_types=[AttnUpBlock2D,UpBlock2D,UpBlock2D,UpBlock2D]", "model.norm_num_groups=8"),
)
# For rehearsals: whatever is slow with it is slow around the network, or in the compiler.
TINY = (
    *("model=unet2d", "model.layers_per_block=1", "model.block_out_channels=[8,16]", "model.norm_num_groups=4"),
    *("model.down_block_types=[DownBlock2D,AttnDownBlock2D]", "model.up_block_types=[AttnUpBlock2D,UpBlock2D]"),
)


@dataclass(frozen=True)
class Work:
    """What all contestants do, and where.

    Attributes:
        overrides: of this project's config; the peers take the network from there.
        warmup: steps before the clock starts.
        exchange: whether the processes of this project's program exchange gradients.
        profiled_steps: how many steps it takes after these, under the profiler.
    """

    images: str
    overrides: list[str]
    resolution: int
    batch_size: int
    steps: int
    warmup: int
    scratch: str
    exchange: bool = True
    profiled_steps: int = 0

    def fresh(self) -> Path:
        """The folder to work in, without the run of the turn before."""
        shutil.rmtree(Path(self.scratch) / "run", ignore_errors=True)
        return Path(self.scratch)

    def write(self) -> str:
        """A file that `peers.py` reads; returns its path."""
        path = Path(self.scratch) / "work.json"
        path.write_text(json.dumps(asdict(self)))
        return str(path)


def add_case(parser: argparse.ArgumentParser) -> None:
    """The options that describe a case."""
    parser.add_argument("--images", type=Path, help="a folder of photographs; otherwise they are generated")
    parser.add_argument("--photographs", type=int, default=NUM_PHOTOGRAPHS, help="how many are generated")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", default="small", help="small, tiny or one of conf/model")
    parser.add_argument("overrides", nargs="*", help="more of this project's config, such as train.compile=true")


@contextmanager
def work_of(arguments: argparse.Namespace) -> Iterator[Work]:
    """The case that the options describe, in a folder that goes with it."""
    if arguments.steps <= WINDOW:
        raise SystemExit(f"--steps {arguments.steps}: more than the {WINDOW} of the warm-up")
    scratch = Path(tempfile.mkdtemp())
    try:
        images = arguments.images.resolve() if arguments.images else scratch / "images"
        if not arguments.images:
            write_photographs(images, arguments.photographs)
        overrides = _overrides(arguments, images, scratch)
        yield Work(
            str(images), overrides, arguments.resolution, arguments.batch_size, arguments.steps, WINDOW, str(scratch)
        )
    finally:
        shutil.rmtree(scratch)


def case_of(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "resolution": arguments.resolution,
        "batch_size": arguments.batch_size,
        "images": "given" if arguments.images else "generated",
        "overrides": arguments.overrides,
    }


def tell_case(case: dict[str, Any]) -> str:
    overrides = "".join(f", {override}" for override in case["overrides"])
    return f"{case['model']}, {case['resolution']} px, batch {case['batch_size']}, {case['images']} images{overrides}"


def _overrides(arguments: argparse.Namespace, images: Path, scratch: Path) -> list[str]:
    """The recipe of the diffusers example in this project's words."""
    return [
        *model_overrides(arguments.model),
        *("dataset=imagefolder", f"dataset.path={images}", f"dataset.resolution={arguments.resolution}"),
        *("dataset.validation_fraction=0", "dataset.random_flip=true", f"dataset.cache_dir={scratch / 'cache'}"),
        *("noise_scheduler=linear", "ema=warmup", "evaluation=none", f"train.batch_size={arguments.batch_size}"),
        *("optimizer.lr=1e-4", "optimizer.betas=[0.95,0.999]", "optimizer.weight_decay=1e-6"),
        *(f"train.max_steps={arguments.steps}", f"train.log_every_steps={WINDOW}", "checkpoint.every_steps=null"),
        *("resume=never", f"output_dir={scratch / 'run'}"),
        *arguments.overrides,
    ]


def model_overrides(name: str) -> list[str]:
    return list({"small": SMALL, "tiny": TINY}.get(name, (f"model={name}",)))


def config_of(overrides: list[str]) -> Any:
    """The config of this project's program, typed."""
    from ddpm_train.config.checks import TRAINING
    from ddpm_train.config.compose import hydra_compose, open_configs

    with open_configs():
        return TRAINING.parse(hydra_compose("config", overrides)[1])


def build_model(overrides: list[str]) -> Any:
    """The network that this project's program would train."""
    from ddpm_train.models.unet import build_unet

    config = config_of(overrides)
    return build_unet(config.model, config.dataset, config.noise_scheduler, seed=config.seed)


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def run(command: list[str], log: Path, **environment: str) -> int:
    """Run a command; returns the peak memory of its process (or of its largest worker), in bytes."""
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=ENVIRONMENT | environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
    return usage.ru_maxrss * 1024


def rates_of(folder: Path, after: int) -> list[float]:
    """Images a second of each step after that one, from the run's record; the steps of a window have the window's."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["images_per_second"] for record in records if record["step"] > after]


def last_json(log: Path) -> dict[str, Any]:
    """The last line that is a JSON object; a launcher may say more after it."""
    figures: dict[str, Any] = json.loads(next(s for s in reversed(log.read_text().splitlines()) if s.startswith("{")))
    return figures
