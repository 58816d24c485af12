"""Builds the parts of a run from its config."""

import copy
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from diffusers import DDPMScheduler

from ddpm_train.cli.console import Console
from ddpm_train.config import Config, NoEMA
from ddpm_train.data.loader import Data, open_data
from ddpm_train.diffusion.noise import build_noise_scheduler, loss_weights
from ddpm_train.diffusion.objective import Objective
from ddpm_train.mistakes import Mistakes
from ddpm_train.model import build_unet
from ddpm_train.optim import build_optimizer
from ddpm_train.preemption import StopRequest
from ddpm_train.trainer import BatchPlan, TrainState


@dataclass
class Run:
    """The parts of one run. `values` is the config as plain values; `changes` records accepted changes of it."""

    config: Config
    values: dict[str, Any]
    output_dir: Path
    accelerator: Accelerator
    stop: StopRequest
    console: Console
    data: Data
    plan: BatchPlan
    max_steps: int
    noise_scheduler: DDPMScheduler
    state: TrainState
    objective: Objective
    changes: list[dict[str, Any]]

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / "checkpoints"


def choose_precision(mixed_precision: str) -> str:
    """What `auto` means here: what `accelerate launch` was told, else bf16 where the device multiplies in it."""
    if mixed_precision != "auto":
        return mixed_precision
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched in ("bf16", "fp16"):
        return launched
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "no"


def build_run(
    config: Config, values: dict[str, Any], *, mixed_precision: str, stop: StopRequest, console: Console
) -> Run:
    """Everything that does not depend on where the run stands.

    Raises:
        Mistakes: the dataset cannot be had, or is too small.
    """
    accumulation = _accumulation(config)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False),
    )
    data = open_data(config.dataset, progress=console.live)
    if len(data.train) < config.train.batch_size:
        raise Mistakes(
            f"train.batch_size={config.train.batch_size}: more than the {len(data.train)} training images; "
            f"use at most {len(data.train)}"
        )
    noise_scheduler = build_noise_scheduler(config.noise_scheduler)
    weights = loss_weights(noise_scheduler, config.loss).to(accelerator.device)
    noise_scheduler.alphas_cumprod = noise_scheduler.alphas_cumprod.to(accelerator.device)
    unet = build_unet(config).to(accelerator.device)
    ema_unet = None if isinstance(config.ema, NoEMA) else copy.deepcopy(unet).requires_grad_(False).eval()
    return Run(
        config=config,
        values=values,
        output_dir=Path(config.output_dir),
        accelerator=accelerator,
        stop=stop,
        console=console,
        data=data,
        plan=BatchPlan(
            config.train.batch_size,
            config.train.batch_size // (accumulation * accelerator.num_processes),
            accelerator.num_processes,
            accelerator.process_index,
        ),
        max_steps=_max_steps(config, len(data.train)),
        noise_scheduler=noise_scheduler,
        state=TrainState(0, unet, ema_unet, build_optimizer(config.optimizer, unet.parameters())),
        objective=Objective(noise_scheduler, weights, config.seed),
        changes=[],
    )


def _accumulation(config: Config) -> int:
    per_process = config.train.batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    return per_process // (config.train.micro_batch_size or per_process)


def _max_steps(config: Config, num_images: int) -> int:
    if config.train.max_steps is not None:
        return config.train.max_steps
    assert config.train.epochs is not None  # cross_field_mistakes sees to it
    return math.ceil(config.train.epochs * num_images / config.train.batch_size)
