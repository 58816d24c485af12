"""Builds a run from its config and carries it out."""

import copy
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from diffusers import DDPMPipeline, DDPMScheduler

import ddpm_train
from ddpm_train import checkpoint
from ddpm_train.cli.console import Console
from ddpm_train.config import Config, NoEMA
from ddpm_train.data.loader import Batches, Data, micro_batches, num_workers, open_data
from ddpm_train.diffusion.noise import build_noise_scheduler, loss_weights
from ddpm_train.diffusion.objective import Objective
from ddpm_train.evaluation.grid import sample_grid
from ddpm_train.evaluation.held_out import held_out_loss
from ddpm_train.files import replace_folder, write_atomic
from ddpm_train.mistakes import Mistakes
from ddpm_train.model import build_unet, num_parameters
from ddpm_train.optim import build_optimizer
from ddpm_train.preemption import EXIT_REQUEUE, Stopped, StopRequest
from ddpm_train.trackers import Metrics, NonFinite, open_trackers
from ddpm_train.trainer import BatchPlan, Trainer, TrainState, evaluation_due

EXIT_NON_FINITE = 3


def precision_mistakes(mixed_precision: str) -> list[str]:
    """Whether this machine can do a precision that the config forces."""
    cuda = torch.cuda.is_available()
    if mixed_precision == "fp16" and not cuda:
        return ["train.mixed_precision=fp16: needs a CUDA GPU, and there is none; use bf16, no or auto"]
    if mixed_precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        return [f"train.mixed_precision=bf16: {torch.cuda.get_device_name()} has none; use fp16, no or auto"]
    return []


def choose_precision(mixed_precision: str) -> str:
    """What `auto` means here: what `accelerate launch` was told, else bf16 on a GPU that has it."""
    if mixed_precision != "auto":
        return mixed_precision
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched in ("bf16", "fp16"):
        return launched
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


@dataclass
class Run:
    """The parts of one run that more than one stage needs."""

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

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / "checkpoints"


def train_run(config: Config, values: dict[str, Any]) -> None:
    """Train the configured run; leaves with the exit code that its end means.

    Raises:
        Mistakes: something about the dataset or the checkpoint to resume from is wrong.
    """
    stop = StopRequest()
    diffusers.logging.set_verbosity_error()
    try:
        run = _build(config, values, stop)
        resumed_from = _restore(run)
        if run.state.step >= run.max_steps and resumed_from is not None:
            run.console.say(f"{config.name}: finished at step {run.state.step}; nothing to do ({run.output_dir})")
            return
        _carry_out(run, resumed_from)
    except Stopped:
        # Before the first step there is nothing to save; later the trainer has saved.
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped by {stop.signal_name}; the same command continues", flush=True)
        sys.exit(EXIT_REQUEUE)
    except NonFinite as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}; nothing of it was saved. {_non_finite_remedy(run)}", file=sys.stderr)
        sys.exit(EXIT_NON_FINITE)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _build(config: Config, values: dict[str, Any], stop: StopRequest) -> Run:
    """Everything that does not depend on where the run stands."""
    accumulation = _accumulation(config)
    accelerator = Accelerator(
        mixed_precision=choose_precision(config.train.mixed_precision),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False),
    )
    console = Console(accelerator.is_main_process)
    data = open_data(config.dataset, progress=console.live)
    if len(data.train) < config.train.batch_size:
        raise Mistakes(
            f"train.batch_size={config.train.batch_size}: more than the {len(data.train)} training images; "
            f"use at most {len(data.train)}"
        )
    if data.broken:
        console.warn(f"warning: {len(data.broken)} images cannot be read and are skipped:")
        for line in data.broken[:20]:
            console.warn(f"  {line}")
    plan = BatchPlan(
        config.train.batch_size,
        config.train.batch_size // (accumulation * accelerator.num_processes),
        accelerator.num_processes,
        accelerator.process_index,
    )
    noise_scheduler = build_noise_scheduler(config.noise_scheduler)
    weights = loss_weights(noise_scheduler, config.loss).to(accelerator.device)
    noise_scheduler.alphas_cumprod = noise_scheduler.alphas_cumprod.to(accelerator.device)
    unet = build_unet(config).to(accelerator.device)
    ema_unet = None if isinstance(config.ema, NoEMA) else copy.deepcopy(unet).requires_grad_(False).eval()
    state = TrainState(0, unet, ema_unet, build_optimizer(config.optimizer, unet.parameters()))
    return Run(
        config=config,
        values=values,
        output_dir=Path(config.output_dir),
        accelerator=accelerator,
        stop=stop,
        console=console,
        data=data,
        plan=plan,
        max_steps=_max_steps(config, len(data.train)),
        noise_scheduler=noise_scheduler,
        state=state,
        objective=Objective(noise_scheduler, weights, config.seed),
    )


def _accumulation(config: Config) -> int:
    per_process = config.train.batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    return per_process // (config.train.micro_batch_size or per_process)


def _max_steps(config: Config, num_images: int) -> int:
    if config.train.max_steps is not None:
        return config.train.max_steps
    assert config.train.epochs is not None  # cross_field_mistakes sees to it
    return math.ceil(config.train.epochs * num_images / config.train.batch_size)


def _restore(run: Run) -> Path | None:
    """Load the checkpoint that `resume` means into the state; returns it, or None for a fresh start."""
    if run.config.resume == "never":
        return None
    if run.config.resume == "auto":
        found = checkpoint.published(run.checkpoints)
        if not found:
            return None
        path = found[-1]
    else:
        path = Path(run.config.resume)
    try:
        checkpoint.verify(path)
    except checkpoint.BadCheckpoint as error:
        raise Mistakes(f"resume={run.config.resume}: {path} cannot be used: {error}") from None
    tensors, scalars = checkpoint.load(path)
    run.state.load(scalars["step"], tensors)
    return path


def _carry_out(run: Run, resumed_from: Path | None) -> None:
    """Train, and leave the pipeline and a word on what to do next."""
    config, accelerator, state = run.config, run.accelerator, run.state
    if accelerator.is_main_process:
        run.output_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(run.output_dir / "config.yaml", _config_yaml(run.values))
    _announce(run, resumed_from)
    trackers = (
        open_trackers(config.tracker, config.name, run.output_dir, run.values, state.step)
        if accelerator.is_main_process
        else []
    )
    metrics = Metrics(run.output_dir / "metrics.jsonl", trackers, accelerator, state.step)
    model, optimizer = accelerator.prepare(state.unet, state.optimizer)
    batches = Batches(
        run.data.train,
        seed=config.seed,
        random_crop=config.dataset.crop == "random",
        random_flip=config.dataset.random_flip,
    )
    run.stop.connect()
    trainer = Trainer(
        config=config,
        plan=run.plan,
        max_steps=run.max_steps,
        state=state,
        model=model,
        optimizer=optimizer,
        objective=run.objective,
        accelerator=accelerator,
        metrics=metrics,
        stop=run.stop,
        evaluate=lambda: _evaluate(run, metrics),
        save=lambda: _save(run),
        progress=run.console.progress,
        evaluated="evaluation_seconds" in metrics.last or not evaluation_due(config, state.step, run.max_steps),
        saved_step=state.step,
    )
    started = time.monotonic()
    run.console.start(state.step, run.max_steps)
    data = micro_batches(
        batches,
        run.plan.positions(state.step),
        num_workers=num_workers(config.dataset) if config.dataset.cache == "none" else 0,
        pin_memory=accelerator.device.type == "cuda",
    )
    try:
        trainer.train(data)
    finally:
        run.console.finish()
        metrics.close()
    _save_pipeline(run)
    _say_what_next(run, time.monotonic() - started)


def _evaluate(run: Run, metrics: Metrics) -> dict[str, float]:
    """The grid and the held-out loss of the state's sampling weights; the training weights are not touched."""
    config, state = run.config.evaluation, run.state
    started = time.monotonic()
    unet = state.sampling_unet
    training = unet.training
    unet.eval()
    grid = sample_grid(
        unet,
        run.noise_scheduler,
        config,
        sampler_name=run.config.sampler.name,
        seed=run.config.seed,
        accelerator=run.accelerator,
        stop=run.stop,
    )
    values = {}
    if run.data.validation is not None:
        values["held_out_loss"] = held_out_loss(
            unet, run.data.validation, run.objective, config.batch_size, accelerator=run.accelerator, stop=run.stop
        )
    unet.train(training)
    if run.accelerator.is_main_process:
        samples = run.output_dir / "samples"
        samples.mkdir(exist_ok=True)
        grid.save(samples / f"{checkpoint.step_name(state.step)}.png")
        metrics.log_image("samples", grid, state.step)
    return {**values, "evaluation_seconds": round(time.monotonic() - started, 3)}


def _save(run: Run) -> None:
    if run.accelerator.is_main_process:
        scalars = {"step": run.state.step, "images_seen": run.state.step * run.plan.batch_size}
        checkpoint.save(run.checkpoints, run.state.step, run.state.tensors(), scalars)


def _save_pipeline(run: Run) -> None:
    """A plain DDPMPipeline of the sampling weights, which diffusers loads without this project."""
    if run.accelerator.is_main_process:
        with replace_folder(run.output_dir / "pipeline") as staging:
            DDPMPipeline(unet=run.state.sampling_unet, scheduler=run.noise_scheduler).save_pretrained(staging)


def _config_yaml(values: dict[str, Any]) -> bytes:
    """The resolved config; `--config-path RUN --config-name config` runs it again."""
    quiet = {
        "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
        "hydra": {"run": {"dir": "."}, "output_subdir": None},
    }
    return yaml.safe_dump({**quiet, **values}, sort_keys=False, allow_unicode=True).encode()


def _announce(run: Run, resumed_from: Path | None) -> None:
    config, plan, data, accelerator = run.config, run.plan, run.data, run.accelerator
    height, width = config.dataset.resolution
    held_out = f", {len(data.validation):,} held out" if data.validation else ""
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else f"{accelerator.device.type}"
    if accelerator.device.type == "cpu":
        device += f", {torch.get_num_threads()} threads"
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    images = run.max_steps * plan.batch_size
    where = f"resumes at step {run.state.step}" if resumed_from else "new run"
    run.console.say(f"ddpm-train {ddpm_train.__version__}  {config.name}")
    run.console.table(
        {
            "dataset": f"{config.dataset.path}: {len(data.train):,} images {height}x{width}x{config.dataset.channels}"
            + held_out,
            "model": f"UNet2DModel, {num_parameters(run.state.unet) / 1e6:.2f}M parameters",
            "batch": f"{plan.batch_size} = {plan.micro_batch_size} micro x {plan.num_processes} processes "
            f"x {plan.accumulation} accumulation",
            "steps": f"{run.max_steps:,} ({images / len(data.train):.1f} epochs)",
            "precision": f"{precision} on {device}",
            "output": f"{run.output_dir} ({where})",
        }
    )


def _say_what_next(run: Run, seconds: float) -> None:
    output = run.output_dir
    pictures = output / "samples" / f"{checkpoint.step_name(run.max_steps)}.png"
    run.console.say(f"done: step {run.max_steps:,} after {seconds:.0f} s")
    run.console.table(
        {
            **({"pictures": str(pictures)} if pictures.exists() else {}),
            "pipeline": f'{output / "pipeline"}   DDPMPipeline.from_pretrained("{output / "pipeline"}")',
            "curves": f"tensorboard --logdir {output / 'tensorboard'}",
            "longer": f"the same command with train.max_steps={2 * run.max_steps}",
        }
    )


def _non_finite_remedy(run: Run) -> str:
    last = checkpoint.published(run.checkpoints)
    start = f"Go on from {last[-1].name}" if last else "Start again"
    return f"{start} with a lower optimizer.lr or train.max_grad_norm (the same command with the change)"
