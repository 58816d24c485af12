"""Images prepared once: a memory-mapped file of uint8 pixels, keyed by content and transform.

A cache folder appears by one rename when it is complete, so a process killed in the middle leaves nothing that could
be taken for a cache. A file lock makes a second process wait for the first instead of repeating its work.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.sources import Source, describe
from ddpm_train.files import fsync_path
from ddpm_train.mistakes import Mistakes

FORMAT = 1
# Below this many images a pool of workers takes longer to start than it saves.
_MIN_IMAGES_FOR_WORKERS = 1024
_CHUNK = 64


@dataclass(frozen=True)
class Prepared:
    """A source after every image was decoded once.

    Attributes:
        folder: where it lies.
        usable: int64 [N], the source's index of each image that decodes.
        sizes: int32 [N, 2], height and width after the resize.
        content: SHA-256 over all pixels in order: the identity of the data, wherever it came from.
        broken: a line "name: reason" for each image that does not decode.
    """

    folder: Path
    usable: np.ndarray
    sizes: np.ndarray
    content: str
    broken: list[str]

    def __len__(self) -> int:
        return len(self.usable)

    def pixels(self) -> np.ndarray:
        """All pixels as one flat, memory-mapped uint8 array; image i is [C, H_i, W_i] after those before it."""
        return np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="r")


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm-train"


def prepare(
    source: Source,
    decoder: Decoder,
    cache_dir: Path,
    *,
    keep_pixels: bool,
    num_workers: int,
    max_broken_fraction: float,
    progress: bool,
) -> Prepared:
    """Decode every image once, or find where that has been done before.

    Args:
        keep_pixels: False keeps only which images decode and their hash (`dataset.cache=none`).
        num_workers: processes; 0 decodes in this one.
        progress: show a bar.

    Raises:
        Mistakes: no image decodes, or more are broken than `max_broken_fraction` allows.
    """
    key = hashlib.sha256(
        json.dumps([FORMAT, source.fingerprint, asdict(decoder), keep_pixels], sort_keys=True).encode()
    ).hexdigest()[:32]
    folder = cache_dir / key
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        if not folder.exists():
            with FileLock(cache_dir / f"{key}.lock"):
                # Another process may have finished while this one waited.
                if not folder.exists():
                    _build(folder, source, decoder, keep_pixels, num_workers, progress)
    except OSError as error:
        raise Mistakes(f"dataset.cache_dir={cache_dir}: {error.strerror or error}; choose another folder") from error
    prepared = _open(folder)
    _check_broken(prepared, len(source), max_broken_fraction)
    return prepared


def _build(folder: Path, source: Source, decoder: Decoder, keep_pixels: bool, num_workers: int, progress: bool) -> None:
    """Decode into a staging folder and publish it. Called under the lock: a staging folder found here is a dead one."""
    staging = folder.with_name(f"{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    usable: list[int] = []
    sizes: list[tuple[int, int]] = []
    broken: list[str] = []
    digest = hashlib.sha256()
    with open(staging / "pixels.bin", "wb") as file:
        bar = tqdm(total=len(source), desc="preparing images", unit="img", disable=not progress, leave=False)
        for index, decoded in _decode_all(source, decoder, num_workers):
            bar.update()
            if isinstance(decoded, str):
                broken.append(f"{source.name(index)}: {decoded}")
                continue
            usable.append(index)
            sizes.append((decoded.shape[1], decoded.shape[2]))
            digest.update(decoded.data)
            if keep_pixels:
                file.write(decoded.data)
        bar.close()
    np.save(staging / "usable.npy", np.array(usable, dtype=np.int64))
    np.save(staging / "sizes.npy", np.array(sizes, dtype=np.int32).reshape(-1, 2))
    (staging / "meta.json").write_text(json.dumps({"content": digest.hexdigest(), "broken": broken}))
    for entry in [*staging.iterdir(), staging]:
        fsync_path(entry)
    os.rename(staging, folder)
    fsync_path(folder.parent)


def _open(folder: Path) -> Prepared:
    meta = json.loads((folder / "meta.json").read_text())
    return Prepared(
        folder=folder,
        usable=np.load(folder / "usable.npy"),
        sizes=np.load(folder / "sizes.npy"),
        content=meta["content"],
        broken=meta["broken"],
    )


def _check_broken(prepared: Prepared, total: int, max_broken_fraction: float) -> None:
    listed = describe(prepared.broken)
    if len(prepared) == 0:
        raise Mistakes(f"dataset.path: none of its {total} images can be read ({listed})")
    if len(prepared.broken) > max_broken_fraction * total:
        raise Mistakes(
            f"dataset.max_broken_fraction={max_broken_fraction}: {len(prepared.broken)} of {total} images cannot be "
            f"read ({listed}); repair or remove them, or allow more"
        )


_worker_source: Source
_worker_decoder: Decoder


def _start_worker(source: Source, decoder: Decoder) -> None:
    global _worker_source, _worker_decoder
    _worker_source, _worker_decoder = source, decoder


def _decode_chunk(indices: range) -> list[np.ndarray | str]:
    return [_decode(_worker_source, _worker_decoder, index) for index in indices]


def _decode(source: Source, decoder: Decoder, index: int) -> np.ndarray | str:
    try:
        return source.load(index, decoder)
    except BrokenImage as error:
        return str(error)


def _decode_all(source: Source, decoder: Decoder, num_workers: int) -> Iterator[tuple[int, np.ndarray | str]]:
    """Every image in order, or why it is broken. At most four chunks for each worker are under way at once."""
    if num_workers == 0 or len(source) < _MIN_IMAGES_FOR_WORKERS:
        for index in range(len(source)):
            yield index, _decode(source, decoder, index)
        return
    # Forking a process that runs torch's threads can deadlock; spawned workers import no torch.
    context = multiprocessing.get_context("spawn")
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    with ProcessPoolExecutor(num_workers, context, _start_worker, (source, decoder)) as pool:
        pending: deque[tuple[range, Future[list[np.ndarray | str]]]] = deque()
        try:
            for chunk in chunks:
                pending.append((chunk, pool.submit(_decode_chunk, chunk)))
                if len(pending) > 4 * num_workers:
                    yield from _in_order(*pending.popleft())
            while pending:
                yield from _in_order(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(indices: range, future: "Future[list[np.ndarray | str]]") -> Iterator[tuple[int, np.ndarray | str]]:
    return zip(indices, future.result(), strict=True)
