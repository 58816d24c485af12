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
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.decode import BrokenImage, CountingDecoder
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
Decoded = tuple[int, np.ndarray | str, int]  # an image's index, its pixels or why it is broken, its unused frames


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


_work: tuple[Source, CountingDecoder]  # of a worker


def _start_worker(path: str) -> None:
    global _work
    with open(path, "rb") as file:
        _work = pickle.load(file)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers would wait for ever for the next chunk from a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode_chunk(indices: range) -> list[Decoded]:
    return [_decode(*_work, index) for index in indices]


def _decode(source: Source, decoder: CountingDecoder, index: int) -> Decoded:
    try:
        return index, source.load(index, decoder), decoder.unused_frames
    except BrokenImage as error:
        return index, str(error), 0


def decode_all(
    source: Source, decoder: CountingDecoder, num_workers: int, scratch: Path
) -> Generator[Decoded, None, None]:
    """Every image in order, or why it is broken.

    This process decodes all the time: alone until workers are worth starting and the first of them is there, then
    beside them.
    """
    started = time.monotonic()
    for index in range(len(source)):
        elapsed, left = time.monotonic() - started, len(source) - index
        if num_workers and elapsed >= _PACE_SECONDS and elapsed * left >= _ALONE_SECONDS * index:
            break
        yield _decode(source, decoder, index)
    else:
        return
    with _workers(source, decoder, num_workers, scratch) as (pool, ready):
        while index < len(source) and not ready.done():
            yield _decode(source, decoder, index)
            index += 1
        yield from _decode_beside(pool, source, decoder, num_workers, index)


@contextmanager
def _workers(
    source: Source, decoder: CountingDecoder, num_workers: int, scratch: Path
) -> Iterator[tuple[ProcessPoolExecutor, "Future[Any]"]]:
    """Starts workers without waiting for them; the future is done when the first one is there."""
    # Forking a process that runs torch's threads can deadlock; spawned workers import no torch.
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    # Through a file: a long list of names does not fit into a pipe, and this process would wait for a worker's imports.
    with tempfile.NamedTemporaryFile(dir=scratch) as work:
        pickle.dump((source, decoder), work)
        work.flush()
        try:
            pool = ProcessPoolExecutor(num_workers, context, _start_worker, (work.name,))
        except OSError as error:  # its locks lie in shared memory
            raise Mistakes(
                f"dataset.num_workers={num_workers}: workers to prepare images cannot be started ({error.strerror}); "
                "make room in /dev/shm, or use dataset.num_workers=0"
            ) from None
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
    pool: ProcessPoolExecutor, source: Source, decoder: CountingDecoder, num_workers: int, first: int
) -> Iterator[Decoded]:
    """The images from `first` on. This process takes a chunk itself whenever the workers have enough to do."""
    size = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // decoder.max_bytes))
    pending: deque[Future[list[Decoded]]] = deque()
    for start in range(first, len(source), size):
        chunk = range(start, min(start + size, len(source)))
        if sum(not future.done() for future in pending) < _CHUNKS_AHEAD * num_workers:
            pending.append(_submit(pool, chunk))
        else:
            pending.append(Future())
            pending[-1].set_result([_decode(source, decoder, index) for index in chunk])
        while pending and (pending[0].done() or len(pending) > 2 * _CHUNKS_AHEAD * num_workers):
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()
