"""Features of the real images: computed once, then kept on the disk."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_train.data.images import Images
from ddpm_train.data.order import image_indices
from ddpm_train.evaluation.features import Extractor, extract
from ddpm_train.evaluation.scores import Reference
from ddpm_train.system.files import default_cache_dir, write_atomic
from ddpm_train.system.ranks import on_main
from ddpm_train.system.signals import StopRequest

_FORMAT = 1  # of what is computed from an image and how it is kept


@dataclass(frozen=True)
class ReferenceFeatures:
    """The features of real images.

    Attributes:
        features: float32 [N, D] on the CPU, on the main process, which alone computes scores; [0, D] on the others.
    """

    features: Tensor
    described: Reference


def reference_features(
    images: Images,
    extractor: Extractor,
    *,
    dataset: str,
    split: str,
    cache_dir: Path | None,
    accelerator: Accelerator,
    stop: StopRequest,
    before_batch: Callable[[int], None] = lambda done: None,
) -> ReferenceFeatures:
    """Features of all the images (centre crops, unflipped), from the cache if they were computed before.

    All processes do this together.

    Args:
        dataset, split: what the images were opened as; told in every score.
        before_batch: is told how many images are done.
        cache_dir: where prepared images are kept; the features go into its folder `features`. None: the default.
    """
    described = describe(images, dataset, split)
    key = "\0".join((str(_FORMAT), described.hash, extractor.name, extractor.weights_hash))
    folder = (cache_dir or default_cache_dir()) / "features"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    shape = (len(images), extractor.dimension)
    if on_main(lambda: _read(path, shape) is not None):
        features = _read(path, shape) if accelerator.is_main_process else None
    else:
        features = extract(
            extractor,
            lambda items: images.load(list(items)),
            len(images),
            accelerator=accelerator,
            stop=stop,
            before_batch=before_batch,
        )
        if accelerator.is_main_process:
            _write(path, features)
    if features is None or not accelerator.is_main_process:
        features = torch.zeros(0, extractor.dimension)
    return ReferenceFeatures(features, described)


def describe(images: Images, dataset: str, split: str) -> Reference:
    """What a score says of its reference images."""
    digest = hashlib.sha256(images.prepared.content.encode())
    digest.update(np.ascontiguousarray(images.rows, dtype=np.int64).tobytes())
    return Reference(
        dataset=dataset,
        split=split,
        resolution=images.resolution,
        num_images=len(images),
        hash=digest.hexdigest()[:32],
    )


def at_most(images: Images, count: int | None) -> Images:
    """The same `count` images of a larger set every time, chosen without regard to their order; None: all."""
    if count is None or count >= len(images):
        return images
    chosen = image_indices(np.arange(count), len(images), seed=0)
    return replace(images, rows=images.rows[np.sort(chosen)])


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """None if the file is not there, or not whole."""
    try:
        features = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return features if tuple(features.shape) == shape and features.dtype == torch.float32 else None


def _write(path: Path, features: Tensor) -> None:
    """A full disk costs the next evaluation time, and this one nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, features.numpy(), allow_pickle=False)
        write_atomic(path, buffer.getvalue())
    except OSError:
        return
