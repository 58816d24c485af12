"""What a person sees: what will run, one live line, and what to do next."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from ddpm_train.config.text import shown
from ddpm_train.system.pace import Pace, as_clock

# Without a terminal: a line about this often, and always the last.
_LINE_EVERY_SECONDS = 10.0


def counted(number: int, noun: str, plural: str = "s") -> str:
    """A number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else plural}"


class Console:
    """Speaks on the main process only; the other processes' consoles are silent.

    Attributes:
        pace: of the steps that are shown.
    """

    def __init__(self, enabled: bool) -> None:
        self.pace = Pace()
        self._enabled = enabled
        self._bar: tqdm[Any] | None = None
        self._last_line = float("-inf")
        self._total = 0
        self._unit = "step"
        self._batch_size: int | None = None
        self._seconds_besides: Callable[[], float] = lambda: 0.0
        self._text = ""

    @property
    def live(self) -> bool:
        """Whether there is a terminal to draw progress bars on."""
        return self._enabled and sys.stderr.isatty()

    def say(self, *lines: str) -> None:
        if self._enabled:
            for line in map(shown, lines):
                tqdm.write(line, file=sys.stdout) if self._bar is not None else print(line)
            sys.stdout.flush()

    def warn(self, line: str) -> None:
        if self._enabled:
            tqdm.write(shown(line), file=sys.stderr)

    def table(self, rows: dict[str, str]) -> None:
        self.say(*(f"  {name:<10} {value}" for name, value in rows.items()))

    def start(
        self,
        done: int,
        total: int,
        unit: str = "step",
        *,
        batch_size: int | None = None,
        seconds_besides: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Begin to show how far something is.

        Args:
            batch_size: images of a step, where they are to be counted, too.
            seconds_besides: what is still to come between the steps and after them, as far as that is known.
        """
        self.pace.begin()
        self._total, self._unit, self._text = total, unit, ""
        self._batch_size, self._seconds_besides = batch_size, seconds_besides
        self._last_line = float("-inf")
        if self.live:
            shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, bar_format=shape)

    def step(self, done: int) -> None:
        """Show that so many training steps are done; what they came to follows with their records."""
        self.pace.note(done)
        if self._bar is not None or done < self._total:  # without a terminal the last line waits for its record
            self._show(done)

    def progress(self, record: dict[str, Any]) -> None:
        """Show a training step's record."""
        if "loss" in record:
            self._text = f"loss {record['loss']:.4f}  lr {record['lr']:.2e}"
            self._show(record["step"])

    def update(self, done: int) -> None:
        """So much is done."""
        self.pace.note(done)
        self._show(done)

    def _show(self, done: int) -> None:
        """Move the bar, or print a line now and then."""
        if not self._enabled:
            return
        words = self._words(done)
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(words), refresh=False)
            self._bar.update(done - self._bar.n)
        elif (words and time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS) or done == self._total:
            self._last_line = time.monotonic()
            where = f"{time.strftime('%H:%M:%S')}  {self._unit} {done}/{self._total}"
            print("  ".join([where, *words]), flush=True)

    def _words(self, done: int) -> list[str]:
        """When it will be at its end, the newest record, and how fast it goes."""
        seconds = self.pace.seconds_per_step
        words = [self._text] if self._text else []
        if seconds is None:
            return words
        if done < self._total:
            words.insert(0, f"ETA {as_clock(seconds * (self._total - done) + self._seconds_besides())}")
        each = self._unit.split()[-1]  # of a "real image", an image
        words.append(f"{seconds:.2f} s/{each}" if seconds >= 1 else f"{1000 * seconds:.0f} ms/{each}")
        return words + ([f"{self._batch_size / seconds:.0f} img/s"] if self._batch_size else [])

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
