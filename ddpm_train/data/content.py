"""One hash of what a dataset's files hold, computed anew only if the file system says that one of them has changed."""

import hashlib
import os
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ddpm_train.system.files import file_lock, write_atomic

_READERS = 16  # files read at once: what takes long is to reach them
_FILES_AT_ONCE = 64  # by one reader, before it says so
_BLOCK_BYTES = 2**20
# Two changes within a tick of a file system's clock leave the same times; no clock in use ticks slower.
_TICK_SECONDS = 2


def content_hash(root: Path, names: Sequence[str], cache_dir: Path | None) -> str:
    """SHA-256 over the names and all bytes of files, of which some may be absent.

    It is found again as long as no file's size, times, inode or mode has changed. Of the times that of the last change
    of the inode counts, too, which no program can set: unlike the time of the last change of the content.

    Args:
        names: relative to `root`, or absolute.
        cache_dir: where the hash is kept; None: nowhere.
    """
    if cache_dir is None or not names:
        return _read_all(root, names)
    started = time.time()
    state, newest = _state(root, names)
    kept = cache_dir / "contents" / state
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(f"{kept}.lock"):  # of all processes of a launch one reads
            if (known := _known(kept)) is not None:
                return known
            content = _read_all(root, names)
            if newest < started - _TICK_SECONDS and _state(root, names)[0] == state:
                write_atomic(kept, content.encode())
            return content
    except OSError:  # nothing can be kept there; perhaps the images have been prepared all the same
        return _read_all(root, names)


def _known(kept: Path) -> str | None:
    try:
        content = kept.read_text()
        return content if len(bytes.fromhex(content)) == hashlib.sha256().digest_size else None
    except (OSError, ValueError):
        return None


def _state(root: Path, names: Sequence[str]) -> tuple[str, float]:
    """What the file system says of the files, as a hash; and when the last change of any of them was, in seconds."""
    digest, newest = hashlib.sha256(), 0
    for name in names:
        version: tuple[object, ...]
        try:
            status = os.stat(os.path.join(root, name))
            version = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
            newest = max(newest, status.st_ctime_ns)
        except (OSError, ValueError) as error:
            version = (type(error).__name__,)
        digest.update(f"{name}\0{version}\n".encode(errors="surrogateescape"))
    return digest.hexdigest(), newest / 1e9


def _read_all(root: Path, names: Sequence[str]) -> str:
    digest, stop = hashlib.sha256(), threading.Event()
    chunks = [names[start : start + _FILES_AT_ONCE] for start in range(0, len(names), _FILES_AT_ONCE)]
    pool = ThreadPoolExecutor(_READERS)
    try:
        with tqdm(total=len(names), desc="reading images", unit="file", disable=None, leave=False, delay=1) as bar:
            read = pool.map(lambda chunk: [_file_hash(os.path.join(root, name), stop) for name in chunk], chunks)
            for chunk, hashes in zip(chunks, read, strict=True):
                bar.update(len(chunk))
                for name, content in zip(chunk, hashes, strict=True):
                    digest.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    finally:
        stop.set()  # a signal may have ended this in the middle of a large file
        pool.shutdown(cancel_futures=True)
    return digest.hexdigest()


def _file_hash(path: str, stop: threading.Event) -> str:
    """SHA-256 of a file, or why it cannot be read."""
    digest = hashlib.sha256()
    try:
        # To open a pipe would wait for its other end.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return "not a regular file"
            while not stop.is_set() and (block := file.read(_BLOCK_BYTES)):
                digest.update(block)
    except (OSError, ValueError) as error:
        return type(error).__name__
    return digest.hexdigest()
