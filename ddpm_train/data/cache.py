"""Images prepared once: a memory-mapped file of pixels, uint8 but for arrays, keyed by content and transform.

A cache folder appears by one rename when it is complete, so a process killed in the middle leaves nothing that could
be taken for a cache. A file lock makes a second process wait for the first instead of repeating its work.
Memory does not grow with the pixels: they pass through in order, a few chunks at a time.
"""

import hashlib
import json
from array import array
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.text import printable
from ddpm_train.data.decode import Broken, Decoder
from ddpm_train.data.decode_all import decode_all
from ddpm_train.data.duplicates import pixel_hash
from ddpm_train.data.formats import formats_of
from ddpm_train.data.frames import MOST_FRAMES, frame_name
from ddpm_train.data.sources import Source, pixel_dtype
from ddpm_train.system.files import file_lock, replace_folder

_FORMAT = 7


@dataclass(frozen=True)
class Prepared:
    """A source after every image was decoded once."""

    folder: Path
    usable: np.ndarray  # int64 [N]: the source's index of each image that decodes, ascending
    frames: np.ndarray  # int32 [N]: which frame of it the image is
    sizes: np.ndarray  # int32 [N, 2]: height and width after the resize
    content: str  # SHA-256 over all pixels in order: the identity of the data, wherever it came from
    broken: list[Broken]
    unused_frames: tuple[int, int]  # how many images have more frames than the first, if only that is used; how many
    overlong: int  # how many files have more than MOST_FRAMES frames; further ones are not counted
    dtype: np.dtype[Any]  # of the pixels

    def __len__(self) -> int:
        return len(self.usable)

    def pixels(self) -> np.ndarray:
        """All pixels as one flat, memory-mapped array; image i is [C, H_i, W_i] after those before it."""
        return np.memmap(self.folder / "pixels.bin", dtype=self.dtype, mode="r")

    def hashes(self) -> np.ndarray:
        """A hash of each image's pixels and size, uint64 [N, 2]; read anew, for workers are sent the rest of this."""
        return _load_array(self.folder / "hashes.npy")


@dataclass(frozen=True)
class _Meta:
    """What `meta.json` holds besides the arrays; `num_bytes` is the size of `pixels.bin`."""

    content: str
    broken: list[Broken]
    unused_frames: tuple[int, int]
    overlong: int
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
    fingerprint, dtype = source.fingerprint, pixel_dtype(source)  # which is part of it
    made_of = [_FORMAT, fingerprint, asdict(decoder), formats_of(b""), keep_pixels]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_dir / key
    try:
        if (prepared := _open(folder, dtype)) is None:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with file_lock(cache_dir / f"{key}.lock"):
                # Another process may have finished while this one waited.
                if (prepared := _open(folder, dtype)) is None:
                    with replace_folder(folder) as staging:
                        _build(staging, source, decoder, keep_pixels, num_workers, progress)
                        if source.fingerprint != fingerprint:
                            raise Mistakes(
                                "dataset.path: images changed while they were prepared; give the same command again "
                                "when no program writes there any more"
                            )
                    prepared = _open(folder, dtype)
        assert prepared is not None
        if keep_pixels and len(prepared):
            prepared.pixels()  # some file systems cannot map a file into memory
        return prepared
    except OSError as error:
        raise Mistakes(f"dataset.cache_dir={cache_dir}: {error.strerror or error}; choose another folder") from error
    except BrokenProcessPool:
        raise Mistakes(
            f"dataset.num_workers={num_workers}: a worker was killed while it prepared images, perhaps because memory "
            "ran out; use fewer"
        ) from None


def _build(
    staging: Path, source: Source, decoder: Decoder, keep_pixels: bool, num_workers: int, progress: bool
) -> None:
    """Decode everything into an empty folder."""
    usable, frames, sizes, hashes = array("q"), array("i"), array("i"), array("Q")
    others: dict[int, int] = {}  # of files with several frames
    broken: list[Broken] = []
    digest = hashlib.sha256()
    with (
        open(staging / "pixels.bin", "wb") as file,
        tqdm(total=len(source), desc="preparing images", unit="img", disable=not progress, leave=False) as bar,
        closing(decode_all(source, decoder, num_workers, staging)) as images,
    ):
        for index, frame, pixels, others_of_file in images:
            bar.update(index + 1 - bar.n)
            if isinstance(pixels, str):
                name = printable(frame_name(source.name(index), frame))  # JSON holds no others, and files have any
                broken.append((name, pixels))
                continue
            usable.append(index)
            frames.append(frame)
            sizes.extend(pixels.shape[1:])
            if others_of_file:
                others[index] = others_of_file
            hashes.frombytes(pixel_hash(pixels))
            digest.update(pixels.data)
            if keep_pixels:
                file.write(pixels.data)
        num_bytes = file.tell()
    np.save(staging / "usable.npy", np.array(usable, dtype=np.int64))
    np.save(staging / "frames.npy", np.array(frames, dtype=np.int32))
    np.save(staging / "sizes.npy", np.array(sizes, dtype=np.int32).reshape(-1, 2))
    np.save(staging / "hashes.npy", np.array(hashes, dtype=np.uint64).reshape(-1, 2))
    unused = (len(others), sum(others.values())) if decoder.frames == "first" else (0, 0)
    overlong = sum(count >= MOST_FRAMES for count in others.values())
    meta = _Meta(digest.hexdigest(), broken, unused, overlong, num_bytes)
    (staging / "meta.json").write_text(json.dumps(asdict(meta)))


def _open(folder: Path, dtype: np.dtype[Any]) -> Prepared | None:
    """The cache in a folder; None if there is none, or not all of it (cleaners of temporary files take single ones)."""
    from ddpm_train.config.foreign import (  # not above: workers import this module, and need no pydantic
        read_json,
    )

    try:
        meta = read_json(folder / "meta.json", _Meta)
        usable, frames, sizes = (_load_array(folder / f"{name}.npy") for name in ("usable", "frames", "sizes"))
        hashes = _load_array(folder / "hashes.npy")
        num_bytes = (folder / "pixels.bin").stat().st_size
    except (OSError, ValueError, EOFError):
        return None
    whole = usable.dtype == np.int64 and sizes.dtype == frames.dtype == np.int32
    whole = whole and frames.shape == usable.shape and sizes.shape == hashes.shape == (*usable.shape, 2)
    if not whole or num_bytes != meta.num_bytes:
        return None
    return Prepared(folder, usable, frames, sizes, meta.content, meta.broken, meta.unused_frames, meta.overlong, dtype)


def _load_array(path: Path) -> np.ndarray:
    """An array of integers; raises ValueError if the file holds something else, or less than its header says."""
    with open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
