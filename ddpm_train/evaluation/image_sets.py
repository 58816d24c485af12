"""What is scored: images that a model makes on demand, or those in a folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_train.data.images import Images
from ddpm_train.evaluation.distribution import sampled_features
from ddpm_train.evaluation.features import Extractor, extract
from ddpm_train.evaluation.image_folder import made_by
from ddpm_train.evaluation.scores import DependsOn
from ddpm_train.runs.environment import versions
from ddpm_train.sampling.engine import Engine, in_batches
from ddpm_train.sampling.recipe import Recipe
from ddpm_train.system.console import Console
from ddpm_train.system.signals import StopRequest


@dataclass(frozen=True)
class Workers:
    """The processes of a launch, what ends them, and what they tell."""

    accelerator: Accelerator
    stop: StopRequest
    console: Console


class Subject(Protocol):
    """A set of images to be scored."""

    def __len__(self) -> int: ...

    @property
    def depends_on(self) -> DependsOn:
        """What is known of how they came about."""

    def features(self, extractor: Extractor) -> Tensor:
        """Of all images, float32 [N, D] on the CPU. All processes do this together."""

    def load(self, numbers: Sequence[int]) -> Tensor:
        """Images by number, uint8 [B, C, H, W] on the CPU."""


@dataclass
class SampledImages:
    """Images 0 … num_images-1 of a model and recipe.

    Attributes:
        seconds_per_image: what sampling took this process, once `features` was called.
    """

    engine: Engine
    recipe: Recipe
    num_images: int
    batch_size: int
    workers: Workers
    seconds_per_image: float = float("nan")

    def __len__(self) -> int:
        return self.num_images

    @property
    def depends_on(self) -> DependsOn:
        model, recipe = self.engine.model, self.recipe
        return DependsOn(
            step=model.step,
            weights=model.weights,
            sampler={"name": recipe.sampler.name, **recipe.sampler.arguments},
            num_inference_steps=recipe.num_inference_steps,
            seed=recipe.seed,
            versions=versions() | {"precision": str(self.engine.compute), "model": model.digest},
        )

    def features(self, extractor: Extractor) -> Tensor:
        console, accelerator = self.workers.console, self.workers.accelerator
        seconds, made = 0.0, 0

        def make(indices: Sequence[int], before_step: Callable[[], None]) -> Tensor:
            nonlocal seconds, made
            started = time.perf_counter()
            images = self._make(indices, before_step)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - started
            made += len(indices)
            console.update(min(made * accelerator.num_processes, self.num_images))
            return images

        console.start(0, self.num_images, "image")
        features = sampled_features(
            make,
            self.num_images,
            batch_size=self.batch_size,
            polls_per_batch=self.engine.num_steps(self.recipe),
            extractor=extractor,
            accelerator=accelerator,
            stop=self.workers.stop,
        )
        console.finish()
        self.seconds_per_image = seconds / max(made, 1)
        return features

    def load(self, numbers: Sequence[int]) -> Tensor:
        return self._make(numbers, lambda: None).cpu()

    def _make(self, indices: Sequence[int], before_step: Callable[[], None]) -> Tensor:
        def compute(batch: Sequence[int]) -> Tensor:
            return self.engine.images(self.recipe, batch, before_step=before_step)

        return torch.cat([made for _, made in in_batches(indices, compute, self.batch_size, self.engine.device)])


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

    def features(self, extractor: Extractor) -> Tensor:
        return extract(
            extractor,
            lambda items: self.images.load(list(items)),
            len(self.images),
            accelerator=self.workers.accelerator,
            stop=self.workers.stop,
        )

    def load(self, numbers: Sequence[int]) -> Tensor:
        return self.images.load(list(numbers))
