"""What comes from elsewhere: small files read as values of known types and sizes.

Whoever reads JSON or YAML in this project reads it here: a run, a checkpoint, a model or a cache may have been damaged,
edited, or made by somebody who means harm.
"""

import os
import re
import stat
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.text import printable as printable

T = TypeVar("T")

# The largest file that is read this way, the index of a model in many shards, has a few MB.
_LARGEST_BYTES = 64 << 20
# What nobody means by a number: YAML 1.1 counts 010 in eights, and 1:20 in sixties.
_MISREAD = re.compile(r"[-+]?(0[0-7_]*[1-7][0-7_]*|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class BadFile(Mistakes, ValueError):
    """A file that does not hold what it should; the text names it and says why, in one line.

    A program that was asked for the file ends with that line; who can do without the file catches it.
    """


def read_json(path: Path, shape: type[T]) -> T:
    """The value in a JSON file.

    Args:
        shape: its type, such as `dict[str, float]` or a dataclass, of which unknown keys are left out. Nothing is
            converted: a text is no number.

    Raises:
        BadFile: it is no regular file, too large, not UTF-8, not JSON, or not of that type.
        OSError: it is not there, or cannot be read.
    """
    return parse_json(_read(path), shape, str(path))


def parse_json(data: str | bytes, shape: type[T], name: str) -> T:
    """The same as `read_json` for what is in memory; `name` is what errors call it.

    Raises:
        BadFile: see `read_json`.
    """
    try:
        value: T = _adapter(shape).validate_json(data, strict=True)  # type: ignore[arg-type]  # types are hashable
        return value
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, detail["loc"]))
        reason = detail["msg"].removeprefix("Value error, ")
        raise BadFile(printable(f"{name}: {f'{where}: ' if where else ''}{reason}")) from None


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file, which must be a mapping, and of which no part may stand for another (`*alias`):
    a few of them can stand for more than any memory holds.

    Raises:
        BadFile: it is no regular file, too large, not UTF-8, not YAML, or not like that.
        OSError: it is not there, or cannot be read.
    """
    try:
        values = parse_yaml(_read(path).decode(), str(path))
    except UnicodeDecodeError as error:
        raise BadFile(printable(f"{path}: is not UTF-8: {error}; save it as UTF-8")) from None
    if not isinstance(values, dict):
        raise BadFile(printable(f"{path}: is not a mapping of keys to values"))
    if others := [key for key in values if not isinstance(key, str)]:
        raise BadFile(printable(f"{path}: YAML takes a key for {others[0]}, which is no text; put it in quotes"))
    return values


def parse_yaml(text: str, name: str) -> Any:
    """The value in a text, likewise; `name` is what errors call it."""
    try:
        for event in yaml.parse(text, yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise BadFile(printable(f"{name}: holds an alias (*name); write out what it stands for"))
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _MISREAD.fullmatch(event.value):
                read_as = yaml.safe_load(event.value)
                line = event.start_mark.line + 1 if event.start_mark else 0
                advice = f"write {read_as} if you mean that, a text in quotes, and any other number as it is"
                raise BadFile(printable(f"{name}, line {line}: {event.value} is {read_as} in YAML; {advice}"))
        return yaml.load(text, yaml.CSafeLoader)
    except BadFile:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}: {problem}" if mark else str(error)
        raise BadFile(printable(f"{name}: is not YAML: {where}")) from None


def _read(path: Path) -> bytes:
    """Whole, if it is a regular file: to open a pipe would wait for its other end."""
    if path.is_dir():
        raise BadFile(printable(f"{path}: is a folder"))
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(printable(f"{path}: is no regular file"))
        if status.st_size > _LARGEST_BYTES:
            raise BadFile(printable(f"{path}: has {status.st_size:,} bytes, more than {_LARGEST_BYTES:,}"))
        return file.read(status.st_size + 1)  # which takes no more memory than there is to read
