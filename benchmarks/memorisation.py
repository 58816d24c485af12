"""When a model begins to copy its training images, and how well that is forecast at half of the time.

    python benchmarks/memorisation.py SCRATCH [--images 100,500,2000] [--seeds 1,2,3]

Pictures of clothes at 8x8 pixels from `fashion_tiny`, and a network of fully connected layers, since a step of a U-Net
takes a CPU ten times as long; the objective, the average of the weights, the sampler and all that is measured are the
program's own. Copying begins at the first evaluation at which the interval of the copy rate, of pixels, lies above that
of held-out images; a run ends at the second in a row. Everything is kept in SCRATCH: the same command goes on where it
was interrupted, and with --most-steps=0 it only tells what it has seen.
"""

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from report import tell
from torch import Tensor, nn
from work import config_of

from ddpm_train.data.loader import open_data
from ddpm_train.data.order import image_indices
from ddpm_train.diffusion.objective import Objective, to_model_range
from ddpm_train.evaluation.copying import measure_copying
from ddpm_train.evaluation.memorisation import little_noise, loss_ratio
from ddpm_train.runs.clock import RATIO, Clock
from ddpm_train.sampling.engine import Engine
from ddpm_train.sampling.recipe import Recipe
from ddpm_train.seeding import Purpose
from ddpm_train.training.state import update_ema

BATCH, LR, WARMUP, WIDTH, BLOCKS = 64, 2e-3, 100, 384, 2
NUM_NOISED, NUM_SAMPLES = 2048, 256
DRAWN = 20  # steps whose noise is drawn at once
FIRST, LATER = 200, 1.15  # evaluations: at this step, and each so much later than the one before
OVERRIDES = ["dataset.resolution=8", "model=unet_tiny"]


class Dense(ModelMixin, ConfigMixin):
    """A residual network of fully connected layers, called as a UNet2DModel is."""

    @register_to_config
    def __init__(self, in_channels: int = 1, out_channels: int = 1, sample_size: int = 8) -> None:
        super().__init__()
        pixels = in_channels * sample_size**2
        self.first, self.time = nn.Linear(pixels, WIDTH), nn.Linear(128, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
            for _ in range(BLOCKS)
        )
        self.last = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, pixels))
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * torch.arange(64) / 64), persistent=False)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> UNet2DOutput:
        angles = timesteps.float().reshape(-1, 1) * self.frequencies
        embedded = self.time(torch.cat((angles.sin(), angles.cos()), dim=1))
        hidden = self.first(x_t.flatten(1)) + embedded
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return UNet2DOutput(sample=self.last(hidden).view_as(x_t))


class Case:
    """A number of images and a seed: trained on, measured and kept in a file."""

    def __init__(self, folder: Path, num_images: int, seed: int) -> None:
        config = config_of([*OVERRIDES, f"seed={seed}", f"dataset.cache_dir={folder / 'cache'}"])
        data = open_data(config.dataset, progress=False)
        assert data.validation is not None
        # Which of the 2,000 it is differs between the seeds.
        chosen = image_indices(torch.arange(num_images).numpy(), len(data.train), seed=seed)
        self.images = to_model_range(data.train.load(sorted(chosen.tolist())))
        self.held_out = to_model_range(data.validation.load(range(len(data.validation))))
        self.config, self.seed = config, seed
        self.scheduler = config.noise_scheduler.build()
        self.objective = Objective(self.scheduler, config.loss, seed)
        torch.manual_seed(seed)
        self.model, self.average = Dense(), Dense().requires_grad_(False).eval()
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0, fused=True)
        self.step, self.seconds, self.evaluations = 0, 0.0, []
        self.path = folder / f"{num_images}_{seed}.pt"
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        kept = torch.load(self.path, weights_only=True)
        for part, name in self._parts():
            part.load_state_dict(kept[name])
        self.step, self.seconds, self.evaluations = kept["step"], kept["seconds"], kept["evaluations"]

    def _parts(self) -> list[tuple[Any, str]]:
        return [(self.model, "model"), (self.average, "average"), (self.optimizer, "optimizer")]

    def save(self) -> None:
        kept = {name: part.state_dict() for part, name in self._parts()}
        kept |= {"step": self.step, "seconds": self.seconds, "evaluations": self.evaluations}
        new = self.path.with_suffix(".new")
        torch.save(kept, new)
        os.replace(new, self.path)

    def train(self, until: int) -> None:
        shape, count = tuple(self.images.shape[1:]), len(self.images)
        parameters, averaged = list(self.model.parameters()), list(self.average.parameters())
        batches: list[tuple[Tensor, ...]] = []
        started = time.monotonic()
        while self.step < until:
            if not batches:
                positions = torch.arange(self.step * BATCH, min(self.step + DRAWN, until) * BATCH)
                x_0 = self.images[torch.from_numpy(image_indices(positions.numpy(), count, self.seed))]
                parts = (x_0, *self.objective.draw(shape, positions))
                batches += zip(*(part.split(BATCH) for part in parts), strict=True)
            x_0, noise, timesteps = batches.pop(0)
            loss = self.objective.per_image(self.model, x_0, noise, timesteps).mean()
            loss.backward()
            self.optimizer.param_groups[0]["lr"] = LR * min(1.0, (self.step + 1) / WARMUP)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            update_ema(averaged, parameters, self.config.ema.decay(self.step))
        self.seconds += time.monotonic() - started

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Losses at the same noise of training and of held-out images, and how near samples come to the former."""
        positions = torch.arange(NUM_NOISED)
        purposes = (Purpose.HELD_OUT_NOISE, Purpose.HELD_OUT_TIMESTEP)
        noise, timesteps = self.objective.draw(tuple(self.images.shape[1:]), positions, purposes)
        losses = {
            name: self.objective.per_image(self.average, images[positions % len(images)], noise, timesteps)
            for name, images in (("training", self.images), ("held_out", self.held_out))
        }
        engine, size = Engine(self.average, self.scheduler), self.config.dataset.resolution
        recipe = Recipe(self.seed, self.config.sampler, self.config.evaluation.num_inference_steps, size)
        samples = engine.images(recipe, range(NUM_SAMPLES))
        pixels = (to_model_range(samples), self.images, self.held_out)
        found = measure_copying(*(images.flatten(1) for images in pixels))
        copies = {"copy_rate": found.copy_rate, "interval": found.interval, "held_out_rate": found.held_out_rate}
        return {"step": self.step, **losses, "timesteps": timesteps, **copies}

    def run(self, most: int) -> None:
        """Train and evaluate until many samples are copies, or until a step."""
        while True:
            at = [FIRST]
            while at[-1] <= self.step:
                at.append(max(round(at[-1] * LATER), at[-1] + 1))
            if self.is_copying() or at[-1] > most:
                return
            self.train(at[-1])
            started = time.monotonic()
            found = self.evaluate()
            self.evaluations.append(found)
            self.save()
            training, held_out = (float(found[name].mean()) for name in ("training", "held_out"))
            print(
                f"{len(self.images)} seed {self.seed} step {self.step} {1e3 * self.seconds / self.step:.1f} ms/step, "
                f"eval {time.monotonic() - started:.1f} s, training {training:.4f} held-out {held_out:.4f}, "
                f"copies {found['copy_rate']:.3f}",
                flush=True,
            )

    def is_copying(self) -> bool:
        """Whether the newest two evaluations say so."""
        newest = self.evaluations[-2:]
        return len(newest) == 2 and all(each["interval"][0] > each["held_out_rate"] for each in newest)


def told(case: Case) -> dict[str, Any]:
    """When copying began, and what was forecast at half of the time."""
    clock, chosen = Clock(), little_noise(case.scheduler)
    forecasts: dict[int, tuple[float, tuple[float, float | None]] | None] = {}
    for found in case.evaluations:
        measured = chosen[found["timesteps"]]
        numbers = [torch.arange(NUM_NOISED)[measured] % len(images) for images in (case.images, case.held_out)]
        ratio = loss_ratio(found["training"][measured], found["held_out"][measured], *numbers)
        clock = clock.after(found["step"], {RATIO: ratio.value})
        forecast = clock.forecast(ratio.interval)
        forecasts[found["step"]] = forecast and (forecast.step, forecast.interval)
    copies = [each["step"] for each in case.evaluations if each["interval"][0] > each["held_out_rate"]]
    began = min(copies, default=None)
    half = max((step for step in forecasts if began and step <= began / 2), default=None)
    at_half = forecasts[half] if half is not None else None
    return {
        "images": len(case.images),
        "seed": case.seed,
        "last_step": case.step,
        "ms_per_step": 1e3 * case.seconds / max(case.step, 1),
        "began": began,
        "ratio_then": clock.ratios[began] if began else None,
        "forecast_at": half,
        "forecast": at_half,
        "factor": at_half[0] / began if at_half and began else None,
        "ratios": dict(clock.ratios),
        "forecasts": forecasts,
        "copy_rates": {each["step"]: (each["copy_rate"], each["interval"]) for each in case.evaluations},
    }


def row(case: dict[str, Any]) -> tuple[str, str]:
    label = f"{case['images']} images, seed {case['seed']}"
    if case["began"] is None:
        last = max(case["copy_rates"], default=None)
        if last is None:
            return label, "not run"
        return label, f"no copying until step {last:,}, where the ratio is {case['ratios'][last]:.2f}"
    forecast = case["forecast"]
    when = f"{forecast[0]:,.0f}, {case['factor']:.2f} times that" if forecast else "none"
    return (
        label,
        f"copying began at step {case['began']:,} (ratio {case['ratio_then']:.2f}); forecast at step "
        f"{case['forecast_at']:,}: {when}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--images", default="100,500,2000", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--seeds", default="1,2,3", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--most-steps", type=int, default=200_000)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cases = []
    for num_images in arguments.images:
        for seed in arguments.seeds:
            case = Case(arguments.scratch, num_images, seed)
            case.run(arguments.most_steps)
            cases.append(told(case))
    tell(Path(__file__).stem, [row(case) for case in cases], {"cases": cases})


if __name__ == "__main__":
    main()
