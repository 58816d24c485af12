"""The processes of a launch, and work that they share so that no number depends on how many they are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_train.system.console import Console
from ddpm_train.system.signals import StopRequest


@dataclass(frozen=True)
class Workers:
    """The processes of a launch, the request that stops them, and what shows a person how far they are."""

    accelerator: Accelerator
    stop: StopRequest
    console: Console

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def fill(
        self,
        results: Tensor,
        compute: Callable[[range, Callable[[], None]], Tensor],
        batch_size: int,
        *,
        polls_per_batch: int = 1,
    ) -> Tensor:
        """Apply `compute` to all items in batches, dealt out over the processes in turn.

        A batch holds the same items whatever the number of processes. Every process asks equally often whether to
        stop, also one that has no batch left.

        Args:
            results: zeros [N, ...] on the process's device.
            compute: takes the items' range and a function to call now and then, which may raise `Stopped`; returns
                [len(range), ...].
            polls_per_batch: the most calls of that function.

        Returns:
            [N, ...], filled, on every process.

        Raises:
            Stopped: all processes, when one of them was asked to stop.
        """
        batches = [range(start, min(start + batch_size, len(results))) for start in range(0, len(results), batch_size)]
        for turn in range(0, len(batches), self.accelerator.num_processes):
            polls = _Polls(self.stop, polls_per_batch)
            mine = turn + self.accelerator.process_index
            if mine < len(batches):
                items = batches[mine]
                results[items.start : items.stop] = compute(items, polls.poll)
            polls.finish()
        # Each row was filled by one process and is zero on the others.
        return self.accelerator.reduce(results, "sum")


@dataclass
class _Polls:
    """So many questions whether to stop."""

    stop: StopRequest
    left: int

    def poll(self) -> None:
        self.left -= 1
        self.stop.check()

    def finish(self) -> None:
        while self.left > 0:
            self.poll()
