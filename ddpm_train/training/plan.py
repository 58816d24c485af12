"""What a run would take, told for `ddpm-train --plan`. Nothing is loaded, measured or begun."""

import math
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel

from ddpm_train.config.train import Config
from ddpm_train.models.footprint import Footprint, footprint
from ddpm_train.models.unet import Images, unet_of
from ddpm_train.report.formatting import duration
from ddpm_train.system.columns import columns
from ddpm_train.system.console import Console

_GB, _BYTES = 1e9, 4  # of a float32
# What the optimizer holds of each parameter, in numbers of float32.
_MOMENTS = {"sgd": 1, "adamw_8bit": 0.5, "muon": 1}
# The driver, its context and fragments take some of what a GPU has.
_USABLE = 0.9
# An update of AdamW reads the weight, its gradient and both moments and writes three of them; the average reads two and
# writes one.
_UPDATE = 10 * _BYTES


@dataclass(frozen=True)
class Gpu:
    """Of NVIDIA's data sheets and architecture papers.

    Attributes:
        memory: in GB.
        tflops: dense, in half precision, added up in float32.
        bandwidth: of its memory, in GB/s.
    """

    name: str
    memory: int
    tflops: float
    bandwidth: int


GPUS = (
    Gpu("T4", 16, 65, 320),
    Gpu("L4", 24, 121, 300),
    Gpu("A10", 24, 125, 600),
    Gpu("RTX 3090", 24, 71, 936),
    Gpu("RTX 4090", 24, 165, 1008),
    Gpu("A100", 40, 312, 1555),
    Gpu("H100 SXM", 80, 989, 3350),
    Gpu("H200", 141, 989, 4800),
)


@dataclass(frozen=True)
class Need:
    """Memory of one training process by the size of its micro-batch, in bytes."""

    fixed: float
    per_image: float

    def of(self, num_images: int) -> float:
        return self.fixed + num_images * self.per_image

    def largest(self, gpu: Gpu, at_most: int) -> int:
        """The largest micro-batch that the GPU holds, `at_most` or a power of two; 0: not even one image."""
        room = math.floor((_USABLE * _GB * gpu.memory - self.fixed) / self.per_image)
        return at_most if room >= at_most else 2 ** (room.bit_length() - 1) if room > 0 else 0


# In which precision, and whether `train.gradient_checkpointing`.
WAYS = {
    "float32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "float32, checkpointing": (torch.float32, True),
    "bf16, checkpointing": (torch.bfloat16, True),
}
_CAVEAT = (
    "No GPU was measured for this. One makes at most so many images a second, and takes at least that time: in half",
    "precision, by its operations a second, and by its memory's bandwidth where each kernel reads and writes once.",
)


def say_plan(config: Config, console: Console) -> None:
    """Print what a run of this config would take."""
    train = config.train
    size = train.micro_batch_size if isinstance(train.micro_batch_size, int) else train.batch_size
    steps = {name: step_of(config, size, *way) for name, way in WAYS.items()}
    needs = {name: need_of(config, step) for name, step in steps.items()}
    step = steps["bf16"]
    console.say(f"plan of {config.name}: computed from shapes; nothing is loaded, measured or begun")
    console.table(
        {
            "images": "{}x{}x{}".format(*config.dataset.resolution, config.dataset.channels),
            "model": f"UNet2DModel, {step.parameters / 1e6:.2f}M parameters",
            "work": f"{step.flops / 1e9:.1f} GFLOP for each image, forward and backward",
            "checkpoint": f"{_BYTES * step.parameters * (1 + _held(config)) / _GB:.2f} GB on the disk for each",
        }
    )
    sizes = sorted({size, *(4**power for power in range(size.bit_length()) if 4**power < size)}, reverse=True)
    rows = [[f"{each:,}", *(f"{need.of(each) / _GB:.1f} GB" for need in needs.values())] for each in sizes]
    console.say("", "memory of one process by its micro-batch:", *columns([["images", *needs], *rows]))
    head = ["GPU", "memory", "micro-batch", "images/s", f"{train.max_steps:,} steps" if train.max_steps else ""]
    console.say("", *columns([head, *(_row(gpu, config, step, needs["bf16"]) for gpu in GPUS)]), *_CAVEAT)


def step_of(config: Config, batch_size: int, dtype: torch.dtype, checkpointing: bool) -> Footprint:
    """One step of the config's network."""
    images = Images(config.dataset.resolution, config.dataset.channels)

    def build() -> UNet2DModel:
        unet = unet_of(config.model, images, config.noise_scheduler.num_train_timesteps)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        return unet

    return footprint(build, batch_size, images.resolution, dtype)


def _held(config: Config) -> float:
    """Numbers of float32 that are kept of each parameter beside it and its gradient."""
    return len(config.ema.decays) + _MOMENTS.get(config.optimizer.name, 2)


def need_of(config: Config, step: Footprint) -> Need:
    """The memory of micro-batches of any size, from a step of one."""
    trained = _BYTES * step.parameters
    copy = step.weight_bytes if step.weight_bytes < trained else 0  # what is computed with, beside what is trained
    return Need(trained * (2 + _held(config)) + copy, (step.peak_bytes - step.weight_bytes) / step.batch_size)


def images_per_second(gpu: Gpu, config: Config, step: Footprint) -> float:
    """That the GPU trains at most, by its operations and by what its memory moves; the step is in half precision."""
    moved = step.moved_bytes / step.batch_size + _UPDATE * step.parameters / config.train.batch_size
    return 1 / max(step.flops / (gpu.tflops * 1e12), moved / (gpu.bandwidth * _GB))


def _row(gpu: Gpu, config: Config, step: Footprint, need: Need) -> list[str]:
    fits, max_steps = need.largest(gpu, step.batch_size), config.train.max_steps
    if not fits:
        return [gpu.name, f"{gpu.memory} GB", "none fits", "", ""]
    rate = images_per_second(gpu, config, step)
    takes = duration(max_steps * config.train.batch_size / rate) if max_steps else ""
    return [gpu.name, f"{gpu.memory} GB", f"{fits:,}", f"{rate:,.0f}", takes]
