"""Whether a layout is a network: built on torch's meta device, which has shapes and no memory, and run there once."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import UNet2DModel

from ddpm_train.config.mistakes import as_written, resolution_text
from ddpm_train.config.model import MOST_LEVELS, Model
from ddpm_train.config.parts import Resolution
from ddpm_train.models.unet import Images, unet_of
from ddpm_train.system.failures import first_line

# Divisible by two as often as any layout halves it. Nothing is computed, so that its size costs nothing.
_ANY_SIDE = 2 ** (MOST_LEVELS - 1)
# What any UNet2DModel works with, whatever else is chosen. Those that people choose for their own sake come last.
_SAFE: Mapping[str, Callable[[Model], Any]] = {
    "downsample_padding": lambda model: 1,
    "freq_shift": lambda model: 0,
    "attn_norm_num_groups": lambda model: None,
    "attention_head_dim": lambda model: None,
    "norm_num_groups": lambda model: max(1, math.gcd(32, *model.block_out_channels) // 2),
    "time_embedding_dim": lambda model: None,
    "up_block_types": lambda model: tuple(block.replace("Skip", "") for block in model.up_block_types),
    "down_block_types": lambda model: tuple(block.replace("Skip", "") for block in model.down_block_types),
}


@lru_cache  # the jobs of a sweep mostly have the same network
def layout_mistakes(model: Model, images: Images, num_train_timesteps: int) -> tuple[str, ...]:
    """A line if no network of this layout can be trained on these images."""
    reason = _reason(model, images, num_train_timesteps)
    if reason is None:
        return ()
    return (_line(model, images, num_train_timesteps, reason),)


def _reason(model: Model, images: Images, num_train_timesteps: int) -> str | None:
    return refusal(lambda: unet_of(model, images, num_train_timesteps), images.resolution)


def _line(model: Model, images: Images, num_train_timesteps: int, reason: str) -> str:
    """The fewest keys that must change, found by trying."""
    safe = {key: value(model) for key, value in _SAFE.items()}
    safe = {key: value for key, value in safe.items() if value != getattr(model, key)}
    few = replace(model, layers_per_block=min(2, model.layers_per_block))

    def works(changes: Mapping[str, Any]) -> bool:
        return _reason(replace(few, **changes), images, num_train_timesteps) is None

    if not works(safe):
        size = f"model.block_out_channels={as_written(model.block_out_channels)}"
        size += (
            f" model.layers_per_block={model.layers_per_block} dataset.resolution={resolution_text(images.resolution)}"
        )
        return f"{size}: no network of this layout works ({reason}); choose others"
    for key in reversed(list(safe)):
        if works(others := {other: value for other, value in safe.items() if other != key}):
            safe = others
    given, remedy = (
        " ".join(f"model.{key}={as_written(value)}" for key, value in values.items())
        for values in ({key: getattr(model, key) for key in safe}, safe)
    )
    return f"{given}: no network of this layout works ({reason}); use {remedy}"


def config_refusal(values: dict[str, Any]) -> str | None:
    """Why the network of a stored config cannot work on images of any size; None: it can on some."""
    return refusal(lambda: UNet2DModel.from_config(values), (_ANY_SIDE, _ANY_SIDE))


def refusal(build: Callable[[], UNet2DModel], resolution: Resolution) -> str | None:
    """Why a network cannot work on images of this (height, width), in a line; None: it can.

    Args:
        build: makes the network on the device that is torch's default then.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            unet = build()
            # One image: what normalises single values fails with it alone.
            x_t = torch.empty(1, unet.config.in_channels, *resolution)
            prediction = unet(x_t, torch.zeros(1, dtype=torch.long)).sample
        return next(_faults(unet, x_t.shape, prediction.shape), None)
    except Exception as error:  # diffusers and torch refuse by many kinds
        return first_line(error)


def _faults(unet: UNet2DModel, given: torch.Size, made: torch.Size) -> Iterator[str]:
    """What does not fail, and is of no use."""
    needed = 4 * sum(parameter.numel() for parameter in unet.parameters())
    if needed > memory_bytes():
        yield f"its weights alone take {needed / 1e9:,.1f} GB, and this machine has {memory_bytes() / 1e9:,.1f} GB"
    if made[0] != 1 or made[2:] != given[2:] or made[1] not in (given[1], 2 * given[1]):
        yield f"of an image {tuple(given[1:])} it makes {tuple(made[1:])}"
    if unet.config.time_embedding_type == "positional":
        embedded = unet.time_proj(torch.tensor([0, 1, (unet.config.num_train_timesteps or 1000) - 1]))
        if not bool(embedded.isfinite().all()):
            yield "the frequencies of its time embedding are no numbers"
        elif bool((embedded[0] == embedded[1]).all()):
            yield "its time embedding is the same for all timesteps"


def memory_bytes() -> int:
    """All memory of this machine, or what this process may have of it: a container, a job of Slurm, a service."""
    return min([psutil.virtual_memory().total, *_memory_limits()])


def _memory_limits() -> Iterator[int]:
    """Those of the control groups that this process lies in: its own, and each around it (cgroups(7))."""
    with suppress(OSError):  # a system without them
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            root = Path("/sys/fs/cgroup", controllers)
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            for around in (Path(group), *Path(group).parents):
                file = root / around.relative_to("/") / name
                if file.exists() and (limit := file.read_text("utf-8").strip()).isdigit():
                    yield int(limit)
