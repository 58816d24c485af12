"""What a save costs the training loop: the tutorial's 113.7M-parameter UNet with average and Adam state, 1.8 GB.

    python benchmarks/checkpoint.py [--saves 5] [--folder DIR] [--model unet_128]

Compares, in one run and in turn, a blocking save with a save beside training: the stall of the loop, the time until
the checkpoint is published, and how much slower computing goes while it is written.
"""

import argparse
import copy
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from report import tell
from work import config_of, model_overrides

from ddpm_train.models.unet import build_unet
from ddpm_train.runs import checkpoint
from ddpm_train.training.saving import Saver
from ddpm_train.training.state import TrainState

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def full_state(model: str) -> TrainState:
    """Weights, average and optimizer as after a first step: every moment exists."""
    config = config_of([*model_overrides(model), "dataset=imagefolder", "dataset.path=.", "dataset.resolution=64"])
    unet = build_unet(config.model, config.dataset, config.noise_scheduler).to(DEVICE)
    optimizer = config.optimizer.build(unet.named_parameters())
    for parameter in unet.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return TrainState(1, unet, {"ema": copy.deepcopy(unet)}, optimizer)


def compute(seconds: float, matrix: torch.Tensor) -> float:
    """Matrix products for at least `seconds`; returns how many a second."""
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        matrix @ matrix
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        count += 1
    return count / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to write to")
    parser.add_argument("--model", default="unet_128", help="small, tiny or one of conf/model")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    state = full_state(arguments.model)
    gigabytes = sum(t.numel() * t.element_size() for named in state.tensors().values() for t in named.values()) / 1e9
    retention = checkpoint.Retention(1, None)
    saver = Saver(folder / "beside", retention, 1, *[lambda path: None] * 3, print)
    matrix = torch.randn(1024, 1024, device=DEVICE)
    blocking, stalls, totals, slowdowns = [], [], [], []
    try:
        first_stall = saver.save(0, state.tensors(), {})  # also takes the snapshot's memory from the system
        saver.close()
        for step in range(1, arguments.saves + 1):
            started = time.monotonic()
            checkpoint.save(folder / "blocking", step, state.tensors(), {})
            blocking.append(time.monotonic() - started)
            checkpoint.prune(folder / "blocking", retention)
            undisturbed = compute(2.0, matrix)
            started = time.monotonic()
            stalls.append(saver.save(step, state.tensors(), {}))
            beside = compute(statistics.median(blocking) / 2, matrix)
            saver.close()
            totals.append(time.monotonic() - started)
            slowdowns.append(1 - beside / undisturbed)
    finally:
        shutil.rmtree(folder)
    ratio = statistics.median(stall / whole for stall, whole in zip(stalls, blocking, strict=True))
    figures = {
        "parameters": state.unet.num_parameters(),
        "gigabytes": gigabytes,
        "blocking_seconds": blocking,
        "first_stall_seconds": first_stall,
        "stall_seconds": stalls,
        "until_published_seconds": totals,
        "stall_of_blocking": ratio,
        "slowdown_while_writing": slowdowns,
    }
    tell(
        "checkpoint",
        [
            ("state", f"{gigabytes:.2f} GB ({state.unet.num_parameters() / 1e6:.1f}M parameters)"),
            ("blocking save", f"{statistics.median(blocking):.2f} s"),
            ("stall of a save beside training", f"{statistics.median(stalls):.3f} s = {100 * ratio:.1f} % of it"),
            ("stall of the first one", f"{first_stall:.3f} s"),
            ("until it is published", f"{statistics.median(totals):.2f} s"),
            ("computing is slower meanwhile by", f"{100 * statistics.median(slowdowns):.0f} %"),
        ],
        figures,
    )


if __name__ == "__main__":
    main()
