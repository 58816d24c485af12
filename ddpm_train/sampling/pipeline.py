"""Sampling from Python: `ddpm_train.sample(…)`, or `ddpm_train.load(…)` once and sample many times.

The keywords are the keys of `ddpm-sample`, with the same meaning, defaults and checks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_train.config.extensions import import_modules
from ddpm_train.config.guidance import GuidanceChoice
from ddpm_train.config.idle import own_values
from ddpm_train.config.mistakes import Mistakes, as_written, no_such_choice, no_such_key
from ddpm_train.config.overrides import secret_mistakes
from ddpm_train.config.pixels import PixelValues
from ddpm_train.config.sample import SAMPLING, SampleConfig
from ddpm_train.config.samplers import SAMPLERS
from ddpm_train.config.schema import dotted, dotted_values
from ddpm_train.diffusion.pixels import shown, to_physical, to_uint8
from ddpm_train.models.load import Model, load_model
from ddpm_train.sampling import pictures, visualizations
from ddpm_train.sampling.engine import Engine, choose_compute, in_batches, open_engine
from ddpm_train.sampling.guidance import load_guide
from ddpm_train.sampling.output import to_picture
from ddpm_train.sampling.preflight import loading_mistakes, making_mistakes
from ddpm_train.sampling.recipe import Recipe, build_recipe
from ddpm_train.system.failures import first_line

# Keys of the program that `load` takes, and those of files that only the program writes.
_OF_LOADING = ("pipeline", "revision", "weights", "mixed_precision", "compile", "device")
_OF_FILES = ("output", "format", "animation")


def load(
    pipeline: str | Path,
    *,
    revision: str | None = None,
    weights: str = "auto",
    mixed_precision: Literal["auto", "no", "bf16"] = "auto",
    compile: bool = False,
    device: str | torch.device | None = None,
    extensions: Sequence[str] = (),
) -> "Pipeline":
    """Load a run, a checkpoint, a folder that diffusers saved, or a Hub repository.

    Args:
        weights: of a run or a checkpoint: ema, unet, or ema@0.1 for the average of another width (after ema=power);
            auto is the average if there is one.
        mixed_precision: auto is measured when first there is enough to do; no is diffusers' result to the bit.
        device: by default the GPU if there is one.
        extensions: modules that the run's config names, to be imported.

    Raises:
        Mistakes: a value is wrong, or there is no such model, or it is no unconditional one; a line for each.
    """
    keys = {"pipeline": pipeline, "revision": revision, "weights": weights, "mixed_precision": mixed_precision}
    config = _checked({**keys, "compile": compile, "extensions": extensions}, loading_mistakes)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    chosen = _device(device) if device is not None else found or torch.device("cpu")
    model = load_model(config.pipeline, revision=config.revision, weights=config.weights)
    return Pipeline(model, chosen, config.mixed_precision, config.compile)


def sample(
    pipeline: "str | Path | Pipeline", num_images: int = 1, *, output: Literal["pil", "np"] = "pil", **keys: Any
) -> list[Image.Image] | np.ndarray:
    """Images 0 … num_images-1; see `Pipeline.sample`. A model that is loaded for this takes the keys of `load`, too."""
    if not isinstance(pipeline, Pipeline):
        pipeline = load(pipeline, **{key: keys.pop(key) for key in (*_OF_LOADING, "extensions") if key in keys})
    return pipeline.sample(num_images, output=output, **keys)


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
        self._guides: dict[tuple[str | None, str | None, str], Model | None] = {}

    def sample(
        self, num_images: int = 1, *, output: Literal["pil", "np"] = "pil", **keys: Any
    ) -> list[Image.Image] | np.ndarray:
        """Images 0 … num_images-1 of the seed, each a function of (seed, its index) alone.

        Returns:
            PIL images; or with output="np" an array [N, H, W, C]: uint8, or of arrays their own units and type.
        """
        if output not in ("pil", "np"):
            raise Mistakes(f"output={as_written(output)}: not one of pil, np")
        if asked := [key for key in ("trajectory", "interpolate", "compare") if keys.get(key)]:
            raise Mistakes(*(f"{key}={as_written(keys[key])}: gives no images; call {key}(…)" for key in asked))
        engine, recipe, config = self._open(num_images, keys)

        def make(batch: Sequence[int]) -> np.ndarray:
            if output == "np":
                return engine.pixels(recipe, batch, self.values)
            return shown(engine.images(recipe, batch), self.values).permute(0, 2, 3, 1).cpu().numpy()

        made = [images for _, images in in_batches(range(num_images), make, config.batch_size, self._device)]
        array = np.concatenate(made)
        return array if output == "np" else [to_picture(pixels) for pixels in array]

    @property
    def values(self) -> PixelValues | None:
        """What the numbers of a model of arrays mean: their type, and the range that it sees as -1 to 1."""
        return self.model.values

    def to_physical(self, x_0: Tensor) -> np.ndarray:
        """What the model sees, float [B, C, H, W] in [-1, 1], in the units and the type of its arrays; of pictures
        uint8."""
        return to_uint8(x_0).cpu().numpy() if self.values is None else to_physical(self.values, x_0)

    def trajectory(self, num_images: int = 1, **keys: Any) -> list[Image.Image]:
        """The frames of the loop: x_t on the left, the estimate of x_0 on the right, all images in each."""
        opened = self._open(num_images, {**keys, "trajectory": True})
        return pictures.trajectory_frames(shown(visualizations.trajectory(*opened), self.values))

    def interpolate(self, num_images: int = 1, **keys: Any) -> list[Image.Image]:
        """The frames of a walk from the images of `seed` to those of `interpolate_seed`."""
        opened = self._open(num_images, {**keys, "interpolate": True})
        walks = [visualizations.interpolation(*opened, index) for index in range(num_images)]
        return pictures.interpolation_frames([shown(walk, self.values) for walk in walks])

    def compare(
        self, samplers: Sequence[str], steps: Sequence[int], num_images: int = 4, **keys: Any
    ) -> tuple[Image.Image, list[visualizations.Compared]]:
        """Samplers at step counts from the same noise: a labelled picture, and the figures."""
        chosen = {"samplers": list(samplers), "steps": list(steps)}
        results, _ = visualizations.comparison(*self._open(num_images, {**keys, "compare": chosen}))
        return pictures.comparison_table(results, self.values), results

    def _open(self, num_images: int, keys: Mapping[str, Any]) -> tuple[Engine, Recipe, SampleConfig]:
        given = {key: value for key, value in keys.items() if isinstance(value, Image.Image)}
        values = {**keys, **dict.fromkeys(given, "<image>"), "num_images": num_images}
        config = _checked(values, partial(making_mistakes, pictures=given), loaded=True)
        recipe = build_recipe(config, self.model, given, self._guide(config.guidance))
        if self._engine is None:
            limits = (config.num_images, config.batch_size)
            compute = choose_compute(self.model, self._device, recipe, self._mixed_precision, *limits)
            self._engine = open_engine(self.model, self._device, replace(compute, compile=self._compile))
        return self._engine, recipe, config

    def _guide(self, choice: GuidanceChoice) -> Model | None:
        """Loaded once."""
        named = (choice.pipeline, choice.revision, choice.weights)
        if named not in self._guides:
            self._guides[named] = load_guide(choice)
        return self._guides[named]


def _checked(
    keys: Mapping[str, Any], preflight: Callable[[SampleConfig], Iterator[str]], *, loaded: bool = False
) -> SampleConfig:
    """The keys, with the values of `ddpm-sample` for the others, checked as its command line is.

    It is not composed by Hydra, of which a process has but one, while a server may sample in several threads.

    Args:
        loaded: whether the model is there already.

    Raises:
        Mistakes: a line for each.
    """
    if lines := list(secret_mistakes(f"{key}={value}" for key, value in dotted_values(keys))):
        raise Mistakes(*lines)
    if isinstance(names := keys.get("extensions"), list | tuple):
        import_modules(names)
    values = {**own_values("sample"), "pipeline": "loaded"}
    for key, value in keys.items():
        if loaded and key in _OF_LOADING:
            lines.append(f"{key}={as_written(value)}: the model is loaded already; give it to ddpm_train.load")
        elif loaded and key in _OF_FILES:
            lines.append(f"{key}={as_written(value)}: nothing is written to files here; leave it out")
        elif key not in values:
            lines.append(no_such_key(f"{key}={as_written(value)}", key, [known for known, _ in dotted(values)]))
        elif key == "sampler" and isinstance(value, str):
            if value in SAMPLERS:
                values[key] = {"name": value}
            else:
                lines.append(no_such_choice(key, value, sorted(SAMPLERS)))
        elif isinstance(value, Mapping) and isinstance(values.get(key), dict):
            values[key] = {**values[key], **value}
        else:
            values[key] = str(value) if isinstance(value, Path) else value
    config, further = SAMPLING.check(values, lambda: own_values("sample"), preflight)
    if config is None or lines:
        raise Mistakes(*lines, *further)
    return config


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except Exception as error:  # each device has its own ways to be absent
        raise Mistakes(f"device={name}: {first_line(error)}; give another, such as cpu") from None
