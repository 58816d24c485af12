"""Carries out `ddpm-sample`: load, check, make what is missing, and the pictures that were asked for."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ddpm_train.config.sample import SampleConfig
from ddpm_train.models.load import Model, load_model
from ddpm_train.sampling import pictures, visualizations
from ddpm_train.sampling.engine import Engine, choose_compute, in_batches
from ddpm_train.sampling.output import ImageFolder
from ddpm_train.sampling.pictures import image_grid
from ddpm_train.sampling.recipe import Recipe, build_recipe
from ddpm_train.system.compute import Compute, device_name, keep_memory
from ddpm_train.system.console import Console
from ddpm_train.system.files import write_atomic
from ddpm_train.system.ranks import on_main
from ddpm_train.system.shutdown import PATIENCE, ends_by_exit_code

_GRID_IMAGES = 64


def sample_images(config: SampleConfig) -> None:
    """Make what the config asks for.

    Raises:
        Mistakes: the model cannot be had, or cannot do this, or the output is another model's.
    """
    with ends_by_exit_code(again="the same command makes what is missing"), torch.inference_mode():
        keep_memory()
        _sample(config)


def _sample(config: SampleConfig) -> None:
    state = PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU") == "True", timeout=PATIENCE)
    console = Console(state.is_main_process)
    on_main(lambda: load_model(config.pipeline, revision=config.revision, weights=config.weights) and None)
    model = load_model(config.pipeline, revision=config.revision, weights=config.weights)
    recipe = build_recipe(config, model)
    folder = ImageFolder(Path(config.output))
    compute = on_main(lambda: _claim(config, model, recipe, folder, state.device))
    engine = Engine(model, state.device, compute=replace(compute, compile=config.compile))
    _announce(console, config, recipe, engine, state)
    if config.look is None:
        _make_images(config, engine, recipe, folder, state, console)
    elif state.is_main_process:
        {"trajectory": _trajectory, "interpolate": _interpolate, "compare": _compare}[config.look](
            config, engine, recipe, folder.path, console
        )
    state.wait_for_everyone()


def _claim(config: SampleConfig, model: Model, recipe: Recipe, folder: ImageFolder, device: torch.device) -> Compute:
    """How to call the UNet, after the output has been found to be free or of the same making."""
    recorded = folder.recorded()
    if config.mixed_precision == "auto" and "precision" in recorded:
        compute = Compute.named(recorded["precision"])  # a measurement may turn out otherwise the next time
    else:
        compute = choose_compute(
            model,
            device,
            recipe,
            mixed_precision=config.mixed_precision,
            num_images=config.num_images,
            batch_size=config.batch_size,
        )
    what = config.look or "images"
    identity = {"what": what, "model": model.digest, **recipe.identity(), "precision": str(compute)}
    if what == "compare":  # which has samplers and steps of its own
        identity = {key: value for key, value in identity.items() if key not in ("sampler", "num_inference_steps")}
    folder.claim(identity)
    return compute


def _announce(console: Console, config: SampleConfig, recipe: Recipe, engine: Engine, state: PartialState) -> None:
    model = engine.model
    parameters = sum(parameter.numel() for parameter in model.unet.parameters())
    height, width = recipe.resolution
    rows = {
        "model": f"{model.label}: {parameters / 1e6:.2f}M parameters, {height}x{width}x{model.unet.config.in_channels}",
        "sampler": f"{recipe.sampler_words}, {recipe.num_inference_steps} steps, seed {recipe.seed}",
        "compute": f"{engine.compute} on {device_name(state.device)}"
        f"{f', {state.num_processes} processes' if state.num_processes > 1 else ''}",
        "output": config.output,
    }
    if config.look == "compare":
        del rows["sampler"]
    console.table(rows)


def _make_images(
    config: SampleConfig, engine: Engine, recipe: Recipe, folder: ImageFolder, state: PartialState, console: Console
) -> None:
    """This process's share of the missing images; then, on the main process, what is made of all of them."""
    missing: list[int] = on_main(lambda: folder.missing(config.num_images))
    mine = missing[state.process_index :: state.num_processes]
    if len(missing) < config.num_images:
        console.say(f"  found      {config.num_images - len(missing):,} of {config.num_images:,} images")
    started = time.monotonic()
    console.start(0, len(mine), "image")
    done, steps = 0, engine.num_steps(recipe)

    def compute(batch: Sequence[int]) -> Any:
        calls = 0

        def before_step() -> None:
            nonlocal calls
            console.update(done + calls * len(batch) // steps)
            calls += 1

        return engine.images(recipe, batch, before_step=before_step).permute(0, 2, 3, 1).cpu().numpy()

    for batch, images in in_batches(mine, compute, config.batch_size, state.device):
        for index, pixels in zip(batch, images, strict=True):
            folder.save(index, pixels)
        done += len(batch)
        console.update(done)
    console.finish()
    state.wait_for_everyone()
    if state.is_main_process:
        seconds = time.monotonic() - started
        rate = f" ({len(missing) / seconds:.1f} images/s)" if missing else ""
        console.say(f"made {len(missing):,} images in {seconds:.1f} s{rate}")
        console.table(_write_results(config, folder))


def _write_results(config: SampleConfig, folder: ImageFolder) -> dict[str, str]:
    first = [torch.from_numpy(folder.load(index).copy()) for index in range(min(config.num_images, _GRID_IMAGES))]
    grid = folder.path / "grid.png"
    pictures.save(image_grid(torch.stack(first).permute(0, 3, 1, 2)), grid)
    rows = {"images": f"{folder.path / 'images'}", "grid": str(grid)}
    if config.format == "npz":
        rows["npz"] = str(folder.write_npz(config.num_images))
    elif config.format == "parquet":
        path = folder.write_parquet(config.num_images)
        rows["parquet"] = f'{path}   load_dataset("parquet", data_files="{path}")'
    return rows


def _counted(console: Console, total: int) -> Callable[[], None]:
    """Shows calls of the UNet."""
    calls = 0

    def before_step() -> None:
        nonlocal calls
        calls += 1
        console.update(calls)

    console.start(0, total)
    return before_step


def _trajectory(config: SampleConfig, engine: Engine, recipe: Recipe, output: Path, console: Console) -> None:
    before_step = _counted(console, engine.num_steps(recipe))

    def compute(batch: Sequence[int]) -> list[visualizations.Frame]:
        return visualizations.trajectory(engine, recipe, batch, config.trajectory_every_steps, before_step)

    made = [frames for _, frames in in_batches(range(config.num_images), compute, config.batch_size, engine.device)]
    console.finish()
    frames = [
        visualizations.Frame(
            parts[0].timestep, torch.cat([part.x_t for part in parts]), torch.cat([part.x_0 for part in parts])
        )
        for parts in zip(*made, strict=True)
    ]
    _write_pair(
        console,
        pictures.strip(frames),
        pictures.trajectory_frames(frames),
        output / "trajectory.png",
        config.animation,
    )


def _interpolate(config: SampleConfig, engine: Engine, recipe: Recipe, output: Path, console: Console) -> None:
    count = config.interpolate_frames
    before_step = _counted(console, engine.num_steps(recipe) * config.num_images)
    walks = []
    for index in range(config.num_images):

        def compute(frames: Sequence[int], index: int = index) -> torch.Tensor:
            return visualizations.interpolation(engine, recipe, config.walks_to, index, frames, count, before_step)

        walks.append(
            torch.cat([part for _, part in in_batches(range(count), compute, config.batch_size, engine.device)])
        )
    console.finish()
    frames = [image_grid(torch.stack([walk[frame] for walk in walks])) for frame in range(count)]
    _write_pair(
        console, pictures.rows(walks), [*frames, *frames[-2:0:-1]], output / "interpolation.png", config.animation
    )


def _write_pair(console: Console, still: Any, frames: Sequence[Any], path: Path, animation: str) -> None:
    pictures.save(still, path)
    pictures.animate(frames, path.with_suffix(f".{animation}"))
    console.table({"picture": str(path), "animation": str(path.with_suffix(f".{animation}"))})


def _compare(config: SampleConfig, engine: Engine, recipe: Recipe, output: Path, console: Console) -> None:
    results, reference = visualizations.comparison(
        engine, recipe, config.compare.samplers, config.compare.steps, range(config.num_images)
    )
    pictures.save(pictures.comparison_table(results), output / "compare.png")
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
    console.say(f"  {'sampler':<22}{'steps':>6}{'calls':>7}{'seconds':>9}{'distance':>12}")
    for row in rows:
        distance = "stochastic" if row["distance"] is None else f"{row['distance']:.2f}"
        console.say(
            f"  {row['sampler']:<22}{row['steps']:>6}{row['model_calls']:>7}{row['seconds']:>9.2f}{distance:>12}"
        )
    console.say(f"  distance: root mean square difference to {reference}, in levels of 0 to 255; same noise")
    console.table({"picture": str(output / "compare.png"), "table": str(output / "compare.json")})
