"""Builds the parts of a run from its config."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from diffusers import DDPMScheduler

from ddpm_train.cli.console import Console
from ddpm_train.cli.measuring import Choice, Trial, choose_compute, plan_batch
from ddpm_train.compute import set_backends
from ddpm_train.config import Config, NoEMA
from ddpm_train.data.loader import Data, open_data
from ddpm_train.diffusion.noise import build_noise_scheduler, loss_weights
from ddpm_train.diffusion.objective import Objective
from ddpm_train.mistakes import Mistakes
from ddpm_train.model import build_unet
from ddpm_train.optim import build_optimizer
from ddpm_train.preemption import StopRequest
from ddpm_train.selection import criterion
from ddpm_train.trainer import BatchPlan, TrainState


@dataclass
class Run:
    """The parts of one run.

    Attributes:
        values: the config as plain values.
        choice: how steps are computed, and what was measured to choose that.
        changes: records accepted changes of the config.
    """

    config: Config
    values: dict[str, Any]
    output_dir: Path
    accelerator: Accelerator
    choice: Choice
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


def build_run(
    config: Config, values: dict[str, Any], *, before: dict[str, Any], stop: StopRequest, console: Console
) -> Run:
    """Everything that does not depend on where the run stands.

    Args:
        before: the scalars of the checkpoint to go on from, or none: what was measured then still holds.

    Raises:
        Mistakes: the dataset cannot be had or is too small, or one image does not fit into memory.
    """
    device = PartialState().device
    data = open_data(config.dataset, progress=console.live)
    if len(data.train) < config.train.batch_size:
        raise Mistakes(
            f"train.batch_size={config.train.batch_size}: more than the {len(data.train)} training images; "
            f"use at most {len(data.train)}"
        )
    chosen, needed = criterion(config), config.objective != "auto" or config.train.patience is not None
    if data.validation is None and needed and chosen is not None and chosen.name == "held_out_loss":
        raise Mistakes(
            f"dataset.validation_fraction={config.dataset.validation_fraction}: of {len(data.train)} images that holds "
            "none out, and the run is to be judged by the held-out loss; raise it"
        )
    set_backends(config.train)
    noise_scheduler = build_noise_scheduler(config.noise_scheduler)
    noise_scheduler.alphas_cumprod = noise_scheduler.alphas_cumprod.to(device)
    objective = Objective(noise_scheduler, loss_weights(noise_scheduler, config.loss).to(device), config.seed)
    unet = build_unet(config).to(device)
    max_steps = _max_steps(config, len(data.train))
    trial = Trial(config, unet, objective, device)
    choice = choose_compute(config, trial, max_steps=max_steps, before=before)
    choice.compute.apply(unet)
    if choice.compute.compile:
        objective.compile()
    plan = plan_batch(config, trial, choice.compute, before=before)
    ema_unet = None if isinstance(config.ema, NoEMA) else copy.deepcopy(unet).requires_grad_(False).eval()
    return Run(
        config=config,
        values=values,
        output_dir=Path(config.output_dir),
        accelerator=Accelerator(mixed_precision=choice.compute.mixed_precision),
        choice=choice,
        stop=stop,
        console=console,
        data=data,
        plan=plan,
        max_steps=max_steps,
        noise_scheduler=noise_scheduler,
        state=TrainState(0, unet, ema_unet, build_optimizer(config.optimizer, unet.parameters())),
        objective=objective,
        changes=[],
    )


def _max_steps(config: Config, num_images: int) -> int:
    if config.train.max_steps is not None:
        return config.train.max_steps
    assert config.train.epochs is not None  # cross_field_mistakes sees to it
    return math.ceil(config.train.epochs * num_images / config.train.batch_size)
