"""Carries out `ddpm-sample`: load, check, make what is missing, and the pictures that were asked for."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from ddpm_train.config.pixels import PixelValues
from ddpm_train.config.sample import SampleConfig
from ddpm_train.config.samplers import FITTED
from ddpm_train.diffusion.pixels import shown, to_model, to_uint8
from ddpm_train.models.load import Model, load_model
from ddpm_train.sampling import pictures, visualizations
from ddpm_train.sampling.engine import Engine, choose_compute, in_batches, open_engine
from ddpm_train.sampling.fitting import write_steps
from ddpm_train.sampling.guidance import load_guide
from ddpm_train.sampling.loop import Observer
from ddpm_train.sampling.output import ImageFolder, default_folder, ending_of
from ddpm_train.sampling.recipe import Recipe, build_recipe
from ddpm_train.sampling.refined import REFINED, is_refined
from ddpm_train.system.columns import columns
from ddpm_train.system.compute import Compute, device_name, keep_memory
from ddpm_train.system.console import Console
from ddpm_train.system.files import write_atomic
from ddpm_train.system.ranks import everywhere, join, on_main

_GRID_IMAGES = 64


def sample_images(config: SampleConfig) -> None:
    """Make what the config asks for.

    Raises:
        Mistakes: the model cannot be had, or cannot do this, or the output is another model's.
    """
    keep_memory()
    with torch.inference_mode():
        state = join()
        model = everywhere(
            lambda: load_model(config.pipeline, revision=config.revision, weights=config.weights), fetches=True
        )
        guide = everywhere(lambda: load_guide(config.guidance), fetches=True)
        recipe = build_recipe(config, model, guide=guide)
        path = Path(config.output) if config.output else default_folder(config, model.step)
        folder = ImageFolder(path, ending_of(config, model.values))
        compute = on_main(lambda: _claim(config, model, recipe, folder, state.device))
        engine = open_engine(model, state.device, replace(compute, compile=config.compile))
        console = Console(state.is_main_process)
        sampling = _Sampling(engine, recipe, config, folder, state, console, model.values)
        sampling.announce(model)
        if recipe.sampler.name == FITTED and config.visualization != "compare":
            steps = engine.fitted_steps(recipe, sampling.console.say)
            on_main(lambda: write_steps(folder.path / "steps.json", steps))
        if config.visualization is None:
            sampling.make_images()
        else:
            on_main(getattr(sampling, config.visualization))


def _claim(config: SampleConfig, model: Model, recipe: Recipe, folder: ImageFolder, device: torch.device) -> Compute:
    """How to call the UNet, after the output has been found to be free or to hold images of the same kind."""
    recorded = folder.recorded()
    if config.mixed_precision == "auto" and "precision" in recorded:
        compute = Compute.named(recorded["precision"])  # a measurement may turn out otherwise the next time
    else:
        limits = (config.num_images, config.batch_size)
        compute = choose_compute(model, device, recipe, config.mixed_precision, *limits)
    what = config.visualization or "images"
    identity = {"what": what, "model": model.digest, **recipe.identity(), "precision": str(compute)}
    if what == "compare":  # which has samplers and steps of its own
        identity = {key: value for key, value in identity.items() if key not in ("sampler", "num_inference_steps")}
    folder.claim(identity, model.label)
    return compute


@dataclass(frozen=True)
class _Sampling:
    """One call of the program, once everything is open and fits together."""

    engine: Engine
    recipe: Recipe
    config: SampleConfig
    folder: ImageFolder
    state: PartialState
    console: Console
    values: PixelValues | None  # see `Model`

    def announce(self, model: Model) -> None:
        config, recipe, state = self.config, self.recipe, self.state
        parameters = sum(parameter.numel() for parameter in model.unet.parameters()) / 1e6
        height, width = recipe.resolution
        channels = model.unet.config.in_channels
        processes = f", {state.num_processes} processes" if state.num_processes > 1 else ""
        rows = {"model": f"{model.label}: {parameters:.2f}M parameters, {height}x{width}x{channels}"}
        if self.values is not None:
            rows["values"] = str(self.values)
        if is_refined(config.pipeline):
            rows["refined"] = f"the sampler, steps and guidance of its {REFINED}, where the command names no others"
        if config.visualization != "compare":
            rows["sampler"] = f"{recipe.sampler_text}, {recipe.num_inference_steps} steps, seed {recipe.seed}"
        if recipe.guidance is not None:
            rows["guided by"] = str(recipe.guidance)
        if recipe.inpainting is not None and recipe.inpainting.of_opacity:
            rows["mask"] = f"{config.inpaint} shows one colour: what is opaque in it is painted anew, as white would be"
        rows["compute"] = f"{self.engine.compute} on {device_name(state.device)}{processes}"
        self.console.table(rows | {"output": str(self.folder.path)})

    def make_images(self) -> None:
        """This process's share of the missing images; then, on the main process, what is made of all of them."""
        config, state, console = self.config, self.state, self.console
        missing: list[int] = on_main(lambda: self.folder.missing(config.num_images))
        mine = missing[state.process_index :: state.num_processes]
        if len(missing) < config.num_images:
            console.say(f"  found      {config.num_images - len(missing):,} of {config.num_images:,} images")
        started = time.monotonic()
        console.start(0, len(mine), "image")
        done, steps = 0, self.engine.num_steps(self.recipe)

        def make(batch: Sequence[int]) -> Any:
            def show(number: int, *_: Tensor) -> None:
                console.update(done + number * len(batch) // steps)

            return self.engine.pixels(self.recipe, batch, self.values, observe=show)

        def make_mine() -> None:
            nonlocal done
            for batch, images in in_batches(mine, make, config.batch_size, state.device):
                for index, pixels in zip(batch, images, strict=True):
                    self.folder.save(index, pixels)
                done += len(batch)
                console.update(done)

        everywhere(make_mine)
        console.finish()
        seconds = time.monotonic() - started
        rate = f" ({len(missing) / seconds:.1f} images/s)" if missing else ""
        console.say(f"made {len(missing):,} images in {seconds:.1f} s{rate}")
        console.table(on_main(self._write_results))

    def _write_results(self) -> dict[str, str]:
        folder, count = self.folder, self.config.num_images
        first = np.stack([folder.load(index) for index in range(min(count, _GRID_IMAGES))])
        images = torch.from_numpy(first).permute(0, 3, 1, 2)
        if self.values is not None:
            images = to_uint8(to_model(self.values, images))
        grid = folder.path / "grid.png"
        pictures.save(pictures.image_grid(shown(images, self.values)), grid)
        rows = {"images": str(folder.path / "images"), "grid": str(grid)}
        if self.config.format == "npz":
            rows["npz"] = str(folder.write_npz(count))
        elif self.config.format == "parquet":
            path = folder.write_parquet(count)
            rows["parquet"] = f'{path}   load_dataset("parquet", data_files="{path}")'
        return rows

    def trajectory(self) -> None:
        frames = visualizations.trajectory(self.engine, self.recipe, self.config, self._count_steps(1))
        frames = shown(frames, self.values)
        self._write_animation("trajectory", pictures.strip(frames), pictures.trajectory_frames(frames))

    def interpolate(self) -> None:
        observe = self._count_steps(self.config.num_images)
        made = (self.engine, self.recipe, self.config)
        walks = [visualizations.interpolation(*made, i, observe) for i in range(self.config.num_images)]
        walks = [shown(walk, self.values) for walk in walks]
        frames = pictures.interpolation_frames(walks)
        self._write_animation("interpolation", pictures.rows(walks), [*frames, *frames[-2:0:-1]])

    def _count_steps(self, times: int) -> Observer:
        """Shows the calls of the UNet, of so many passes through the loop."""
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1
            self.console.update(calls)

        self.console.start(0, times * self.engine.num_steps(self.recipe))
        return count

    def _write_animation(self, name: str, still: Image.Image, frames: Sequence[Image.Image]) -> None:
        self.console.finish()
        picture = self.folder.path / f"{name}.png"
        animation = picture.with_suffix(f".{self.config.animation}")
        pictures.save(still, picture)
        pictures.animate(frames, animation)
        self.console.table({"picture": str(picture), "animation": str(animation)})

    def compare(self) -> None:
        config, output, say = self.config, self.folder.path, self.console.say
        results, reference = visualizations.comparison(self.engine, self.recipe, config)
        pictures.save(pictures.comparison_table(results, self.values), output / "compare.png")
        rows = [
            {
                "sampler": result.sampler,
                "steps": result.num_inference_steps,
                "model_calls": result.model_calls,
                "seconds": round(result.seconds, 3),
                "distance": None if result.distance is None else round(result.distance, 3),
            }
            for result in results
        ]
        table = {"images": config.num_images, "distance_to": reference, "results": rows}
        write_atomic(output / "compare.json", json.dumps(table, indent=1).encode())
        shown = [["sampler", "steps", "calls", "seconds", "distance"]]
        for result in results:
            distance = "stochastic" if result.distance is None else f"{result.distance:.2f}"
            numbers = str(result.num_inference_steps), str(result.model_calls), f"{result.seconds:.2f}"
            shown.append([result.sampler, *numbers, distance])
        say(*columns(shown))
        say(f"  distance: root mean square difference to {reference}, in levels of 0 to 255; same noise")
        self.console.table({"picture": str(output / "compare.png"), "table": str(output / "compare.json")})
