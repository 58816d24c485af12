"""What the processes of a launch tell each other: what only one of them does, and how it went on each.

They wait for each other over the CPU, for as long as it takes. The device's own exchange (NCCL) gives up after ten
minutes: it is for gradients, for which all come at the same time.
"""

import os
import pickle
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.system.exit_codes import NOT_SAVED, CannotGoOn
from ddpm_train.system.failures import is_refused_by_disk
from ddpm_train.system.signals import Stopped

T = TypeVar("T")
# A dead process ends all the others at once: its connections close.
PATIENCE = timedelta(days=30)
_EVERYWHERE = "raised_by_every_process"
_channel: dist.ProcessGroup | None = None


class FailedElsewhere(CannotGoOn):
    """Another process cannot go on; the text says which, and why."""

    everywhere = False  # the one that failed tells its own

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def join() -> PartialState:
    """This process's place in its launch; the first call meets the other processes."""
    global _channel
    state = PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU") == "True")
    if state.num_processes > 1 and _channel is None:
        _channel = dist.new_group(backend="gloo", timeout=PATIENCE)
    return state


def leave() -> None:
    """Close the connections to the other processes."""
    global _channel
    if dist.is_initialized():
        dist.destroy_process_group()
    _channel = None


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on the main process; every process returns its result, or raises its error."""
    state = join()
    if state.num_processes == 1:
        return action()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = action()
        except (Exception, Stopped) as error:
            outcome[1] = _as_sent(error)
    dist.broadcast_object_list(outcome, group=_channel)
    result, raised = outcome
    if raised is not None:
        raise _everywhere(raised)
    return cast(T, result)


def everywhere(action: Callable[[], T], *, fetches: bool = False) -> T:
    """Run `action`, in which no process waits for another, on every process; each returns its own result.

    Args:
        fetches: it fetches what stays on the disk: one process of each machine goes first, and the others find that.

    Raises:
        Mistakes: on all processes, if there is one on any; a line says where, if it is not everywhere.
        FailedElsewhere: this process could go on, but another has failed, with an error that it raises itself.
    """
    state = join()
    if state.num_processes == 1:
        return action()
    if fetches:
        fetched = everywhere(lambda: action() if state.is_local_main_process else None)
        return everywhere(lambda: cast(T, fetched) if state.is_local_main_process else action())
    result, raised = None, None
    try:
        result = action()
    except (Exception, Stopped) as error:
        raised = error
    failures = [failure for failure in gather(None if raised is None else _Failure.of(raised)) if failure is not None]
    if raised is not None and not isinstance(raised, Mistakes):
        raise _everywhere(raised)
    if any(failure.stopped for failure in failures):
        raise Stopped("another process was asked to")
    if others := [failure for failure in failures if failure.error is not None]:
        raise _everywhere(FailedElsewhere(f"{others[0].where}: {others[0].error}", others[0].exit_code))
    if failures:
        raise _everywhere(Mistakes(*_merged(failures)))
    return cast(T, result)


def is_everywhere(error: BaseException) -> bool:
    """Whether every process raises an error at this point, this or another: they can go on together."""
    return join().num_processes == 1 or hasattr(error, _EVERYWHERE)


def _everywhere(error: BaseException) -> BaseException:
    setattr(error, _EVERYWHERE, True)
    return error


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    state = join()
    values: list[Any] = [value] * state.num_processes
    if state.num_processes > 1:
        dist.all_gather_object(values, value, group=_channel)
    return values


def broadcast(tensor: Tensor) -> None:
    """Write the main process's values into a tensor that all processes have alike, on any device."""
    dist.broadcast(tensor, src=0, group=_channel if tensor.device.type == "cpu" else None)


def open_channel() -> dist.ProcessGroup | None:
    """A further one between all processes, for what must not wait for its turn; None if there is but one."""
    return dist.new_group(backend="gloo", timeout=PATIENCE) if join().num_processes > 1 else None


def wait_for_all() -> None:
    """Until every process has come here."""
    gather(None)


def require_same(what: str, value: T, tell: Callable[[T, T], str]) -> None:
    """Raise `Mistakes` on all processes if `value` is not the same on all.

    Args:
        what: names the value in the message.
        tell: the difference, given the main process's value and another.
    """
    values = gather((value, here()))
    first, where_first = values[0]
    for other, where in values[1:]:
        if other != first:
            raise Mistakes(f"{what}: not the same on {where} as on {where_first}: {tell(first, other)}")


def here() -> str:
    """This process, for a person."""
    return f"process {join().process_index} on {socket.gethostname()}"


@dataclass(frozen=True)
class _Failure:
    """Why a process cannot go on: the lines of its mistakes, or an error of another kind."""

    where: str
    lines: tuple[str, ...] = ()
    error: str | None = None
    stopped: bool = False
    exit_code: int = 1

    @classmethod
    def of(cls, error: BaseException) -> "_Failure":
        if isinstance(error, Mistakes):
            return cls(here(), lines=tuple(error.lines))
        code = NOT_SAVED if is_refused_by_disk(error) else getattr(error, "exit_code", 1)
        text = f"{type(error).__name__}: {error}"
        return cls(here(), error=text, stopped=isinstance(error, Stopped), exit_code=code)


def _merged(failures: Sequence[_Failure]) -> list[str]:
    """Each mistake once, with where it is, unless it is everywhere."""
    places: dict[str, list[str]] = {}
    for failure in failures:
        for line in failure.lines:
            places.setdefault(line, []).append(failure.where)
    merged = []
    for line, where in places.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        merged.append(line if len(where) == join().num_processes else f"{line} ({where[0]}{more})")
    return merged


def _as_sent(error: BaseException) -> BaseException:
    """The error, or what can be sent of it: the other processes would wait for ever for one that cannot."""
    with suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")
