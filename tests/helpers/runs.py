"""What runs leave, compared; and waiting for a run to come somewhere."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from helpers.cli import Process

# The exit code that asks for the same command again.
REQUEUE = 75
# What a record holds of time and machine, and not of the run's mathematics.
TIMES = ("images_per_second", "evaluation_seconds", "checkpoint_stall_seconds")


def records(run: Path) -> list[dict[str, Any]]:
    """A run's records without times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def same_checkpoint(ours: Path, theirs: Path, step: int, *more: str) -> None:
    """Weights, average and optimizer, and further sets of tensors: equal to the bit."""
    for file in ("unet", "ema", "optimizer", *more):
        name = f"checkpoints/step_{step:08d}/{file}.safetensors"
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), file


def same_end(ours: Path, theirs: Path, step: int) -> None:
    """The checkpoint and the records, of each step one."""
    same_checkpoint(ours, theirs, step)
    assert records(ours) == records(theirs)
    assert [record["step"] for record in records(ours)] == list(range(1, step + 1))


def same_run(ours: Path, theirs: Path, step: int) -> None:
    """The checkpoint, everything logged, and the pictures: equal to the bit."""
    same_checkpoint(ours, theirs, step)
    assert records(ours) == records(theirs)
    for picture in (theirs / "samples").iterdir():
        assert (ours / "samples" / picture.name).read_bytes() == picture.read_bytes()
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert (ours / weights).read_bytes() == (theirs / weights).read_bytes()


def weights(run: Path, name: str = "unet", step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step:08d}/{name}.safetensors")


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    difference = torch.cat([(a[key] - b[key]).flatten() for key in a]).norm()
    return float(difference / torch.cat([value.flatten() for value in a.values()]).norm())


def steps_written(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for(condition: Callable[[], bool], *processes: Process, seconds: float = 120) -> None:
    """Until the condition holds, while all of the processes live."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def saved_whole(run: Path) -> bool:
    """Whether the last step that there is a record of is the one that was saved."""
    return (run / f"checkpoints/step_{steps_written(run):08d}/manifest.json").exists()
