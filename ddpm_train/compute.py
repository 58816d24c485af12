"""Which way of computing the same thing is the fastest on this machine: measured, not assumed."""

import time
from collections.abc import Callable

import torch

_ROUNDS = 3


def fastest(
    candidates: dict[str, Callable[[], object]], *, margin: float, device: torch.device
) -> tuple[str, dict[str, float]]:
    """Time each candidate after a warm-up, in turns.

    Args:
        candidates: name -> one step. The first is the simplest, and wins unless another is faster by `margin`.
        margin: 0.1 is ten percent.

    Returns:
        The name of the winner, and each candidate's seconds for one step (the best of its turns).
    """

    def seconds(step: Callable[[], object]) -> float:
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for step in candidates.values():
        seconds(step)
    times = {name: float("inf") for name in candidates}
    for _ in range(_ROUNDS):
        for name, step in candidates.items():
            times[name] = min(times[name], seconds(step))
    simplest, best = next(iter(times)), min(times, key=times.__getitem__)
    return (best if times[simplest] > (1 + margin) * times[best] else simplest), times
