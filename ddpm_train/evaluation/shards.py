"""Whole batches shared over processes, so that no number depends on how many processes there are."""

from collections.abc import Callable

from accelerate import Accelerator
from torch import Tensor

from ddpm_train.system.signals import StopRequest


def fill_sharded(
    results: Tensor,
    compute: Callable[[range, Callable[[], None]], Tensor],
    batch_size: int,
    *,
    polls_per_batch: int,
    accelerator: Accelerator,
    stop: StopRequest,
) -> Tensor:
    """Apply `compute` to all items in batches, dealt out over the processes in turn.

    A batch holds the same items whatever the number of processes. Every process polls for a stop equally often,
    also one that has no batch left.

    Args:
        results: zeros [N, ...] on the process's device.
        compute: takes the items' range and a function to call `polls_per_batch` times; returns [len(range), ...].

    Returns:
        [N, ...], filled, on every process.

    Raises:
        Stopped: all processes, when one of them was asked to stop.
    """
    batches = [range(start, min(start + batch_size, len(results))) for start in range(0, len(results), batch_size)]
    for turn in range(0, len(batches), accelerator.num_processes):
        mine = turn + accelerator.process_index
        if mine < len(batches):
            items = batches[mine]
            results[items.start : items.stop] = compute(items, stop.check)
        else:
            for _ in range(polls_per_batch):
                stop.check()
    # Each row was filled by one process and is zero on the others.
    return accelerator.reduce(results, "sum")
