"""Errors: trying again where that may help, and error texts in one line."""

import errno
import re
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LONGEST_PAUSE_SECONDS = 30.0
# No space, a quota used up, a limit on the size of files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A disk that is read-only or broken, a server of files that has lost them, a drive of a notebook that has gone (FUSE).
_FAILING = (
    *(errno.EROFS, errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG, errno.ESHUTDOWN),
    *(errno.ENOTCONN, errno.EREMOTEIO, errno.EHOSTDOWN),
)


def retry(
    call: Callable[[], T],
    *,
    seconds: float,
    is_final: Callable[[Exception], bool],
    asked_to_wait: Callable[[Exception], float] = lambda error: 0.0,
) -> T:
    """The result of `call`, tried again 1, 2, 4 … seconds after each failure.

    Args:
        call: may be repeated without harm.
        seconds: how long after the first failure it is tried again.
        is_final: whether another try cannot help.
        asked_to_wait: how many seconds the other side asks to wait; if fewer are left, there is no other try.

    Raises:
        Exception: that of the last try.
    """
    give_up, pause = None, 1.0
    while True:
        try:
            return call()
        except Exception as error:
            now = time.monotonic()
            give_up = now + seconds if give_up is None else give_up
            left, asked = give_up - now, asked_to_wait(error)
            if is_final(error) or left <= 0 or asked > left:
                raise
        time.sleep(max(asked, min(pause, left)))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def is_refused_by_disk(error: BaseException) -> bool:
    """Whether a disk has not taken what was to be written, or not given what is on it."""
    return _number(error) in (*_FULL, *_FAILING)


def disk_remedy(error: BaseException) -> str:
    """What helps against such an error."""
    return "Make room" if _number(error) in _FULL else "Wait until the disk works again"


def _number(error: BaseException) -> int | None:
    """The system's number of an error. safetensors gives it in its text alone."""
    number = getattr(error, "errno", None)
    told = re.search(r"os error (\d+)", str(error)) if number is None else None
    return int(told[1]) if told else number


def imported_in_vain(error: BaseException) -> str | None:
    """Which library could not be imported, and why, if that is what happened.

    Libraries read the environment when they are imported (TORCH_LOGS, HF_HUB_DOWNLOAD_TIMEOUT), and miss other ones.
    """
    if error.__cause__ is not None and (line := imported_in_vain(error.__cause__)):
        return line  # diffusers imports its parts when they are asked for, and raises another error from that one
    modules = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>")
    names = [str(module.f_globals.get("__name__")).partition(".")[0] for module in modules]
    own = (__name__.partition(".")[0], "__main__")
    library = next((name for name in reversed(names) if name not in own), None)
    return library and f"{library} cannot be imported: {first_line(error)}"


def one_line(error: BaseException) -> str:
    """The error's text in one line; its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of the error's text; its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
