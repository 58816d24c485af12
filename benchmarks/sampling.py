"""Sampling against DDPMPipeline: the same model, scheduler, steps, images and generators.

    python benchmarks/sampling.py [--images 16] [--steps 20] [--repeats 5] [--resolution 64] [--model small]
                                  [--mixed-precision auto]

They take turns in one process; the ratio is the median over the turns, and the images are compared. Ours computes as
`ddpm-sample` does by default: in the precision that a measurement before the first turn finds the fastest; with
`--mixed-precision no` in float32 like the pipeline, to the bit. The weights are untrained: what a step computes does
not depend on their values.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from report import tell
from torch import Tensor
from work import build_model, model_overrides

from ddpm_train.config.parts import Sampler
from ddpm_train.models.load import Model
from ddpm_train.sampling.engine import choose_compute, open_engine
from ddpm_train.sampling.loop import image_seed
from ddpm_train.sampling.recipe import Recipe

SEED = 0


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.monotonic()
    images = function()  # on the CPU: the device has finished
    return time.monotonic() - started, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--model", default="small", help="small, tiny or one of conf/model")
    parser.add_argument("--mixed-precision", default="auto", help="auto, no or bf16")
    arguments = parser.parse_args()
    overrides = [
        *model_overrides(arguments.model),
        *("dataset=imagefolder", "dataset.path=.", f"dataset.resolution={arguments.resolution}"),
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = build_model(overrides).to(device).eval()
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler.from_config(scheduler.config))
    pipeline.set_progress_bar_config(disable=True)

    recipe = Recipe(SEED, Sampler("ddpm"), arguments.steps, (arguments.resolution, arguments.resolution))
    model = Model("benchmark", unet, scheduler, "", None, None)
    limits = (arguments.images, arguments.images)
    compute = choose_compute(model, torch.device(device), recipe, arguments.mixed_precision, *limits)
    engine = open_engine(model, torch.device(device), compute)

    def ours() -> Tensor:
        return engine.images(recipe, range(arguments.images)).cpu()

    def theirs() -> Tensor:
        generators = [torch.Generator().manual_seed(image_seed(SEED, index)) for index in range(arguments.images)]
        images = pipeline(arguments.images, generators, num_inference_steps=arguments.steps, output_type="np").images
        return torch.from_numpy((images * 255).round().astype("uint8")).permute(0, 3, 1, 2)

    figures: dict[str, Any] = {
        "case": {**vars(arguments), "parameters": unet.num_parameters(), "device": device, "compute": str(compute)},
        "ours_seconds": [],
        "pipeline_seconds": [],
        "unequal_values": 0,
    }
    ours(), theirs()  # the first turn also chooses kernels
    for _ in range(arguments.repeats):
        seconds, mine = timed(ours)
        figures["ours_seconds"].append(seconds)
        seconds, reference = timed(theirs)
        figures["pipeline_seconds"].append(seconds)
        figures["unequal_values"] += int((mine != reference).sum())
    figures["ours_is_faster_by"] = statistics.median(
        b / a for a, b in zip(figures["ours_seconds"], figures["pipeline_seconds"], strict=True)
    )
    tell(Path(__file__).stem, rows(figures, arguments), figures)


def rows(figures: dict[str, Any], arguments: argparse.Namespace) -> list[tuple[str, str]]:
    rate = {who: arguments.images / statistics.median(figures[f"{who}_seconds"]) for who in ("ours", "pipeline")}
    return [
        ("case", f"{arguments.images} images, {arguments.resolution} px, {arguments.steps} steps, {arguments.model}"),
        ("ours", f"{rate['ours']:.2f} images/s, {figures['case']['compute']}"),
        ("DDPMPipeline", f"{rate['pipeline']:.2f} images/s  ours is {figures['ours_is_faster_by']:.3f} times as fast"),
        ("values that differ", str(figures["unequal_values"])),
    ]


if __name__ == "__main__":
    main()
