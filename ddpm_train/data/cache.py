"""Images prepared once: a memory-mapped file of uint8 pixels, keyed by content and transform.

A cache folder appears by one rename when it is complete, so a process killed in the middle leaves nothing that could
be taken for a cache. A file lock makes a second process wait for the first instead of repeating its work.
Memory does not grow with the pixels: they pass through in order, a few chunks at a time.
"""

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from array import array
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.decode import BrokenImage, CountingDecoder, Decoder
from ddpm_train.data.formats import formats_of
from ddpm_train.data.sources import Source
from ddpm_train.system.files import replace_folder
from ddpm_train.system.signals import SIGNALS, handle_signals

_FORMAT = 2
# What one process still decodes in this time needs no workers: they take about as long to start. The pace is known
# after `_PACE_SECONDS`.
_ALONE_SECONDS = 0.5
_PACE_SECONDS = 0.05
# Images go to a worker in chunks: large enough to hide the cost of sending them, small enough to bound the memory and
# for all workers to finish together. Each has some chunks ahead, so that it need not wait while the parent decodes.
_CHUNK_IMAGES = 16
_CHUNK_BYTES = 2**20
_CHUNKS_AHEAD = 3
_Decoded = tuple[int, np.ndarray | str, int]  # an image's index, its pixels or why it is broken, its unused frames


@dataclass(frozen=True)
class Prepared:
    """A source after every image was decoded once."""

    folder: Path
    usable: np.ndarray  # int64 [N]: the source's index of each image that decodes
    sizes: np.ndarray  # int32 [N, 2]: height and width after the resize
    content: str  # SHA-256 over all pixels in order: the identity of the data, wherever it came from
    broken: list[str]  # a line "name: reason" for each image that does not decode
    unused_frames: tuple[int, int]  # how many images have more frames than the first, and how many these are

    def __len__(self) -> int:
        return len(self.usable)

    def pixels(self) -> np.ndarray:
        """All pixels as one flat, memory-mapped uint8 array; image i is [C, H_i, W_i] after those before it."""
        return np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="r")


@dataclass(frozen=True)
class _Meta:
    """What `meta.json` holds besides the arrays; `num_bytes` is the size of `pixels.bin`."""

    content: str
    broken: list[str]
    unused_frames: tuple[int, int]
    num_bytes: int


def prepare(
    source: Source, decoder: Decoder, cache_dir: Path, *, keep_pixels: bool, num_workers: int, progress: bool
) -> Prepared:
    """Decode every image once, or find where that has been done before.

    Args:
        keep_pixels: False keeps only which images decode and their hash (`dataset.cache=none`).
        num_workers: processes that decode beside this one.
        progress: show a bar.

    Raises:
        Mistakes: `cache_dir` cannot be written, a worker was killed, or the images changed meanwhile.
    """
    fingerprint = source.fingerprint
    made_of = [_FORMAT, fingerprint, asdict(decoder), formats_of(b""), keep_pixels]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_dir / key
    if (prepared := _open(folder)) is not None:
        return prepared
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):
            # Another process may have finished while this one waited.
            if (prepared := _open(folder)) is None:
                with replace_folder(folder) as staging:
                    _build(staging, source, decoder, keep_pixels, num_workers, progress)
                    if source.fingerprint != fingerprint:
                        raise Mistakes(
                            "dataset.path: images changed while they were prepared; give the same command once nothing "
                            "writes there any more"
                        )
                prepared = _open(folder)
    except OSError as error:
        raise Mistakes(f"dataset.cache_dir={cache_dir}: {error.strerror or error}; choose another folder") from error
    except BrokenProcessPool:
        raise Mistakes(
            f"dataset.num_workers={num_workers}: a worker was killed while it prepared images, perhaps for want of "
            "memory; use fewer"
        ) from None
    assert prepared is not None
    return prepared


def _build(
    staging: Path, source: Source, decoder: Decoder, keep_pixels: bool, num_workers: int, progress: bool
) -> None:
    """Decode everything into an empty folder."""
    usable, sizes, unused_frames = array("q"), array("i"), array("q")
    broken: list[str] = []
    digest = hashlib.sha256()
    with (
        open(staging / "pixels.bin", "wb") as file,
        tqdm(total=len(source), desc="preparing images", unit="img", disable=not progress, leave=False) as bar,
        closing(_decode_all(source, CountingDecoder(**vars(decoder)), num_workers, staging)) as images,
    ):
        for index, decoded, frames in images:
            bar.update()
            if isinstance(decoded, str):
                broken.append(f"{source.name(index)}: {decoded}")
                continue
            usable.append(index)
            unused_frames.append(frames)
            sizes.extend(decoded.shape[1:])
            digest.update(decoded.data)
            if keep_pixels:
                file.write(decoded.data)
        num_bytes = file.tell()
    np.save(staging / "usable.npy", np.array(usable, dtype=np.int64))
    np.save(staging / "sizes.npy", np.array(sizes, dtype=np.int32).reshape(-1, 2))
    meta = _Meta(digest.hexdigest(), broken, (sum(map(bool, unused_frames)), sum(unused_frames)), num_bytes)
    (staging / "meta.json").write_text(json.dumps(asdict(meta)))


def _open(folder: Path) -> Prepared | None:
    """The cache in a folder; None if there is none, or not all of it (cleaners of temporary files take single ones)."""
    from ddpm_train.config.foreign import read_json  # not above: workers import this module, and need no pydantic

    try:
        meta = read_json(folder / "meta.json", _Meta)
        usable, sizes = (_load_array(folder / f"{name}.npy") for name in ("usable", "sizes"))
        num_bytes = (folder / "pixels.bin").stat().st_size
    except (OSError, ValueError, EOFError):
        return None
    whole = usable.dtype == np.int64 and sizes.dtype == np.int32 and sizes.shape == (*usable.shape, 2)
    if not whole or num_bytes != meta.num_bytes:
        return None
    return Prepared(folder, usable, sizes, meta.content, meta.broken, meta.unused_frames)


def _load_array(path: Path) -> np.ndarray:
    """An array of integers; raises ValueError if the file holds something else, or less than its header says."""
    with open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


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


def _decode_chunk(indices: range) -> list[_Decoded]:
    return [_decode(*_work, index) for index in indices]


def _decode(source: Source, decoder: CountingDecoder, index: int) -> _Decoded:
    try:
        return index, source.load(index, decoder), decoder.unused_frames
    except BrokenImage as error:
        return index, str(error), 0


def _decode_all(
    source: Source, decoder: CountingDecoder, num_workers: int, scratch: Path
) -> Generator[_Decoded, None, None]:
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


def _submit(pool: ProcessPoolExecutor, indices: range) -> "Future[list[_Decoded]]":
    with starting_workers():  # submitting starts workers
        return pool.submit(_decode_chunk, indices)


def _decode_beside(
    pool: ProcessPoolExecutor, source: Source, decoder: CountingDecoder, num_workers: int, first: int
) -> Iterator[_Decoded]:
    """The images from `first` on. This process takes a chunk itself whenever the workers have enough to do."""
    size = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // decoder.max_bytes))
    pending: deque[Future[list[_Decoded]]] = deque()
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
