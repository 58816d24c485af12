"""Sampling from Python: `ddpm_train.sample(…)`, or `ddpm_train.load(…)` once and sample many times.

The keywords are the keys of `ddpm-sample`, with the same meaning, defaults and checks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from ddpm_train.config.extensions import import_modules
from ddpm_train.config.parts import CONF
from ddpm_train.config.sample import SAMPLING, SampleConfig
from ddpm_train.models.load import Model, load_model
from ddpm_train.sampling import pictures, visualizations
from ddpm_train.sampling.engine import Engine, choose_compute, in_batches, open_engine
from ddpm_train.sampling.output import to_picture
from ddpm_train.sampling.recipe import Recipe, build_recipe


def load(
    pipeline: str | Path,
    *,
    revision: str | None = None,
    weights: Literal["auto", "ema", "unet"] = "auto",
    mixed_precision: Literal["auto", "no", "bf16"] = "auto",
    compile: bool = False,
    device: str | torch.device | None = None,
    extensions: Sequence[str] = (),
) -> "Pipeline":
    """Load a run, a checkpoint, a folder that diffusers saved, or a Hub repository.

    Args:
        mixed_precision: auto is measured when first there is enough to do; no is diffusers' result to the bit.
        device: by default the GPU if there is one.
        extensions: modules that the run's config names, to be imported.

    Raises:
        Mistakes: there is no such model, or it is no unconditional one.
    """
    import_modules(extensions)
    model = load_model(str(pipeline), revision=revision, weights=weights)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    chosen = torch.device(device) if device is not None else found or torch.device("cpu")
    return Pipeline(model, chosen, mixed_precision, compile)


def sample(
    pipeline: "str | Path | Pipeline", num_images: int = 1, *, output: Literal["pil", "np"] = "pil", **keys: Any
) -> list[Image.Image] | np.ndarray:
    """Images 0 … num_images-1; see `Pipeline.sample`."""
    loaded = pipeline if isinstance(pipeline, Pipeline) else load(pipeline)
    return loaded.sample(num_images, output=output, **keys)


class Pipeline:
    """A loaded model.

    All methods take the keys of `ddpm-sample`: seed, sampler (a name, or a mapping such as {"name": "ddim",
    "eta": 0.5}), num_inference_steps, resolution, batch_size, from_image (a path or a PIL image), strength, inpaint …

    Raises:
        Mistakes: a key or its value is wrong, or the model cannot do this; a line for each.
    """

    def __init__(self, model: Model, device: torch.device, mixed_precision: str, compile: bool) -> None:
        self.model = model
        self._device = device
        self._mixed_precision = mixed_precision
        self._compile = compile
        self._engine: Engine | None = None

    def sample(
        self, num_images: int = 1, *, output: Literal["pil", "np"] = "pil", **keys: Any
    ) -> list[Image.Image] | np.ndarray:
        """Images 0 … num_images-1 of the seed, each a function of (seed, its index) alone.

        Returns:
            PIL images, or with output="np" uint8 [N, H, W, C].
        """
        engine, recipe, config = self._open(num_images, keys)

        def make(batch: Sequence[int]) -> Tensor:
            return engine.images(recipe, batch).permute(0, 2, 3, 1).cpu()

        made = [images for _, images in in_batches(range(num_images), make, config.batch_size, self._device)]
        array: np.ndarray = torch.cat(made).numpy()
        return array if output == "np" else [to_picture(pixels) for pixels in array]

    def trajectory(self, num_images: int = 1, **keys: Any) -> list[Image.Image]:
        """The frames of the loop: x_t on the left, the estimate of x_0 on the right, all images in each."""
        opened = self._open(num_images, {**keys, "trajectory": True})
        return pictures.trajectory_frames(visualizations.trajectory(*opened))

    def interpolate(self, num_images: int = 1, **keys: Any) -> list[Image.Image]:
        """The frames of a walk from the images of `seed` to those of `interpolate_seed`."""
        opened = self._open(num_images, {**keys, "interpolate": True})
        walks = [visualizations.interpolation(*opened, index) for index in range(num_images)]
        return pictures.interpolation_frames(walks)

    def compare(
        self, samplers: Sequence[str], steps: Sequence[int], num_images: int = 4, **keys: Any
    ) -> tuple[Image.Image, list[visualizations.Compared]]:
        """Samplers at step counts from the same noise: a labelled picture, and the figures."""
        chosen = {"samplers": list(samplers), "steps": list(steps)}
        results, _ = visualizations.comparison(*self._open(num_images, {**keys, "compare": chosen}))
        return pictures.comparison_table(results), results

    def _open(self, num_images: int, keys: Mapping[str, Any]) -> tuple[Engine, Recipe, SampleConfig]:
        import_modules(keys.get("extensions", ()))
        given = {key: value for key, value in keys.items() if isinstance(value, Image.Image)}
        values: dict[str, Any] = yaml.safe_load((CONF / "sample.yaml").read_text())  # those of `ddpm-sample`
        del values["hydra"]
        values |= values.pop("defaults")[0]  # the sampler
        values |= {"pipeline": self.model.label, "num_images": num_images, **keys}
        values |= dict.fromkeys(given, "<image>")
        values |= {key: str(value) for key, value in values.items() if isinstance(value, Path)}
        if isinstance(values["sampler"], str):
            values["sampler"] = {"name": values["sampler"]}
        config = SAMPLING.parse(values)
        recipe = build_recipe(config, self.model, given)
        if self._engine is None:
            limits = (config.num_images, config.batch_size)
            compute = choose_compute(self.model, self._device, recipe, self._mixed_precision, *limits)
            self._engine = open_engine(self.model, self._device, replace(compute, compile=self._compile))
        return self._engine, recipe, config
