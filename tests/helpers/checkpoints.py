"""Small checkpoints with known tensors."""

from pathlib import Path

import torch
from torch import Tensor

from ddpm_train.runs import checkpoint
from ddpm_train.runs.state import ResumedState, read_state


def state(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {name: {"weight": torch.randn(64, 64, generator=generator)} for name in ("unet", "ema")}


def run_state(step: int) -> ResumedState:
    return ResumedState(
        step=step,
        images_seen=16 * step,
        compute={"mixed_precision": "no"},
        device="cpu",
        micro_batch_size=16,
        num_processes=1,
        grad_scaler={},
        optimizer={"0.step": step},
        identity={"seed": 0},
        changes=[],
        environments=[],
    )


def save_step(directory: Path, step: int) -> Path:
    return checkpoint.save(directory, step, state(step), run_state(step).to_json())


def holds(path: Path, step: int) -> bool:
    """Whether that checkpoint is the one of `save_step`."""
    tensors = checkpoint.load(path)
    expected = state(step)
    same = all(torch.equal(tensors[name]["weight"], expected[name]["weight"]) for name in expected)
    return same and read_state(path) == run_state(step)
