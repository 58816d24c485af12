"""What is said to a person may be lost. What is printed to be used may not."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class _Dropping(io.FileIO):
    """A file descriptor that takes everything: what its reader does not is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)  # None: a descriptor that does not wait for its reader
        except OSError:
            return len(data)


def take_every_character() -> None:
    """Let the standard streams write as escapes what their encoding lacks, as that of a plain C locale lacks "…"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # it writes first what is left to be written
                stream.reconfigure(errors="backslashreplace")


def forgiving(stream: TextIO | None) -> TextIO:
    """A stream to the same place, or to nowhere if there is none, that can always be written to.

    A full disk, a closed pipe, a terminal that is gone: nothing that is said is worth a run, whichever library says it.
    """
    if stream is None:  # as after `>&-`
        return open(os.devnull, "w")
    with suppress(OSError):
        stream.flush()
    if not isinstance(stream, io.TextIOWrapper):  # a notebook has its own
        return stream
    try:
        dropping = io.BufferedWriter(_Dropping(stream.fileno(), "w", closefd=False))
    except OSError:  # it writes to memory
        return stream
    return io.TextIOWrapper(
        dropping,
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,  # PYTHONUNBUFFERED sets only the other
        write_through=stream.write_through,
    )


@contextmanager
def lost_output_forgiven() -> Iterator[None]:
    """In here, what is said may be lost."""
    out, err = forgiving(sys.stdout), forgiving(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            for stream in (out, err):
                with suppress(OSError):
                    stream.flush()
