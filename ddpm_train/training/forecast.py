"""What a run will take of time and memory, and what its settings will not bring, told before it starts."""

from collections.abc import Iterator
from functools import lru_cache

import psutil
import torch
from torch import Tensor

from ddpm_train.config.model import Model
from ddpm_train.config.train import Config, too_short
from ddpm_train.data.sizes import image_sizes, num_enlarged
from ddpm_train.models.trial import memory_bytes
from ddpm_train.models.unet import Images, unet_of
from ddpm_train.report.formatting import duration
from ddpm_train.runs.folder import RECORDS, newest_record
from ddpm_train.system.compute import Compute, memory
from ddpm_train.system.console import counted
from ddpm_train.training.run import Run

# A backward pass takes twice its forward pass, which alone makes samples.
_PASSES = 3
_GB = 1e9
# What a run's environments say of how fast it goes, see `describe_run`.
_OF_SPEED = ("device", "cpu", "num_processes", "micro_batch_size", "compute")


def cost(run: Run) -> str | None:
    """Time and memory of the rest of the run in a line; None: nothing was measured or can be counted."""
    seconds, needed = _seconds(run), _memory(run)
    parts = [f"about {duration(seconds)} on this machine"] if seconds is not None else []
    if needed is not None:
        device = run.accelerator.device
        total = memory_bytes() if device.type == "cpu" else memory(device)[1]
        remedy = "; give train.micro_batch_size=auto, which finds the largest that fits" if needed > total else ""
        parts.append(f"about {needed / _GB:.1f} of {total / _GB:.0f} GB{remedy}")
    return ", ".join(parts) or None


def _seconds(run: Run) -> float | None:
    """What is left of the training, and the pictures on the way."""
    evaluation, seconds_per_image = run.config.evaluation, _seconds_per_image(run)
    if seconds_per_image is None:
        return None
    left, every = run.max_steps - run.state.step, run.evaluated_every
    images = left * run.plan.batch_size
    if evaluation.name != "none":
        grids = 1 + (left // every if every else 0)
        images += grids * evaluation.num_images * evaluation.num_inference_steps // _PASSES
    return seconds_per_image * images


def _seconds_per_image(run: Run) -> float | None:
    """Of the training on all processes: as the trial step of this kind took, or as the run took so far on this device.
    A run that goes on where it was makes no trial steps."""
    measured = run.choice.seconds.get(str(run.choice.compute))
    if measured is not None:
        return measured / run.choice.num_images / run.plan.num_processes
    *_, before, now = {}, *run.environments
    if now["from_step"] == run.state.step and any(before.get(key) != now[key] for key in _OF_SPEED):
        return None
    newest = newest_record(run.output_dir / RECORDS, run.state.step) or {}
    rate = newest.get("images_per_second")
    return 1 / rate if rate else None


def _memory(run: Run) -> int | None:
    """Bytes that the process takes of a device: weights, gradients, averages, optimizer state, activations, images."""
    if run.config.train.gradient_checkpointing:
        return None  # which activations are kept is not torch's own account
    weights = sum(parameter.nbytes for parameter in run.state.unet.parameters())
    state = {"sgd": 1 if getattr(run.config.optimizer, "momentum", 0) else 0, "adamw_8bit": 0.5, "muon": 1}
    is_there, to_come = 1 + len(run.state.averages), 1 + state.get(run.config.optimizer.name, 2)
    resident = run.data.train.prepared.pixels().nbytes if run.on_device else 0
    activations = activation_bytes(run.config, run.choice.compute) * run.plan.micro_batch_size
    needed = int(weights * to_come) + resident + activations
    if run.accelerator.device.type == "cpu":
        return needed + psutil.Process().memory_info().rss
    needed += weights * is_there
    if run.accelerator.device.type == "cuda":  # what the trial steps took besides: kernels' workspace, fragments
        needed = max(needed, torch.cuda.max_memory_reserved(run.accelerator.device))
    return needed


def activation_bytes(config: Config, compute: Compute) -> int:
    """What the forward pass of one image keeps for the backward pass, counted without memory."""
    images = Images(config.dataset.resolution, config.dataset.channels)
    total = _kept_bytes(config.model, images, config.noise_scheduler.num_train_timesteps)
    return total if compute.mixed_precision == "no" else total // 2


@lru_cache  # a notebook mostly trains the same network again
def _kept_bytes(model: Model, images: Images, num_train_timesteps: int) -> int:
    """In float32."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        unet = unet_of(model, images, num_train_timesteps)
        x_t = torch.empty(1, images.channels, *images.resolution)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            unet(x_t, torch.zeros(1, dtype=torch.long))
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


def enlarged(run: Run) -> Iterator[str]:
    """A line if images are smaller than the resolution."""
    height, width = run.config.dataset.resolution
    sizes = image_sizes(run.data.train.source, run.config.dataset.max_pixels)
    if number := num_enlarged(sizes, (height, width)):
        yield (
            f"warning: {number:,} of the {len(sizes):,} images that were looked at are smaller than {height}x{width} "
            "and are scaled up, which blurs them; give a smaller dataset.resolution=…"
        )


def warnings(run: Run) -> Iterator[str]:
    """A line for each reason why the pictures will disappoint."""
    config = run.config
    warmup, lr = config.lr_scheduler.warmup_steps, config.optimizer.lr
    if warmup >= run.max_steps:
        last = config.lr_scheduler.at(run.max_steps - 1, lr, run.max_steps)
        yield (
            f"warning: lr_scheduler.warmup_steps={warmup} is not shorter than the run of "
            f"{counted(run.max_steps, 'step')}: the learning rate ends at {last:.2g} and never reaches {lr:.2g}"
        )
    if too_short(run.max_steps, run.plan.batch_size):
        amount = f"{counted(run.max_steps, 'step')} of {counted(run.plan.batch_size, 'image')}"
        yield f"warning: {amount} will show noise, or spots of colour; give a larger train.max_steps=…"
