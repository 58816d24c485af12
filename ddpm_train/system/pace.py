"""How fast steps go on, and when they will be at their end: one clock for all that is said of it."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

# What is told is the mean of so many seconds: long enough to stand still, short enough to follow the machine.
_RECENT_SECONDS = 30.0


class Pace:
    """The seconds of recent steps, without the rests between them."""

    def __init__(self) -> None:
        self._rested = 0.0
        self._recent: deque[tuple[float, int]] = deque()  # seconds and steps done, oldest first

    def seconds(self) -> float:
        """On a clock that stands still during rests; its zero means nothing."""
        return time.monotonic() - self._rested

    @contextmanager
    def resting(self) -> Iterator[None]:
        """What is done in here is no step."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._rested += time.monotonic() - started

    def begin(self) -> None:
        """Other steps, of another length, follow."""
        self._recent.clear()

    def note(self, done: int) -> None:
        """So many steps are done. The first of this process, which sets things up, only starts the clock."""
        now = self.seconds()
        self._recent.append((now, done))
        while len(self._recent) > 2 and self._recent[1][0] < now - _RECENT_SECONDS:
            self._recent.popleft()

    @property
    def seconds_per_step(self) -> float | None:
        """None until there are two steps to tell it from."""
        if not self._recent:
            return None
        (began, first), (now, done) = self._recent[0], self._recent[-1]
        return (now - began) / (done - first) if done > first else None


def as_clock(seconds: float) -> str:
    """A time as a clock shows it, such as "0:07", "12:05" or "3:10:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
