"""What only one process does, and all must know."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on the main process; every process returns its result, or raises its error."""
    state = PartialState()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    result, raised = outcome
    if raised is not None:
        raise raised
    return cast(T, result)
