"""What is scored: images that a model makes on demand, or those in a folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm_train.config.pixels import PixelValues
from ddpm_train.data.images import Images
from ddpm_train.evaluation.image_folder import made_by
from ddpm_train.evaluation.scores import DependsOn
from ddpm_train.evaluation.workers import BATCH_IMAGES, Workers
from ddpm_train.runs.environment import versions
from ddpm_train.sampling.engine import Engine
from ddpm_train.sampling.loop import Observer
from ddpm_train.sampling.recipe import Recipe

if TYPE_CHECKING:  # of an extra
    from ddpm_train.evaluation.features import Extractor


@dataclass
class SampledImages:
    """Images 0 … num_images-1 of a model and recipe, the same for any number of processes.

    Attributes:
        known: what is known of the model.
        values: see `Model`: of arrays `features` and `load` give what the model sees, as `Images.load` does.
        seconds_per_image: what sampling took this process, once `features` was called.
    """

    engine: Engine
    recipe: Recipe
    num_images: int
    batch_size: int
    workers: Workers
    known: DependsOn
    values: PixelValues | None = None
    seconds_per_image: float = float("nan")

    def __len__(self) -> int:
        return self.num_images

    @property
    def depends_on(self) -> DependsOn:
        """What is known of how they were made."""
        recipe = self.recipe
        return replace(
            self.known,
            sampler={"name": recipe.sampler.name, **recipe.sampler.arguments},
            num_inference_steps=recipe.num_inference_steps,
            seed=recipe.seed,
            guidance=None if recipe.guidance is None else recipe.guidance.identity(),
        )

    def pixels(self) -> Tensor:
        """All images, uint8 [N, C, H, W] on the device. All processes do this together."""
        shape = (self.num_images, self.engine.unet.config.in_channels, *self.recipe.resolution)
        return self.workers.fill(
            torch.zeros(shape, dtype=torch.uint8, device=self.engine.device),
            partial(self._make, self.engine.images),
            self.batch_size,
            polls_per_batch=self.engine.num_steps(self.recipe),
        )

    def features(self, extractor: "Extractor") -> Tensor:
        """Of all images, float32 [N, D] on the CPU; the images are not kept. All processes do this together.

        Each process makes whole groups of `BATCH_IMAGES`, so that the extractor gets an image with the same others for
        any number of processes and any batch size of the sampler.
        """
        size = self.batch_size
        size = size if size < BATCH_IMAGES else size // BATCH_IMAGES * BATCH_IMAGES
        group_size = max(size, BATCH_IMAGES)
        seconds, made = 0.0, 0
        self.engine.num_calls(self.recipe)  # fits steps that are to be fitted, which is no part of sampling

        def compute(items: range, poll: Callable[[], None]) -> Tensor:
            nonlocal seconds, made
            started = time.perf_counter()
            images = self._make(self._seen, items, poll, size)
            torch.get_device_module(images.device).synchronize()
            seconds += time.perf_counter() - started
            made += len(items)
            return extractor(images)

        features = self.workers.fill(
            torch.zeros(self.num_images, extractor.dimension, device=extractor.device),
            compute,
            group_size,
            polls_per_batch=self.engine.num_steps(self.recipe) * -(-group_size // size),
            unit="image",
        )
        self.seconds_per_image = seconds / max(made, 1)
        return features.cpu()

    def load(self, numbers: Sequence[int]) -> Tensor:
        """Images by number, uint8 [B, C, H, W] on the CPU."""
        return self._make(self._seen, numbers, lambda: None, self.batch_size).cpu()

    def _seen(self, recipe: Recipe, batch: Sequence[int], *, observe: Observer) -> Tensor:
        if self.values is None or self.values.is_bytes:
            return self.engine.images(recipe, batch, observe=observe)
        return self.engine.x_0(recipe, batch, observe=observe).clamp(-1, 1)

    def _make(
        self,
        images: Callable[..., Tensor],
        indices: Sequence[int],
        poll: Callable[[], None],
        batch_size: int | None = None,
    ) -> Tensor:
        """In batches of that size, or at once; polls at each call of the UNet."""
        size = batch_size or len(indices)
        batches = (indices[start : start + size] for start in range(0, len(indices), size))
        return torch.cat([images(self.recipe, batch, observe=lambda *_: poll()) for batch in batches])


@dataclass(frozen=True)
class FolderImages:
    """Images that somebody made before; the methods are those of `SampledImages`."""

    images: Images
    pipeline: str  # the folder, as the user wrote it
    workers: Workers

    def __len__(self) -> int:
        return len(self.images)

    @property
    def depends_on(self) -> DependsOn:
        return replace(DependsOn(versions=versions()), **made_by(self.pipeline))

    def features(self, extractor: "Extractor") -> Tensor:
        return extract(extractor, self.images, self.workers, "image")

    def load(self, numbers: Sequence[int]) -> Tensor:
        return self.images.load(numbers)


ImageSet = SampledImages | FolderImages  # what is scored


def extract(extractor: "Extractor", images: Images, workers: Workers, unit: str) -> Tensor:
    """Of all images, float32 [N, D] on the CPU. All processes do this together; the console counts them as `unit`."""

    def compute(items: range, poll: Callable[[], None]) -> Tensor:
        poll()
        return extractor(images.load(items))

    results = torch.zeros(len(images), extractor.dimension, device=extractor.device)
    return workers.fill(results, compute, BATCH_IMAGES, unit=unit).cpu()
