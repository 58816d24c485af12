"""Signals that ask a run to stop -> a flag that all processes agree on. Imports no torch until they connect."""

import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from ddpm_train.system import exit_codes

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
# Python handles a signal when its main thread comes back from a call of C, be that a backward pass of a minute. Before
# there is anything to save, nobody waits longer than this.
ANSWER_SECONDS = 3.0
# Shorter than what schedulers give, and longer than images take to load.
_GROUP_PATIENCE_SECONDS = 15.0


def handle_signals(handler: Callable[[int, FrameType | None], object]) -> dict[signal.Signals, Any]:
    """Have the signals that ask to stop handled; returns the handlers before. Under `nohup` SIGHUP stays ignored."""
    heard = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    return {each: signal.signal(each, handler) for each in heard}


class Stopped(BaseException):
    """The run was asked to stop, by the signal that the text names.

    Not an `Exception`: it can be raised inside any library, which must not handle it.
    """


class StoppedWaiting(Stopped):
    """Asked to stop while it waited for images: nothing of the step that wants them has happened."""


class StopRequest:
    """Turns SIGTERM, SIGUSR1, SIGUSR2 (schedulers' warnings), SIGHUP (a closed terminal) and Ctrl-C into a request.

    A second Ctrl-C leaves at once. A context manager, which puts the old handlers back. Outside the main thread Python
    cannot listen to signals, and there is never a request.

    Until `defer` there is nothing to save, and a signal raises `Stopped` at once. From then on
    the request waits until all processes ask for it at the same place.

    Args:
        leave: ends the program, called with the signal's name from another thread where the main one, long after a
            signal before `defer`, has not left by itself. None: it may take its time.
        answer: called from that thread with what follows from the first Ctrl-C, at the moment it comes.
    """

    def __init__(
        self, leave: Callable[[str], object] | None = None, answer: Callable[[str], object] = lambda line: None
    ) -> None:
        self.signal_name: str | None = None
        self._leave = leave
        self._answer = answer
        self._deferred = threading.Event()
        self._group: dist.ProcessGroup | None = None
        self._vote: tuple[torch.Tensor, dist.Work] | None = None  # under way
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = handle_signals(self._note)
            if self._leave is not None:
                arrived, wakeup = os.pipe()
                os.set_blocking(wakeup, False)
                signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
                # To the end of the program: it must not keep this object, and its group of processes, alive.
                needs = (arrived, self._deferred, self._leave, self._answer)
                threading.Thread(target=_attend, args=needs, name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._deferred.clear()  # what was to be saved has been

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            exit_codes.leave(exit_codes.INTERRUPTED)
        self.signal_name = signal.Signals(number).name
        if not self._deferred.is_set():
            raise self.stopped()

    def stopped(self) -> Stopped:
        """What ends the run, raised on all processes."""
        return Stopped(self.signal_name or "another process was asked to")

    def connect(self, channel: "dist.ProcessGroup | None") -> None:
        """From now on the processes agree, over this channel: on the CPU, so that no step waits for a device."""
        self._group = channel

    def defer(self) -> None:
        """From now on there is something to lose, and requests wait to be asked for."""
        self._deferred.set()

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

    def _start_vote(self, wish: bool) -> "tuple[torch.Tensor, dist.Work]":
        import torch
        import torch.distributed as dist

        votes = torch.tensor([self.signal_name is not None, wish], dtype=torch.uint8)
        return votes, dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def check(self) -> None:
        """Raise `Stopped` on all processes if any was asked to stop."""
        if self.agree()[0]:
            raise self.stopped()

    def give_up(self, seconds: float) -> None:
        """Raise `StoppedWaiting` if this process, asked to stop, has waited that long for what may never come."""
        alone = self._group is None  # others would be left to fail: as a rule all stop together
        if self.signal_name is not None and (alone or seconds > _GROUP_PATIENCE_SECONDS):
            raise StoppedWaiting(self.signal_name)


def _attend(
    arrived: int, deferred: threading.Event, leave: Callable[[str], object], answer: Callable[[str], object]
) -> None:
    """Read each signal's number when it arrives, whatever the main thread does, and see that it is answered."""
    interrupted, waited_for, until = False, "", math.inf
    while True:
        left = None if until == math.inf else max(0.0, until - time.monotonic())
        if not select.select([arrived], [], [], left)[0]:
            until = math.inf
            # The process may also wait for threads of its own, when it leaves by itself.
            if not deferred.is_set():
                leave(waited_for)
            continue
        number = os.read(arrived, 1)[0]
        if number not in SIGNALS:
            continue
        if number == signal.SIGINT and interrupted:
            exit_codes.leave(exit_codes.INTERRUPTED)
        if not deferred.is_set() and until == math.inf:
            waited_for, until = signal.Signals(number).name, time.monotonic() + ANSWER_SECONDS
        if number == signal.SIGINT:
            interrupted = True
            doing = "finishing the step, saving" if deferred.is_set() else "stopping"
            answer(f"{doing}; press Ctrl-C again to leave at once")


def _result(votes: "torch.Tensor", exchange: "dist.Work") -> tuple[bool, bool]:
    exchange.wait()
    stop, wish = votes.tolist()
    return bool(stop), bool(wish)
