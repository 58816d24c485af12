"""A run killed again and again against an undisturbed one: is the end the same to the bit, and what did it cost?

    python benchmarks/crash.py [--kills 100] [--seed 0] [--steps 8000]

Each life is ended by SIGKILL after a random time, seeded: during the imports, the preparation, a step, an evaluation,
a save. Then the same command runs to the end.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import tell

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    *("dataset.resolution=8", "model.block_out_channels=[8,16]", "model.attention_head_dim=8"),
    *("model.down_block_types=[DownBlock2D,AttnDownBlock2D]", "model.up_block_types=[AttnUpBlock2D,UpBlock2D]"),
    *("model.norm_num_groups=4", "model.dropout=0.1", "dataset.crop=random", "dataset.random_flip=true"),
    *("train.batch_size=16", "train.micro_batch_size=8", "train.log_every_steps=1", "checkpoint.every_steps=25"),
    *("evaluation.every_steps=100", "evaluation.num_images=4", "evaluation.num_inference_steps=5"),
)
COMPARED = ("unet.safetensors", "ema.safetensors", "optimizer.safetensors")
TIMES = ("images_per_second", "evaluation_seconds", "checkpoint_stall_seconds")


def command(folder: Path, steps: int) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *SMALL, f"train.max_steps={steps}", f"output_dir={folder}"]


def start(folder: Path, steps: int) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command(folder, steps), env=environment, stdout=subprocess.DEVNULL)


def records(folder: Path) -> list[dict[str, Any]]:
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def newest_checkpoint(folder: Path) -> int:
    steps = [int(path.name[5:]) for path in (folder / "checkpoints").glob("step_????????")]
    return max(steps, default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8000)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp())
    undisturbed, killed = folder / "undisturbed", folder / "killed"

    started = time.monotonic()
    assert start(undisturbed, arguments.steps).wait() == 0
    undisturbed_seconds = time.monotonic() - started

    redone = kills = 0
    started = time.monotonic()
    while kills < arguments.kills:
        process = start(killed, arguments.steps)
        try:
            process.wait(timeout=moments.uniform(0.0, 9.0))
            break  # finished before its time
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        kills += 1
        redone += len(records(killed)) - newest_checkpoint(killed)
    if process.returncode != 0:
        assert start(killed, arguments.steps).wait() == 0
    killed_seconds = time.monotonic() - started

    last = f"checkpoints/step_{arguments.steps:08d}"
    equal = {name: (killed / last / name).read_bytes() == (undisturbed / last / name).read_bytes() for name in COMPARED}
    equal["metrics.jsonl"] = [{k: v for k, v in r.items() if k not in TIMES} for r in records(killed)] == [
        {k: v for k, v in r.items() if k not in TIMES} for r in records(undisturbed)
    ]
    equal["grids"] = all(
        (killed / "samples" / grid.name).read_bytes() == grid.read_bytes()
        for grid in (undisturbed / "samples").iterdir()
    )
    goodput = arguments.steps / (arguments.steps + redone)
    figures = {
        "kills": kills,
        "steps": arguments.steps,
        "equal": equal,
        "steps_redone": redone,
        "goodput": goodput,
        "undisturbed_seconds": undisturbed_seconds,
        "killed_seconds": killed_seconds,
    }
    tell(
        "crash",
        [
            ("kills", str(kills)),
            ("equal to the bit", ", ".join(f"{name} {'yes' if same else 'NO'}" for name, same in equal.items())),
            ("steps redone", f"{redone} of {arguments.steps} (goodput {100 * goodput:.1f} %)"),
            ("time", f"{killed_seconds:.0f} s with {kills} restarts, {undisturbed_seconds:.0f} s undisturbed"),
        ],
        figures,
    )
    if not all(equal.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
