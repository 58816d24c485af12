"""How a device computes a training step: number format, memory layout, attention kernels, compiled or not.

What is fastest depends on the device and the network, so `auto` is measured, once. The choice is kept in every
checkpoint and on resume, so that a run does not depend on a second measurement.
"""

import ctypes
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddpm_train.config.train import Train
from ddpm_train.system.console import counted

# What is less exact or less simple must be faster by this share of the time.
MARGINS = {"mixed_precision": 0.1, "channels_last": 0.05, "attention": 0.05, "compile": 0.05}
# Compiling takes about a minute on a GPU, where it saves a third. On a CPU it takes minutes, many on a busy one, before
# the first step, and saves a tenth at best.
COMPILE_FROM_SECONDS = {"cuda": 300.0}
# A comparison takes so many rounds at least, and then as many as it needs to trust its times, for so long.
_LEAST_ROUNDS, _COMPARE_SECONDS = 3, 4.0
# A best time is trusted when two others come as near to it as this share.
_TRUSTED_WITHIN = 0.03
# How libraries say that memory has run out, besides those that Accelerate knows; in lower case.
_OUT_OF_MEMORY = (
    "out of memory",  # the drivers and allocators of CUDA, ROCm, XPU and MPS
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "allocation_failed",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "unable to find an engine to execute this computation",  # cuDNN: none whose workspace could be had
    "error_out_of_",  # Level Zero, below XPU: ..._DEVICE_MEMORY, ..._HOST_MEMORY, ..._RESOURCES
    "invalid buffer size",  # MPS: larger than any buffer may be
    "not enough memory",  # the CPU's allocator on Windows
)


@dataclass(frozen=True)
class Compute:
    """How a step is computed."""

    mixed_precision: str  # no (float32), bf16 or fp16: what autocast multiplies in; weights stay float32
    channels_last: bool  # activations and convolution weights lie as [B, H, W, C] in memory
    attention: str  # fused (the best of torch's fused kernels) or math (plain matrix products)
    compile: bool | str  # by torch.compile; a text is its mode

    def __str__(self) -> str:
        parts = ["fp32" if self.mixed_precision == "no" else self.mixed_precision]
        parts += ["channels_last"] if self.channels_last else []
        parts += ["math attention"] if self.attention == "math" else []
        if self.compile:
            parts.append("compiled" if self.compile is True else f"compiled {self.compile}")
        return " + ".join(parts)

    @classmethod
    def named(cls, name: str) -> "Compute":
        """The inverse of `str`."""
        precision, *others = name.split(" + ")
        modes = [other.removeprefix("compiled").strip() for other in others if other.startswith("compiled")]
        return cls(
            "no" if precision == "fp32" else precision,
            channels_last="channels_last" in others,
            attention="math" if "math attention" in others else "fused",
            compile=(modes[0] or True) if modes else False,
        )

    def apply(self, unet: nn.Module) -> None:
        """Lay out and compile the network's weights, in place; names and values stay.

        It is compiled at the first call for each shape: as a whole, or that call raises.
        """
        unet.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        if not self.compile:
            unet._compiled_call_impl = None  # what `Module.compile` sets
        elif unet._compiled_call_impl is None:
            # Of the caches of diffusers' own version checks, which change nothing while the program runs.
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
            mode = self.compile if isinstance(self.compile, str) else None
            unet.compile(dynamic=False, fullgraph=True, mode=mode)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mixed_precision)
        return torch.autocast(device.type, dtype) if dtype else nullcontext()

    def attention_kernels(self) -> AbstractContextManager[Any]:
        return sdpa_kernel(SDPBackend.MATH) if self.attention == "math" else nullcontext()


# The same numbers as diffusers' own loops.
PLAIN = Compute("no", channels_last=False, attention="fused", compile=False)


class Stopwatch:
    """Times trial steps, each kind of them once.

    Args:
        step: a forward and backward pass of some images.
        seconds: what has been measured before, by the name of what computed it.
    """

    def __init__(self, step: Callable[[Compute], None], device: torch.device, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._step = step
        self._device = device

    def __call__(self, compute: Compute) -> float:
        """The best time seen, after a step that warms up."""
        if str(compute) not in self.seconds:
            try:
                self._once(compute)
                self.seconds[str(compute)] = self._once(compute)
            except Exception as error:
                # A compiler needs tools that a machine may lack, and knows many ways to say so.
                if not compute.compile or out_of_memory(error):
                    raise
                self.seconds[str(compute)] = math.inf
        return self.seconds[str(compute)]

    def compare(self, one: Compute, other: Compute) -> float:
        """The other's best time as a share of the one's."""
        if not {str(one), str(other)} <= self.seconds.keys() and math.isfinite(self(one) + self(other)):
            self._take_turns(one, other)
        return self(other) / self(one)

    def _take_turns(self, *computes: Compute) -> None:
        """Time them in rounds: a machine that others use, too, is not equally busy all the time.

        It goes on until each has come three times to its best time, which no neighbour has then spoiled.
        """
        times = {str(compute): [self(compute)] for compute in computes}
        started, rounds = time.perf_counter(), 0
        while (rounds < _LEAST_ROUNDS or not all(map(_best_is_trusted, times.values()))) and (
            time.perf_counter() - started < _COMPARE_SECONDS
        ):
            # Who begins follows Thue and Morse, a sequence without a period: a neighbour may have one.
            for compute in computes[:: 1 if rounds.bit_count() % 2 else -1]:
                times[str(compute)].append(self._once(compute))
            rounds += 1
        self.seconds |= {name: min(seconds) for name, seconds in times.items()}

    def _once(self, compute: Compute) -> float:
        started = time.perf_counter()
        self._step(compute)
        torch.get_device_module(self._device).synchronize()
        return time.perf_counter() - started


def _best_is_trusted(seconds: list[float]) -> bool:
    best, _, third = sorted(seconds)[:3]
    return third <= (1 + _TRUSTED_WITHIN) * best


def choose(start: Compute, options: Mapping[str, Sequence[Any]], stopwatch: Stopwatch) -> Compute:
    """The fastest way, found field by field.

    Args:
        start: is left for what is faster by the field's margin.
        options: field of `Compute` -> what else to try there.
    """
    chosen = start
    for key, values in options.items():
        for value in values:
            candidate = replace(chosen, **{key: value})
            if stopwatch.compare(chosen, candidate) < 1 - MARGINS[key]:
                chosen = candidate
    return chosen


def choose_for_training(
    train: Train,
    device: torch.device,
    stopwatch: Stopwatch,
    *,
    steps_left: float,
    say: Callable[[str], None] = lambda line: None,
) -> Compute:
    """Settle what the config leaves to `auto`.

    Args:
        say: shows a line to a person, before what takes long.
        steps_left: how many trial steps the run takes; a short one does not repay compiling.
    """
    others: dict[str, list[Any]] = {
        "mixed_precision": ["bf16"] if multiplies_in_bf16(device) else [],
        "channels_last": [True],
        "attention": ["math"],
    }
    # Compiled is only what has won: compiling each candidate would take longer than it can tell.
    settled = {key: value for key in others if (value := getattr(train, key)) != "auto"}
    options = {key: values for key, values in others.items() if key not in settled}
    chosen = choose(replace(PLAIN, **settled), options, stopwatch)
    if train.compile != "auto":
        return replace(chosen, compile=train.compile)
    repaid_after = COMPILE_FROM_SECONDS.get(device.type)
    if repaid_after is None or steps_left * stopwatch(chosen) <= repaid_after:
        return chosen
    compiled = replace(chosen, compile=True)
    if str(compiled) not in stopwatch.seconds:
        say("compiling the training step, to measure that, too (about a minute; train.compile=false skips it) …")
    torch.compiler.reset()  # what an earlier run of this process compiled may have other kernels in it
    return choose(chosen, {"compile": [True]}, stopwatch)


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU's memory: what is free, and all."""
    if device.type == "mps":  # it is the CPU's, too
        total = torch.mps.recommended_max_memory()
        return total - torch.mps.driver_allocated_memory(), total
    free, total = torch.get_device_module(device).mem_get_info(device)
    return free, total


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for it, and does not emulate them."""
    if device.type in ("cuda", "xpu"):
        return bool(torch.get_device_module(device).is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def keep_memory() -> None:
    """Have the C library keep freed memory: glibc gives large blocks back to the system, and each step would take and
    clear them anew."""
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            # M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h
            for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
                libc.mallopt(option, value)


def set_backends(train: Train) -> None:
    """Let CUDA's libraries use what the config allows, and look for the fastest convolution; keep the CPU's memory.

    With `train.deterministic` torch takes algorithms that add up in the same order each time, in attention's backward
    pass, too, and refuses those that have no such order; the fastest convolution of today is not looked for.
    """
    keep_memory()
    if train.deterministic != torch.are_deterministic_algorithms_enabled():  # to say it imports the compiler
        torch.use_deterministic_algorithms(train.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # would only show what is read before it is written
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if train.allow_tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = train.allow_tf32
        torch.backends.cudnn.benchmark = not train.deterministic


def device_name(device: torch.device) -> str:
    """The device's name, such as "NVIDIA H100" or "cpu, 4 threads"."""
    if device.type == "cpu":
        return f"cpu, {counted(torch.get_num_threads(), 'thread')}"
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def out_of_memory(error: Exception) -> bool:
    """Whether memory has run out, of a device or of the host."""
    said = str(error).lower()
    # oneDNN's convolutions do not say why they could not be set up; on a CPU it is for want of memory.
    known = said == "could not create a primitive" or any(words in said for words in _OUT_OF_MEMORY)
    return known or isinstance(error, MemoryError) or should_reduce_batch_size(error)


def largest_fitting(sizes: list[int], trial: Callable[[int], None]) -> int:
    """The first of `sizes` (largest first) whose trial does not run out of memory.

    Raises:
        RuntimeError, MemoryError: the last one does, too.
    """
    for size in sizes[:-1]:
        try:
            trial(size)
            return size
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        clear_device_cache(garbage_collection=True)
    trial(sizes[-1])
    return sizes[-1]
