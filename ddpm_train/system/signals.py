"""Signals that ask a run to stop -> a flag that all processes agree on."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(BaseException):
    """The run was asked to stop, by the signal that the text names.

    Not an `Exception`: it can be raised inside any library, which must not handle it.
    """


class StopRequest:
    """Turns SIGTERM, SIGUSR1, SIGUSR2 (schedulers' warnings) and Ctrl-C into a request; a second Ctrl-C leaves at once.

    A context manager, which puts the old handlers back. Outside the main thread Python cannot listen to signals, and
    there is never a request.

    Until `connect` there is nothing to save, and a signal raises `Stopped` at once. From then on
    the request waits until all processes ask for it at the same place.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._connected = False
        self._group: dist.ProcessGroup | None = None
        self._vote: tuple[torch.Tensor, dist.Work] | None = None  # under way
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            os._exit(128 + number)
        self.signal_name = signal.Signals(number).name
        if not self._connected:
            raise self.stopped()

    def stopped(self) -> Stopped:
        """What ends the run, raised on all processes."""
        return Stopped(self.signal_name or "another process was asked to")

    def connect(self, channel: dist.ProcessGroup | None) -> None:
        """From now on the processes agree, over this channel: on the CPU, so that no step waits for a device."""
        self._group = channel
        self._connected = True

    def agree(self, wish: bool = False) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether any has the `wish`.

        All processes must call this at the same places. It fails if another process has died.
        """
        if self._group is None:
            return self.signal_name is not None, wish
        return _result(*self._start_vote(wish))

    def vote(self, wish: bool = False) -> tuple[bool, bool]:
        """What all processes agreed on at the call before this one: that exchange ran while the device computed."""
        if self._group is None:
            return self.agree(wish)
        before, self._vote = self._vote, self._start_vote(wish)
        return _result(*before) if before else (False, False)

    def _start_vote(self, wish: bool) -> tuple[torch.Tensor, dist.Work]:
        votes = torch.tensor([self.signal_name is not None, wish], dtype=torch.uint8)
        return votes, dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def check(self) -> None:
        """Raise `Stopped` on all processes if any was asked to stop."""
        if self.agree()[0]:
            raise self.stopped()


def _result(votes: torch.Tensor, exchange: dist.Work) -> tuple[bool, bool]:
    exchange.wait()
    stop, wish = votes.tolist()
    return bool(stop), bool(wish)
