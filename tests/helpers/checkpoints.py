"""Small checkpoints with known tensors."""

from pathlib import Path

import torch
from torch import Tensor

from ddpm_train.runs import checkpoint


def state(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {name: {"weight": torch.randn(64, 64, generator=generator)} for name in ("unet", "ema")}


def save_step(directory: Path, step: int) -> Path:
    return checkpoint.save(directory, step, state(step), {"step": step})


def holds(path: Path, step: int) -> bool:
    """Whether that checkpoint is the one of `save_step`."""
    tensors = checkpoint.load(path)
    expected = state(step)
    same = all(torch.equal(tensors[name]["weight"], expected[name]["weight"]) for name in expected)
    return same and checkpoint.load_scalars(path) == {"step": step}
