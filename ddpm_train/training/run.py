"""Builds the parts of a run from its config."""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.objective import criterion
from ddpm_train.config.train import Config
from ddpm_train.data.loader import Data, open_data
from ddpm_train.diffusion.objective import Objective
from ddpm_train.models.load import load_model
from ddpm_train.models.unet import build_unet
from ddpm_train.system.compute import set_backends
from ddpm_train.system.console import Console
from ddpm_train.system.signals import StopRequest
from ddpm_train.training.auto import Choice, Trial, choose_compute, plan_batch
from ddpm_train.training.state import BatchPlan, TrainState


@dataclass
class Run:
    """The parts of one run.

    Attributes:
        values: the config as plain values, with the dataset's commit.
        choice: how steps are computed, and what was measured to choose that.
        changes: records accepted changes of the config.
        environments: what computed it so far, see `environment.py`.
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
    environments: list[dict[str, Any]]

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
    if data.commit is not None:
        # What was asked for, a branch or nothing, may mean other images tomorrow.
        config = replace(config, dataset=replace(config.dataset, revision=data.commit))
        values = {**values, "dataset": {**values["dataset"], "revision": data.commit}}
    set_backends(config.train)
    noise_scheduler = config.noise_scheduler.build()
    noise_scheduler.alphas_cumprod = noise_scheduler.alphas_cumprod.to(device)
    objective = Objective(noise_scheduler, config.loss, config.seed)
    unet = build_unet(config).to(device)
    if config.model.pretrained is not None and not before:
        _take_weights(unet, config, console)
    max_steps = _max_steps(config, len(data.train))
    trial = Trial(config, unet, objective, device)
    choice = choose_compute(config, trial, max_steps=max_steps, before=before)
    choice.compute.apply(unet)
    if choice.compute.compile:
        objective.compile()
    plan = plan_batch(config, trial, choice.compute, before=before)
    ema_unet = copy.deepcopy(unet).requires_grad_(False).eval() if config.ema.is_kept else None
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
        state=TrainState(0, unet, ema_unet, config.optimizer.build(unet.parameters())),
        objective=objective,
        changes=[],
        environments=[],
    )


def _take_weights(unet: UNet2DModel, config: Config, console: Console) -> None:
    """Start from the weights of `model.pretrained`, and tell where its noise schedule is another than the run's."""
    source = str(config.model.pretrained)
    try:
        trained = load_model(source)
        unet.load_state_dict(trained.unet.state_dict())
    except (Mistakes, RuntimeError) as error:
        reason = str(error).removeprefix(f"pipeline={source}: ").splitlines()[0]
        raise Mistakes(f"model.pretrained={source}: {reason}") from None
    ours = config.noise_scheduler.build().config
    for key in ("num_train_timesteps", "beta_schedule", "prediction_type", "rescale_betas_zero_snr"):
        if (its := trained.noise_scheduler.config[key]) != ours[key]:
            console.warn(
                f"warning: model.pretrained={source} was trained with noise_scheduler.{key}={its}, and this run goes "
                f"on with {ours[key]}"
            )


def _max_steps(config: Config, num_images: int) -> int:
    if config.train.max_steps is not None:
        return config.train.max_steps
    assert config.train.epochs is not None  # cross_field_mistakes sees to it
    return math.ceil(config.train.epochs * num_images / config.train.batch_size)
