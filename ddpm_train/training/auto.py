"""Settles what the config leaves to `auto` on this device: how to compute a step, and how large a micro-batch fits.

What was measured stands in the cache folder and in the run's checkpoints, so that the same command computes alike.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import PartialState
from annotated_types import Gt
from diffusers import UNet2DModel
from torch import nn
from torch._dynamo.utils import counters

from ddpm_train.config.foreign import read_json
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.train import Config
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.models.unet import unet_arguments
from ddpm_train.runs.state import ResumedState
from ddpm_train.seeding import Purpose
from ddpm_train.system import launch
from ddpm_train.system.compute import (
    PLAIN,
    Compute,
    Stopwatch,
    choose_for_training,
    device_name,
    largest_fitting,
    memory,
    out_of_memory,
)
from ddpm_train.system.failures import first_line
from ddpm_train.system.files import cache_folder, write_atomic
from ddpm_train.system.ranks import gather, on_main
from ddpm_train.training.state import BatchPlan

# On a CPU a trial step takes no longer than this, for as many images as that allows; a GPU needs a real batch.
_CPU_TRIAL_SECONDS, _TRIAL_IMAGES = 0.5, 64
# So `auto` takes no longer than this there: two steps each of four kinds, and three comparisons.
_CPU_AT_MOST = " (at most 20 s)"
# What is left free of a GPU's memory, for what comes and goes: evaluation, the exchange of gradients.
_SPARE_SHARE = 0.05
# The optimizer's state, which does not exist yet: so many times the weights.
_STATE_COPIES = 2


@dataclass
class Trial:
    """Forward and backward passes of the network that will train; they leave nothing behind.

    Attributes:
        model: what is called: the network, or what holds it. Here no gradients are exchanged.
        also: what is drawn besides noise and timesteps, see `Objective.draw`.
    """

    config: Config
    unet: UNet2DModel
    model: nn.Module
    objective: Objective
    device: torch.device
    also: Mapping[Purpose, int]

    def __call__(self, compute: Compute, num_images: int) -> None:
        compute.apply(self.unet)
        shape = (num_images, self.config.dataset.channels, *self.config.dataset.resolution)
        images = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        positions = torch.arange(num_images, device=self.device)
        try:
            with getattr(self.model, "no_sync", nullcontext)():
                x_0 = to_model_range(images)
                also = {**self.also, **self.objective.also(shape[1:])}
                noise, timesteps, *others = self.objective.draw(shape[1:], positions, also=also)
                noise, _ = self.objective.noises(images, noise, dict(zip(also, others, strict=True)))
                with compute.autocast(self.device), compute.attention_kernels():
                    losses = self.objective.per_image(self.model, x_0, noise, timesteps)
                losses.mean().backward()
        finally:
            self.model.zero_grad()

    def twice(self, compute: Compute, num_images: int) -> None:
        """To see whether it fits: the first time also chooses kernels and their workspace."""
        self(compute, num_images)
        self(compute, num_images)

    def why_not_compiled(self, compute: Compute, num_images: int) -> str | None:
        """Compile a step of so many images; returns why that did not come about."""
        graphs = counters["stats"]["unique_graphs"]
        try:
            self(compute, num_images)
        except Exception as error:  # a compiler needs tools that a machine may lack, and knows many ways to say so
            if not out_of_memory(error):  # which `train.micro_batch_size=auto` mends
                return first_line(error)
        return None if counters["stats"]["unique_graphs"] > graphs else "torch.compile is switched off"


@dataclass(frozen=True)
class Choice:
    """How steps are computed, and what was measured to choose it: seconds of a step of `num_images`, by name."""

    compute: Compute
    num_images: int
    seconds: dict[str, float]


def choose_compute(
    config: Config, trial: Trial, *, max_steps: int, resumed: ResumedState | None, say: Callable[[str], None]
) -> Choice:
    """How this run computes its steps; the same on all processes. `say` shows a line to a person.

    What the launcher has decided, or the run itself before the checkpoint that it goes on from, is not `auto` any more.
    """
    recorded: dict[str, Any] = dict(resumed.compute) if resumed is not None else {}
    if resumed is not None and resumed.device != device_name(trial.device):
        # Another device rounds otherwise anyway, but a run does not change its precision.
        recorded = {key: value for key, value in recorded.items() if key == "mixed_precision"}
    if config.optimizer.is_contiguous:
        recorded["channels_last"] = False
    if launch.precision() in ("bf16", "fp16"):
        recorded.setdefault("mixed_precision", launch.precision())
    known = {key: value for key, value in recorded.items() if getattr(config.train, key, None) == "auto"}
    settled = replace(config, train=replace(config.train, **known))
    return on_main(lambda: _choose(settled, trial, max_steps, say))


def _choose(config: Config, trial: Trial, max_steps: int, say: Callable[[str], None]) -> Choice:
    train, device = config.train, trial.device
    if "auto" not in (train.mixed_precision, train.channels_last, train.attention, train.compile):
        unused = Stopwatch(lambda compute: None, device, {})
        return Choice(choose_for_training(train, device, unused, steps_left=0), 0, {})
    at_most = min(_micro_batch_size(config), _TRIAL_IMAGES)
    circumstances = [device_name(device), torch.backends.cpu.get_cpu_capability(), torch.__version__]
    circumstances += ["deterministic"] if train.deterministic else []
    dataset = config.dataset
    network = [unet_arguments(config.model), dataset.resolution, dataset.channels, train.gradient_checkpointing]
    key = json.dumps([circumstances, network, at_most])
    path = cache_folder(dataset.cache_dir) / "compute" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    known = _read_measured(path, at_most)
    if known is None:
        say(f"measuring how this machine trains fastest{_CPU_AT_MOST if device.type == 'cpu' else ''} …")
    num_images = known.num_images if known else _trial_images(trial, at_most)
    seconds = dict(known.seconds) if known else {}
    stopwatch = Stopwatch(lambda compute: trial(compute, num_images), device, seconds)
    images_left = max_steps * train.batch_size / PartialState().num_processes
    compute = choose_for_training(train, device, stopwatch, steps_left=images_left / num_images, say=say)
    if (measured := _Measured(num_images, seconds)) != known:
        _keep_measured(path, measured)
    return Choice(compute, num_images, seconds)


@dataclass(frozen=True)
class _Measured:
    """What the cache folder holds of a network on a device: the seconds of a step of so many images, by name."""

    num_images: Annotated[int, Gt(0)]
    seconds: dict[str, Annotated[float, Gt(0)]]


def _read_measured(path: Path, at_most: int) -> _Measured | None:
    """What was measured before; None: nothing, or nothing that can be used."""
    try:
        measured = read_json(path, _Measured)
    except (OSError, Mistakes):
        return None
    return measured if measured.num_images <= at_most else None


def _keep_measured(path: Path, measured: _Measured) -> None:
    with suppress(OSError):  # the next run measures it again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(measured)).encode())


def _trial_images(trial: Trial, at_most: int) -> int:
    if trial.device.type != "cpu":
        sizes = [at_most // 2**halvings for halvings in range(at_most.bit_length())]
        return largest_fitting(sizes, partial(trial.twice, PLAIN))
    trial(PLAIN, 1)
    num_images = 1
    # One image says little of many, and one run of them little of a machine that others use, too.
    while num_images < at_most and 2 * min(_seconds(trial, num_images) for _ in range(2)) <= _CPU_TRIAL_SECONDS:
        num_images = min(2 * num_images, at_most)
    return num_images


def _seconds(trial: Trial, num_images: int) -> float:
    started = time.perf_counter()
    trial(PLAIN, num_images)
    return time.perf_counter() - started


def _micro_batch_size(config: Config) -> int:
    """The configured one, or the largest possible."""
    size = config.train.micro_batch_size
    return size if isinstance(size, int) else config.train.batch_size // PartialState().num_processes


def plan_batch(
    config: Config, trial: Trial, compute: Compute, *, resident_bytes: int, resumed: ResumedState | None
) -> BatchPlan:
    """How the global batch is cut; with `train.micro_batch_size=auto` into the largest pieces that fit.

    Args:
        resident_bytes: what the images will take of the device's memory.

    Raises:
        Mistakes: not even one image fits.
    """
    state, device = PartialState(), trial.device
    plan = BatchPlan(config.train.batch_size, _micro_batch_size(config), state.num_processes, state.process_index)
    if config.train.micro_batch_size != "auto":
        return plan
    sizes = plan.micro_batch_sizes()
    if resumed is not None and resumed.device == device_name(device) and resumed.micro_batch_size in sizes:
        return replace(plan, micro_batch_size=resumed.micro_batch_size)
    copies = _STATE_COPIES + len(config.ema.decays)
    num_bytes = resident_bytes + copies * sum(parameter.nbytes for parameter in trial.unet.parameters())
    if device.type != "cpu":
        num_bytes += int(_SPARE_SHARE * memory(device)[1])
    try:
        reserved = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        # Not compiled: each size would be compiled by itself, and it takes the less memory then.
        fitting = largest_fitting(sizes, partial(trial.twice, replace(compute, compile=False)))
        del reserved
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise Mistakes(
            f"train.micro_batch_size=auto: not even one image fits into the memory ({first_line(error)}); choose a "
            "smaller model or resolution, or train.gradient_checkpointing=true"
        ) from None
    return replace(plan, micro_batch_size=fitting)


def compile_chosen(choice: Choice, trial: Trial, num_images: int, warn: Callable[[str], None]) -> Choice:
    """Compile the step that was chosen, once, as the run will take it; on all processes, or on none.

    Returns:
        How steps are computed in truth: a run that could not be compiled does not say that it is.
    """
    reason = None
    if choice.compute.compile:
        torch.compiler.reset()  # see choose_for_training
        trial.objective.compile()
        reason = trial.why_not_compiled(choice.compute, num_images)
    reasons = [each for each in gather(reason) if each]
    if reasons:
        trial.objective.interpret()
        warn(f"warning: the run goes on without torch.compile, which did not work here: {reasons[0]}")
        choice = replace(choice, compute=replace(choice.compute, compile=False))
    choice.compute.apply(trial.unet)
    return choice
