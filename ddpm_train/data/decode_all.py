"""Decodes a source's images once, in order, on all cores.

Memory does not grow with the images: a few chunks of them are under way at a time.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ddpm_train.data.decode import BrokenImage, Decoder, LastFrame
from ddpm_train.data.frames import MOST_FRAMES, FrameReader
from ddpm_train.data.sources import Source
from ddpm_train.system.signals import SIGNALS, handle_signals

# What one process still decodes in this time needs no workers: they take about as long to start. The pace is known
# after `_PACE_SECONDS`.
_ALONE_SECONDS = 0.5
_PACE_SECONDS = 0.05
# Images go to a worker in chunks: large enough to hide the cost of sending them, small enough to bound the memory and
# for all workers to finish together. Each has some chunks ahead, so that it need not wait while the parent decodes.
_CHUNK_IMAGES = 16
_CHUNK_BYTES = 2**20
_CHUNKS_AHEAD = 3
# What a worker sends at once of files with many frames.
_MESSAGE_BYTES = 2**24


class Decoded(NamedTuple):
    """An image, or why it is broken."""

    item: int  # of the source
    frame: int
    pixels: np.ndarray | str  # uint8 [C, H, W], or why it is broken
    others: int  # further frames of the same file, at most MOST_FRAMES


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes started in here do not run the program's main file, and never see the signals that ask a run to stop.

    A script that calls `ddpm_train.train` without an `if __name__ == "__main__":` would train once more in each worker.

    A terminal or a scheduler sends those signals to all processes; the parent ends its workers itself. New processes
    inherit the mask. The parent's own handlers run afterwards (another thread may receive a signal): an exception from
    one would leave a process behind that nobody knows.
    """
    resource_tracker.ensure_running()  # multiprocessing's own helper; starting it would undo the mask
    arrived: list[int] = []
    listening = threading.current_thread() is threading.main_thread()  # Python listens to signals nowhere else
    handlers = handle_signals(lambda number, _: arrived.append(number)) if listening else {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in arrived:
            signal.raise_signal(number)


_work: tuple[Source, FrameReader]  # of a worker


def _start_worker(path: str) -> None:
    global _work
    with open(path, "rb") as file:
        source, decoder = pickle.load(file)
    _work = source, FrameReader(**vars(decoder))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers would wait for ever for the next chunk from a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode_chunk(indices: range) -> list[Decoded]:
    return _begin_chunk(*_work, indices)


def _begin_chunk(source: Source, reader: FrameReader, indices: range) -> list[Decoded]:
    """The images of the first of these indices, or of all: as many as are sent at once."""
    decoded: list[Decoded] = []
    most = _most_sent(reader)
    for index in indices:
        decoded += islice(_decode(source, reader, index), most)
        if len(decoded) >= most:
            break
    return decoded


def _most_sent(reader: FrameReader) -> int:
    return max(1, _MESSAGE_BYTES // reader.max_bytes)


def _decode(source: Source, reader: FrameReader, index: int) -> Iterator[Decoded]:
    """What one item of the source stands for: an image, or all frames of it."""
    with closing(reader):
        first = _load(source, reader, index)
        numbers = reader.numbers
        others = sum(number > 0 for number in numbers)
        used = numbers[:MOST_FRAMES] if reader.frames == "all" else (0,)
        for number in used:
            pixels = first if number == 0 else _load(source, reader.at(number), index)
            if isinstance(pixels, LastFrame) and number != used[-1]:
                yield Decoded(index, number, f"{pixels}; the frames after it are lost, too", others)
                return
            yield Decoded(index, number, str(pixels) if isinstance(pixels, BrokenImage) else pixels, others)


def _load(source: Source, reader: FrameReader, index: int) -> np.ndarray | BrokenImage:
    try:
        return source.load(index, reader)
    except BrokenImage as error:
        return error


def decode_all(source: Source, decoder: Decoder, num_workers: int, scratch: Path) -> Generator[Decoded, None, None]:
    """Every image in order, or why it is broken.

    This process decodes all the time: alone until workers are worth starting and the first of them is there, then
    beside them.
    """
    reader = FrameReader(**vars(decoder))
    started = time.monotonic()
    for index in range(len(source)):
        elapsed, left = time.monotonic() - started, len(source) - index
        if num_workers and elapsed >= _PACE_SECONDS and elapsed * left >= _ALONE_SECONDS * index:
            break
        yield from _decode(source, reader, index)
    else:
        return
    with _workers(source, decoder, num_workers, scratch) as (pool, ready):
        while index < len(source) and not ready.done():
            yield from _decode(source, reader, index)
            index += 1
        if pool is not None:
            yield from _decode_beside(pool, source, reader, num_workers, index)


@contextmanager
def _workers(
    source: Source, decoder: Decoder, num_workers: int, scratch: Path
) -> Iterator[tuple[ProcessPoolExecutor | None, "Future[Any]"]]:
    """Starts workers without waiting for them; the future is done when the first one is there.

    There are none, and never will be, where their locks find no room in shared memory.
    """
    # Forking a process that runs torch's threads can deadlock; spawned workers import no torch.
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    # Through a file: a long list of names does not fit into a pipe, and this process would wait for a worker's imports.
    with tempfile.NamedTemporaryFile(dir=scratch) as work:
        pickle.dump((source, decoder), work)
        work.flush()
        try:
            pool = ProcessPoolExecutor(num_workers, context, _start_worker, (work.name,))
        except OSError as error:
            reason = f"no worker to prepare images can be started ({error.strerror})"
            print(f"warning: {reason}; they would be prepared sooner with room in /dev/shm", file=sys.stderr)
            yield None, Future()
            return
        try:
            # A pool starts a worker for each task that finds none idle.
            ready = [_submit(pool, range(0)) for _ in range(num_workers)]
            yield pool, ready[0]
        except BaseException:
            # Nobody needs their images any more, and some may still be importing.
            for worker in multiprocessing.active_children():
                if worker not in others:
                    worker.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, indices: range) -> "Future[list[Decoded]]":
    with starting_workers():  # submitting starts workers
        return pool.submit(_decode_chunk, indices)


def _decode_beside(
    pool: ProcessPoolExecutor, source: Source, reader: FrameReader, num_workers: int, first: int
) -> Iterator[Decoded]:
    """The images from index `first` on. This process takes a chunk itself whenever the workers have enough to do."""
    size = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // reader.max_bytes))
    pending: deque[tuple[range, Future[list[Decoded]]]] = deque()

    def finish_first() -> Iterator[Decoded]:
        chunk, future = pending.popleft()
        decoded = future.result()
        yield from decoded
        last, most = decoded[-1], _most_sent(reader)
        if reader.frames == "all" and last.others >= most == sum(each.item == last.item for each in decoded):
            # To send the rest piece by piece would begin the file anew for each.
            yield from islice(_decode(source, reader, last.item), most, None)
        if rest := range(last.item + 1, chunk.stop):
            pending.appendleft((rest, _submit(pool, rest)))

    for start in range(first, len(source), size):
        chunk = range(start, min(start + size, len(source)))
        if sum(not future.done() for _, future in pending) < _CHUNKS_AHEAD * num_workers:
            pending.append((chunk, _submit(pool, chunk)))
        else:
            pending.append((chunk, Future()))
            pending[-1][1].set_result(_begin_chunk(source, reader, chunk))
        while pending and (pending[0][1].done() or len(pending) > 2 * _CHUNKS_AHEAD * num_workers):
            yield from finish_first()
    while pending:
        yield from finish_first()
