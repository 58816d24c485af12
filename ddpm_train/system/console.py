"""What a person sees: what will run, one live line, and what to do next."""

import sys
import time
from typing import Any

from tqdm import tqdm

from ddpm_train.config.text import shown

# Without a terminal: a line about this often, and always the last.
_LINE_EVERY_SECONDS = 10.0


def counted(number: int, noun: str, plural: str = "s") -> str:
    """A number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else plural}"


class Console:
    """Speaks on the main process only; the other processes' consoles are silent."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._bar: tqdm[Any] | None = None
        self._last_line = float("-inf")
        self._total = 0
        self._unit = "step"

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

    def start(self, done: int, total: int, unit: str = "step") -> None:
        self._total = total
        self._unit = unit
        if self.live:
            self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True)

    def progress(self, record: dict[str, Any]) -> None:
        """Show a training step's record."""
        if "loss" in record:
            text = f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  {record['images_per_second']:.0f} img/s"
            self.update(record["step"], text)

    def update(self, done: int, text: str = "") -> None:
        """Move the bar, or print a line now and then."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(shown(text), refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS or done == self._total:
            self._last_line = time.monotonic()
            print(f"{self._unit} {done}/{self._total}  {shown(text)}".rstrip(), flush=True)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
