"""The processes of a launch, and work that they share so that no number depends on how many they are."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_train.system.compute import out_of_memory
from ddpm_train.system.console import Console
from ddpm_train.system.ranks import everywhere
from ddpm_train.system.signals import StopRequest

# An extractor gets images in batches of this size, whatever the other batch sizes are: another size rounds differently.
BATCH_IMAGES = 32


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
        unit: str | None = None,
    ) -> Tensor:
        """Apply `compute` to all items in batches, dealt out over the processes in turn.

        A batch holds the same items whatever the number of processes. Every process asks equally often whether to
        stop, also one that has no batch left.

        Args:
            results: zeros [N, ...] on the process's device.
            compute: takes the items' range and a function to call now and then, which may raise `Stopped`; returns
                [len(range), ...].
            polls_per_batch: the most calls of that function.
            unit: what the items are called on the console; None: show nothing.

        Returns:
            [N, ...], filled, on every process.

        Raises:
            Stopped: all processes, when one of them was asked to stop.
            FailedElsewhere: `compute` has failed on another process, with an error that it raises itself.
        """
        count, num_processes, polls_left = len(results), self.accelerator.num_processes, 0
        failure: Exception | None = None
        console = Console(enabled=False) if unit is None else self.console

        def poll() -> None:
            nonlocal polls_left
            polls_left -= 1
            self.stop.check()

        console.start(0, count, unit or "item")
        for turn in range(0, count, batch_size * num_processes):
            polls_left = polls_per_batch
            items = range(turn, count)[self.accelerator.process_index * batch_size :][:batch_size]
            if items and failure is None:
                failure = self._fill_rows(results, items, partial(compute, items, poll))
            while polls_left > 0:
                poll()
            console.update(min(turn + batch_size * num_processes, count))
        console.finish()
        everywhere(lambda: _raise(failure))
        # Each row was filled by one process and is zero on the others.
        return self.accelerator.reduce(results, "sum")

    def _fill_rows(self, results: Tensor, items: range, compute: Callable[[], Tensor]) -> Exception | None:
        """Returns what has gone wrong where others wait for this process's answers: it goes on to the end with them."""
        try:
            results[items.start : items.stop] = compute()
        except Exception as error:
            if self.accelerator.num_processes == 1 or out_of_memory(error):
                raise
            return error
        return None


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
