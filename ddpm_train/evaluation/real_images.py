"""The dataset that images are compared with."""

from dataclasses import dataclass
from pathlib import Path

from ddpm_train.config.parts import Dataset
from ddpm_train.data.images import Images
from ddpm_train.data.loader import Data
from ddpm_train.evaluation.features import Extractor
from ddpm_train.evaluation.image_sets import Workers
from ddpm_train.evaluation.reference import ReferenceFeatures, describe, reference_features
from ddpm_train.evaluation.scores import Reference


@dataclass(frozen=True)
class RealImages:
    """The training and the held-out images of a dataset, and their features."""

    dataset: Dataset
    data: Data
    workers: Workers

    def images(self, held_out: bool) -> Images:
        images = self.data.validation if held_out else self.data.train
        assert images is not None, "misfits sees to it"
        return images

    def split(self, held_out: bool) -> str:
        """In words."""
        dataset = self.dataset
        return dataset.split if not held_out else dataset.validation_split or f"{dataset.split}, held out"

    def described(self, images: Images, held_out: bool) -> Reference:
        """What a score says of these images."""
        return describe(images, self.dataset.path, self.split(held_out))

    def features(self, extractor: Extractor, images: Images, held_out: bool) -> ReferenceFeatures:
        """Computed, or found in the cache. All processes do this together."""
        cache_dir, console = self.dataset.cache_dir, self.workers.console
        console.start(0, len(images), "features of real images")
        found = reference_features(
            images,
            extractor,
            dataset=self.dataset.path,
            split=self.split(held_out),
            cache_dir=Path(cache_dir).expanduser() if cache_dir else None,
            accelerator=self.workers.accelerator,
            stop=self.workers.stop,
            before_batch=console.update,
        )
        console.finish()
        return found
