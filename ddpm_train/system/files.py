"""Files that are there whole or not at all."""

import errno
import glob
import hashlib
import mmap
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_train.config.mistakes import Mistakes

if TYPE_CHECKING:
    from filelock import FileLock

# After so long without a change, a file that a process of another host was writing is taken for left behind.
_ABANDONED_SECONDS = 3600


def expanded(path: str) -> Path:
    """A path as a user wrote it, with the home folder for a leading `~`, as far as that is known."""
    return Path(os.path.expanduser(path))


# How a file begins that Git LFS has not fetched: a small text in its place.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER_BYTES = 1024


def lfs_mistakes(place: str, path: Path) -> Iterator[str]:
    """A line if Git LFS has not fetched the file, or some below the folder.

    Args:
        place: how the user named it, such as "dataset.path=cats".
    """
    files = [path] if path.is_file() else [Path(folder, file) for folder, _, names in os.walk(path) for file in names]
    small = (file for file in files if file.is_file() and file.stat().st_size < _LARGEST_POINTER_BYTES)
    if pointers := sorted(file for file in small if file.read_bytes().startswith(LFS_POINTER)):
        kind = "is a Git LFS pointer" if len(pointers) == 1 else "are Git LFS pointers"
        first = "" if path.is_file() else f" ({pointers[0].relative_to(path)} first)"
        yield f"{place}: {len(pointers):,} of its files {kind}{first}; run `git lfs pull` in the clone"


def cache_folder(given: str | None) -> Path:
    """Where what can be made again is kept: `dataset.cache_dir`, or a place for all runs of a user.

    Raises:
        Mistakes: none is given, and the user has no home.
    """
    if given:
        return expanded(given)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):
        raise Mistakes("HOME: not set, and this user has no home folder; set it, or XDG_CACHE_HOME, to a folder")
    return Path(cache) / "ddpm-train"


def file_lock(path: Path | str) -> "FileLock":
    """A lock of the operating system, which ends with its process.

    Where a file system has none, taking it raises an OSError. filelock would put a file there in its stead, which stays
    when its process is killed, and for which another host would wait for ever.
    """
    from filelock import FileLock  # not for those who only write a command wrongly

    return FileLock(path, fallback_to_soft=False)


def fsync_path(path: Path) -> None:
    """Flush a file's data, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Folders shared by a server or a virtual machine know no such call (CIFS, vboxsf, FUSE).
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader, or a crash, sees the old content or the new, never a part."""
    with replace_file(path) as staging:
        staging.write_bytes(data)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Fill the yielded staging file; on leaving without an error it takes the place of `path`.

    What processes that were killed have left of such files is removed.
    """
    name, host = f".{path.name}.staging-", socket.gethostname().replace("/", "_")
    for left in path.parent.glob(f"{glob.escape(name)}*"):
        its_host, _, pid = left.name.removeprefix(name).rpartition("-")
        with suppress(FileNotFoundError):
            if (its_host == host and not _is_running(pid)) or time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()
    staging = path.with_name(f"{name}{host}-{os.getpid()}")
    try:
        yield staging
        fsync_path(staging)
        os.replace(staging, path)
        fsync_path(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def _is_running(pid: str) -> bool:
    import psutil  # not for those who only write a command wrongly

    return pid.isdecimal() and psutil.pid_exists(int(pid))


def cleared(path: Path) -> Path:
    """Remove what stands at this path; returns it, or another that is free where something cannot be removed.

    NFS keeps a file that another process has open, and its folder with it, until that closes it.
    """
    for left in (path, *path.parent.glob(f"{glob.escape(path.name)}-*")):
        shutil.rmtree(left, ignore_errors=True)
    while os.path.lexists(path):
        path = path.with_name(f"{path.name}-")
    return path


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Fill the yielded staging folder; on leaving without an error it takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = cleared(path.with_name(f".{path.name}.staging"))
    staging.mkdir()
    try:
        yield staging
        for entry in [*staging.rglob("*"), staging]:
            fsync_path(entry)
        # A folder cannot be replaced in one call on every file system; the old one steps aside first.
        old = cleared(path.with_name(f".{path.name}.old"))
        if path.exists():
            move_or_remove(path, old)
        os.rename(staging, path)
        fsync_path(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file that never changes in a second place; the folder there is made if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a disk that has no hard links, or no such file any more
        shutil.copyfile(source, target)


def move_or_remove(folder: Path, target: Path) -> None:
    """Give a folder that is to go another name, where that is possible, so that it goes at once."""
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(folder)  # it came with the image of a container, whose folders cannot be moved (overlayfs)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def output_mistakes(key: str, folder: str) -> Iterator[str]:
    """A line if the folder cannot be made or written in."""
    remedy = "choose another name or output_dir" if key == "output_dir" else f"choose another {key}"
    existing = Path(folder)
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            yield f"{key}={folder}: not a folder; {remedy}"
            return
        # Tried, not asked: permissions alone do not tell of read-only disks, nor of what root may not do.
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"-")
            file.flush()
            mmap.mmap(file.fileno(), 0).close()  # as checkpoints are read, which not every network file system can
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # no mistake: once there is room, the same command is right
        if error.errno == errno.ENODEV:
            yield f"{key}={folder}: {existing} is on a disk that cannot map files into memory; choose another {key}"
            return
        yield f"{key}={folder}: cannot write in {existing} ({error.strerror}); choose another {key}"
