"""Code that a command names is imported, before anything is composed. A config that names code runs none."""

import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_train.config.mistakes import Mistakes, as_written

KEY = "extensions"


def import_modules(names: Sequence[str], config_dir: Path | None = None) -> None:
    """Import these modules, from the current folder too.

    Args:
        config_dir: another folder where modules may lie.

    Raises:
        Mistakes: a module cannot be imported; a line for each.
    """
    if names:
        # At the end: a folder named as an installed package is must not take its place.
        sys.path += [path for path in map(str, (Path.cwd(), config_dir or Path.cwd())) if path not in sys.path]
    lines = []
    for name in map(str, names):
        try:
            importlib.import_module(name)
        except Exception as error:
            lines.append(f"{KEY}={as_written(names)}: {_reason(name, error)}")
    if lines:
        raise Mistakes(*lines)


def unnamed_mistakes(values: Mapping[str, Any]) -> Iterator[str]:
    """A line if a config names a module that the command does not import."""
    names = values.get(KEY) or ()
    if isinstance(names, list | tuple) and (unnamed := [name for name in names if name not in sys.modules]):
        yield (
            f"{KEY}={as_written(unnamed)}: this config names code, which runs only if the command names it too; "
            f"if you trust it, add '{KEY}={as_written(names)}'"
        )


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return f"there is no module {error.name}; put it into this folder or that of --config-dir, or install it"
    frames = traceback.extract_tb(error.__traceback__)
    # The line of the module itself, and not of what it calls.
    place = next((frame for frame in reversed(frames) if frame.name == "<module>"), frames[-1])
    file, line = place.filename, place.lineno
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    reason = str(error).splitlines()[0] if str(error) else "no reason given"
    return f"{name} fails in {file}, line {line} ({type(error).__name__}: {reason}); correct it"
