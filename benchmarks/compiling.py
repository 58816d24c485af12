"""What torch.compile costs and gains: the whole network, or each residual and attention block by itself.

    python benchmarks/compiling.py [--model small] [--resolution 64] [--batch-size 32] [--steps 10] [--autotune]

Each is a process of its own with an empty compiler cache: forward and backward of the network, in bf16 (autocast) where
the device multiplies in it, the first time and then the median of `--steps` more. The program compiles the whole
network; `--autotune` tries that with `train.compile=max-autotune-no-cudagraphs`, too, which may take many minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import tell
from work import ROOT, build_model, model_overrides

from ddpm_train.system.compute import multiplies_in_bf16

WAYS = ("eager", "whole", "regional")
AUTOTUNED = "max-autotune-no-cudagraphs"
REGIONS = ("ResnetBlock2D", "Attention")


def child(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = f"dataset.resolution={arguments.resolution}"
    unet = build_model([*model_overrides(arguments.model), "dataset=imagefolder", "dataset.path=.", size]).to(device)
    for module in unet.modules():
        whole = way in ("whole", AUTOTUNED) and module is unet
        if whole or (way == "regional" and type(module).__name__ in REGIONS):
            module.compile(dynamic=False, mode=AUTOTUNED if way == AUTOTUNED else None)
    x_t = torch.randn(arguments.batch_size, 3, arguments.resolution, arguments.resolution, device=device)
    timesteps = torch.arange(arguments.batch_size, device=device)
    seconds = []
    for _ in range(1 + arguments.steps):
        started = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_in_bf16(device)):
            prediction = unet(x_t, timesteps).sample
        prediction.square().mean().backward()
        prediction.detach().sum().item()  # waits for the device
        seconds.append(time.monotonic() - started)
    return {"first_seconds": seconds[0], "step_seconds": statistics.median(seconds[1:])}


def in_process(way: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, __file__, *sys.argv[1:], "--child", way]
        figures: dict[str, float] = json.loads(
            subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="small, or one of conf/model")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--autotune", action="store_true")
    parser.add_argument("--child", choices=(*WAYS, AUTOTUNED), help=argparse.SUPPRESS)  # how this script calls itself
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments)))
        return
    figures = {way: in_process(way) for way in (*WAYS, *([AUTOTUNED] if arguments.autotune else []))}
    rows = [
        (way, f"first step {row['first_seconds']:.1f} s, then {1e3 * row['step_seconds']:.0f} ms a step")
        for way, row in figures.items()
    ]
    tell(Path(__file__).stem, rows, figures)


if __name__ == "__main__":
    main()
