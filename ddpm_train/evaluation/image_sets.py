"""What is scored: images that a model makes on demand, or those in a folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ddpm_train.data.images import Images
from ddpm_train.evaluation.image_folder import made_by
from ddpm_train.evaluation.scores import DependsOn
from ddpm_train.evaluation.workers import Workers
from ddpm_train.runs.environment import versions
from ddpm_train.sampling.engine import Engine
from ddpm_train.sampling.recipe import Recipe

if TYPE_CHECKING:  # of an extra
    from ddpm_train.evaluation.features import Extractor

# Images go through an extractor in batches of this size, whatever else is batched how: other sizes round otherwise.
BATCH_IMAGES = 32


class ImageSet(Protocol):
    """A set of images to be scored."""

    def __len__(self) -> int: ...

    @property
    def depends_on(self) -> DependsOn:
        """What is known of how they came about."""

    def features(self, extractor: "Extractor") -> Tensor:
        """Of all images, float32 [N, D] on the CPU. All processes do this together."""

    def load(self, numbers: Sequence[int]) -> Tensor:
        """Images by number, uint8 [B, C, H, W] on the CPU."""


@dataclass
class SampledImages:
    """Images 0 … num_images-1 of a model and recipe, the same for any number of processes.

    Attributes:
        known: what is known of the model.
        seconds_per_image: what sampling took this process, once `features` was called.
    """

    engine: Engine
    recipe: Recipe
    num_images: int
    batch_size: int
    workers: Workers
    known: DependsOn
    seconds_per_image: float = float("nan")

    def __len__(self) -> int:
        return self.num_images

    @property
    def depends_on(self) -> DependsOn:
        recipe = self.recipe
        return replace(
            self.known,
            sampler={"name": recipe.sampler.name, **recipe.sampler.arguments},
            num_inference_steps=recipe.num_inference_steps,
            seed=recipe.seed,
        )

    def pixels(self) -> Tensor:
        """All images, uint8 [N, C, H, W] on the device. All processes do this together."""
        shape = (self.num_images, self.engine.unet.config.in_channels, *self.recipe.resolution)
        return self.workers.fill(
            torch.zeros(shape, dtype=torch.uint8, device=self.engine.device),
            self._make,
            self.batch_size,
            polls_per_batch=self.engine.num_steps(self.recipe),
        )

    def features(self, extractor: "Extractor") -> Tensor:
        """See `ImageSet`; the images are not kept.

        Each process makes whole groups of `BATCH_IMAGES`, so that an image meets the same others in the extractor
        however many processes there are and whatever the batch of the sampler is.
        """
        workers, size = self.workers, self.batch_size
        size = size if size < BATCH_IMAGES else size // BATCH_IMAGES * BATCH_IMAGES
        group_size = max(size, BATCH_IMAGES)
        seconds, made = 0.0, 0

        def compute(items: range, poll: Callable[[], None]) -> Tensor:
            nonlocal seconds, made
            started = time.perf_counter()
            images = self._make(items, poll, size)
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - started
            made += len(items)
            workers.console.update(min(made * workers.accelerator.num_processes, self.num_images))
            return extractor(images)

        workers.console.start(0, self.num_images, "image")
        features = workers.fill(
            torch.zeros(self.num_images, extractor.dimension, device=extractor.device),
            compute,
            group_size,
            polls_per_batch=self.engine.num_steps(self.recipe) * -(-group_size // size),
        )
        workers.console.finish()
        self.seconds_per_image = seconds / max(made, 1)
        return features.cpu()

    def load(self, numbers: Sequence[int]) -> Tensor:
        return self._make(numbers, lambda: None, self.batch_size).cpu()

    def _make(self, indices: Sequence[int], poll: Callable[[], None], batch_size: int | None = None) -> Tensor:
        """In batches of that size, or at once; polls at each call of the UNet."""
        size = batch_size or len(indices)
        batches = (indices[start : start + size] for start in range(0, len(indices), size))
        return torch.cat([self.engine.images(self.recipe, batch, observe=lambda *_: poll()) for batch in batches])


@dataclass(frozen=True)
class FolderImages:
    """Images that somebody made before.

    Attributes:
        pipeline: as the user wrote the folder.
    """

    images: Images
    pipeline: str
    workers: Workers

    def __len__(self) -> int:
        return len(self.images)

    @property
    def depends_on(self) -> DependsOn:
        return replace(DependsOn(versions=versions()), **made_by(self.pipeline))

    def features(self, extractor: "Extractor") -> Tensor:
        return extract(extractor, self.images, self.workers, "image")

    def load(self, numbers: Sequence[int]) -> Tensor:
        return self.images.load(list(numbers))


def extract(extractor: "Extractor", images: Images, workers: Workers, unit: str) -> Tensor:
    """Features of all images, float32 [N, D] on the CPU. All processes do this together.

    Args:
        unit: what a person sees counted.
    """

    def compute(items: range, poll: Callable[[], None]) -> Tensor:
        poll()
        workers.console.update(items.start)
        return extractor(images.load(list(items)))

    workers.console.start(0, len(images), unit)
    results = torch.zeros(len(images), extractor.dimension, device=extractor.device)
    features = workers.fill(results, compute, BATCH_IMAGES).cpu()
    workers.console.finish()
    return features
