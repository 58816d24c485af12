"""What a user can get wrong, told in one line each."""

import difflib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ddpm_train.config.text import shown


class Mistakes(Exception):
    """One or more user mistakes, each a line "key=value: what is wrong; the remedy".

    The programs print the lines and exit with code 2; a traceback would only hide them.
    """

    def __init__(self, *lines: str) -> None:
        # Wherever they are told, whatever they repeat: the name of a file, a password in a URL, a very long value.
        self.lines: Sequence[str] = tuple(map(shown, lines))
        super().__init__("\n".join(self.lines))

    def __reduce__(self) -> tuple[type["Mistakes"], tuple[str, ...]]:
        return type(self), tuple(self.lines)  # as processes send it: the text alone has lost which lines there are


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" did you mean 'x'?"` for the known word nearest to `word`, else an empty string.

    A dotted key is also found by its last part: `batch_size` finds `train.batch_size`.
    """
    known = [key for key in known if not word.startswith(f"{key}.")]  # its section is not what was meant
    close = [key for key in known if key.rsplit(".", 1)[-1] == word]
    close = close or difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if not close:
        tails = {key.rsplit(".", 1)[-1]: key for key in known}
        close = [tails[tail] for tail in difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, n=1, cutoff=0.75)]
    return f" did you mean {' or '.join(repr(key) for key in close)}?" if close else ""


def no_such_key(given: str, key: str, known: Iterable[str]) -> str:
    """The line for a key that there is not; `given` is how it was written."""
    return f"{given}: no such key;{did_you_mean(key, known) or ' see --cfg job'}"


def no_such_choice(group: str, choice: str, known: Sequence[str]) -> str:
    """The line for a choice that a group does not have."""
    return f"{group}={choice}: no such config;{did_you_mean(choice, known)} (one of {', '.join(known)})"


def as_written(value: object) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{as_written(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def not_installed(given: str, package: str, extra: str) -> Iterator[str]:
    """A line if what the user wrote needs a package that is not installed; this project's extra brings it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a folder of that name, as packages leave where they have worked
        yield f"{given}: {package} is not installed; pip install 'ddpm-train[{extra}]'"


def one_of(names: Sequence[object]) -> str:
    """`a, b or c`."""
    *first, last = map(str, names)
    return f"{', '.join(first)} or {last}" if first else last


def resolution_text(resolution: tuple[int, int]) -> str:
    """A resolution as one writes it: one number if it is square, else [height,width]."""
    return as_written(resolution[0] if resolution[0] == resolution[1] else resolution)
