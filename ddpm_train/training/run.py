"""The parts of a run, built from its config."""

import copy
import math
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.train import Config, Train
from ddpm_train.data.images import fits
from ddpm_train.data.loader import Batches, Data, MicroBatch, micro_batches
from ddpm_train.data.spectrum import power_spectrum
from ddpm_train.data.workers import num_workers
from ddpm_train.diffusion.objective import Objective
from ddpm_train.diffusion.timesteps import Timesteps, timestep_edges
from ddpm_train.models.denoiser import Denoiser
from ddpm_train.models.load import load_model
from ddpm_train.models.unet import build_unet
from ddpm_train.runs.best import Selection, read_selection
from ddpm_train.runs.clock import Clock, read_clock
from ddpm_train.runs.folder import CHECKPOINTS
from ddpm_train.runs.identity import identity
from ddpm_train.runs.state import ResumedState
from ddpm_train.system.compute import device_name, set_backends
from ddpm_train.system.console import Console
from ddpm_train.system.ranks import everywhere, join, on_main
from ddpm_train.system.signals import StopRequest
from ddpm_train.training.auto import Choice, Trial, choose_compute, compile_chosen, plan_batch
from ddpm_train.training.images import open_same_data
from ddpm_train.training.state import BatchPlan, TrainState


@dataclass
class Run:
    """The parts of one run, and where it stands.

    Attributes:
        values: the config as plain values, with the dataset's commit.
        choice: how steps are computed, and what was measured to choose that.
        model: the network as a step calls it, with what trains beside it: where there are several processes, they
            exchange its gradients.
        evaluated_every: the steps between two evaluations; None: it evaluates at its end only.
        on_device: whether the images lie in the device's own memory.
        selection: judges the evaluations so far.
        clock: forecasts from them when the run will begin to copy its training images.
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
    batches: Batches
    plan: BatchPlan
    max_steps: int
    evaluated_every: int | None
    state: TrainState
    model: nn.Module
    on_device: bool
    objective: Objective
    selection: Selection
    clock: Clock
    changes: list[dict[str, Any]] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / CHECKPOINTS

    @property
    def is_finished(self) -> bool:
        return self.is_finished_at(self.state.step)

    @property
    def branch_step(self) -> int | None:
        """The step whose checkpoint is kept to make the run longer from, if its learning rate decays after one."""
        return self.config.lr_scheduler.branches_at(self.max_steps) or None

    @property
    def snapshot_every_steps(self) -> int | None:
        """How often the averages are kept for good, if they are."""
        return self.config.ema.snapshot_every_steps(self.max_steps)

    def is_finished_at(self, step: int) -> bool:
        """Whether the run is at its end when it stands at `step`, by its length, its patience or its copying."""
        return step >= self.max_steps or self.selection.out_of_patience or self.begins_to_copy

    @property
    def begins_to_copy(self) -> bool:
        """Whether the run is to end before it copies, and may do so before it is evaluated again."""
        if not (self.config.train.stop_before_copying and self.clock.ratios):
            return False
        return self.clock.may_begin_by(self.next_evaluation(max(self.clock.ratios)))

    def next_evaluation(self, step: int) -> int:
        """The first step after this one with an evaluation: a multiple of `evaluated_every`, `evaluation.first_step` or
        the last."""
        every, first = self.evaluated_every, self.config.evaluation.first_step
        steps = (every and (step // every + 1) * every, first, self.max_steps)
        return min((each for each in steps if each and each > step), default=self.max_steps)

    def open_micro_batches(self) -> Generator[MicroBatch, None, None]:
        """This process's micro-batches from where the run stands."""
        dataset, device = self.config.dataset, self.accelerator.device
        # A CPU trains from the disk cache's own memory; for a GPU somebody must read ahead.
        loads_ahead = dataset.cache == "none" or device.type != "cpu"
        workers = num_workers(dataset) if loads_ahead else 0
        positions = self.plan.positions(self.state.step)
        return micro_batches(
            self.batches,
            self.objective,
            positions,
            device=device,
            resident=self.on_device,
            num_workers=workers,
            waiting=self.stop.give_up,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the run the run it is."""
        precision = self.accelerator.mixed_precision
        return identity(
            self.values,
            dataset_content=self.data.content,
            dataset_split=self.data.selection.changed,
            pixel_values=repr(self.data.values) if self.data.values else None,
            mixed_precision=precision,
        )

    def resumed_state(self) -> ResumedState:
        """What a checkpoint holds besides tensors."""
        scaler = self.accelerator.scaler
        return ResumedState(
            step=self.state.step,
            images_seen=self.state.step * self.plan.batch_size,
            compute=asdict(self.choice.compute),
            device=device_name(self.accelerator.device),
            micro_batch_size=self.plan.micro_batch_size,
            num_processes=self.plan.num_processes,
            optimizer=self.state.optimizer_state.capture()[1],
            grad_scaler=scaler.state_dict() if scaler is not None else {},
            identity=self.identity,
            changes=self.changes,
            max_steps=self.max_steps,
            environments=self.environments,
        )


def build_run(
    config: Config, values: dict[str, Any], *, resumed: ResumedState | None, stop: StopRequest, console: Console
) -> Run:
    """All parts of a run, which stands at its beginning: `restore` takes it to where it goes on. What was measured for
    the checkpoint `resumed` still holds; None: a new run.

    Raises:
        Mistakes: the dataset cannot be had or is too small, or one image does not fit into memory.
    """
    device, output_dir = join().device, Path(config.output_dir)
    config, values, data = open_same_data(config, values, console)
    set_backends(config.train)
    objective = _objective(config, data, device)
    unet = _network(config, device, console, is_new=resumed is None)
    max_steps = config.train.max_steps or _steps_of_epochs(config.train, len(data.train))
    if lines := list(config.lr_scheduler.length_mistakes(max_steps)):
        raise Mistakes(*lines)
    on_device = fits(data.train, device) if config.dataset.device_cache == "auto" else config.dataset.device_cache
    batches = _batches(config, data)
    trial = Trial(config, unet, unet, objective, device, also=batches.drawn(resident=on_device))
    choice = choose_compute(config, trial, max_steps=max_steps, resumed=resumed, say=console.say)
    resident_bytes = data.train.prepared.pixels().nbytes if on_device else 0
    plan = everywhere(lambda: plan_batch(config, trial, choice.compute, resident_bytes=resident_bytes, resumed=resumed))
    replace(choice.compute, compile=False).apply(unet)  # the buckets for the exchange are laid out like the weights
    averages = {name: copy.deepcopy(unet).requires_grad_(False).eval() for name in config.ema.decays}
    denoiser = Denoiser(unet, config.augmentation.label_size, uncertainty=config.loss.learned_uncertainty)
    model = _exchanging(denoiser, config.train) if plan.num_processes > 1 else denoiser
    choice = compile_chosen(choice, replace(trial, model=model), plan.micro_batch_size, console.warn)
    return Run(
        config=config,
        values=values,
        output_dir=output_dir,
        accelerator=Accelerator(mixed_precision=choice.compute.mixed_precision),
        choice=choice,
        stop=stop,
        console=console,
        data=data,
        batches=batches,
        plan=plan,
        max_steps=max_steps,
        evaluated_every=config.evaluation.interval(max_steps),
        state=TrainState(0, unet, averages, config.optimizer.build(denoiser.named_parameters()), denoiser.helpers),
        model=model,
        on_device=on_device,
        objective=objective,
        selection=on_main(lambda: read_selection(output_dir, config, resumed.step if resumed else 0)),
        clock=on_main(lambda: read_clock(output_dir, resumed.step if resumed else 0)),
    )


def _network(config: Config, device: torch.device, console: Console, *, is_new: bool) -> UNet2DModel:
    """The network of a run at its beginning; the weights of one that goes on come with its checkpoint."""
    unet = build_unet(config.model, config.dataset, config.noise_scheduler, seed=config.seed).to(device)
    if config.train.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.model.pretrained is not None and is_new:
        on_main(lambda: _take_weights(unet, config, console))
    return unet


def _objective(config: Config, data: Data, device: torch.device) -> Objective:
    """What a step makes less of; its schedule and distribution of timesteps lie on the device."""
    noise_scheduler, distribution = config.noise_scheduler.build(), config.timestep_distribution
    noise_scheduler.alphas_cumprod = noise_scheduler.alphas_cumprod.to(device)
    # On one process: no other may find them otherwise by rounding.
    edges = on_main(lambda: timestep_edges(distribution, noise_scheduler, lambda: power_spectrum(data.train)))
    timesteps = Timesteps.of(distribution, edges, noise_scheduler, config.seed)
    return Objective(noise_scheduler, config.loss, config.seed, timesteps, config.noise)


def _batches(config: Config, data: Data) -> Batches:
    dataset = config.dataset
    changes = {"random_crop": dataset.crop == "random", "random_flip": dataset.random_flip}
    return Batches(data.train, config.seed, **changes, augmentation_draws=config.augmentation.num_draws)


def _exchanging(model: nn.Module, train: Train) -> nn.Module:
    """The network, exchanging gradients with other processes. A process alone would do so with itself, and could not
    begin a step anew that ran out of memory.

    Gradients are added up in buckets, which are cut anew after the first step: with more than two processes the first
    step of a resume would round otherwise. They are kept where DDP looks for parameters without a gradient.
    """
    return DistributedDataParallel(model, find_unused_parameters=train.deterministic)


def _steps_of_epochs(train: Train, num_images: int) -> int:
    assert train.epochs is not None  # the checks of the config see to it
    return math.ceil(train.epochs * num_images / train.batch_size)


def _take_weights(unet: UNet2DModel, config: Config, console: Console) -> None:
    """Start from the weights of `model.pretrained`, and warn where it was trained with another noise schedule."""
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
