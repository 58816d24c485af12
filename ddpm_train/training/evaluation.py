"""What a run measures on its way: samples, the held-out loss, scores. Nothing of it touches the training."""

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import UNet2DModel
from PIL import Image

from ddpm_train.config.metrics import FEWEST_IMAGES
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.evaluation.grid import sample_grid
from ddpm_train.evaluation.held_out import LossByTimestep, held_out_losses, loss_by_timestep
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import EVALUATION, SAMPLES
from ddpm_train.system.files import write_atomic
from ddpm_train.training.run import Run
from ddpm_train.training.trackers import RunTrackers

if TYPE_CHECKING:  # of an extra
    from ddpm_train.evaluation.features import Extractor
    from ddpm_train.evaluation.scores import Score


class RunEvaluation:
    """Measures a run's sampling weights. All its processes call it, and get the same results.

    Raises:
        Mistakes: the extractor that the metrics need cannot be had.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._extractor = _open_extractor(run)

    def __call__(self, trackers: RunTrackers | None) -> dict[str, float]:
        """Measure, show and store; returns named values for the step's record.

        Args:
            trackers: on the main process.

        Raises:
            Stopped: all processes, when one of them was asked to stop.
        """
        run, config = self._run, self._run.config.evaluation
        started = time.monotonic()
        held_out, by_timestep, scores = None, None, []
        with _as_diffusers_loads_it(run.state.sampling_unet) as unet:
            grid = sample_grid(
                unet,
                run.noise_scheduler,
                config,
                sampler=run.config.sampler,
                seed=run.config.seed,
                accelerator=run.accelerator,
                stop=run.stop,
            )
            if run.data.validation is not None:
                held_out = held_out_losses(
                    unet,
                    run.data.validation,
                    run.objective,
                    config.batch_size,
                    accelerator=run.accelerator,
                    stop=run.stop,
                )
                if config.timestep_bins is not None:
                    num_timesteps = run.config.noise_scheduler.num_train_timesteps
                    by_timestep = loss_by_timestep(held_out, num_timesteps, config.timestep_bins)
            if self._extractor is not None:
                scores = self._scores(unet, self._extractor)
        loss = None if held_out is None else held_out.mean()
        if trackers is not None:
            self._show(trackers, grid, by_timestep)
            self._store(loss, by_timestep, scores)
        values = {} if loss is None else {"held_out_loss": loss}
        values |= {} if by_timestep is None else by_timestep.scalars()
        values |= {score.name: score.value for score in scores}
        return {**values, "evaluation_seconds": round(time.monotonic() - started, 3)}

    def _scores(self, unet: UNet2DModel, extractor: "Extractor") -> list["Score"]:
        """The chosen metrics of samples against the training images."""
        from ddpm_train.evaluation.distribution import distribution_scores
        from ddpm_train.evaluation.reference import reference_features

        run, config = self._run, self._run.config
        cache_dir = config.dataset.cache_dir
        reference = reference_features(
            run.data.train,
            extractor,
            dataset=config.dataset.path,
            split=config.dataset.split,
            cache_dir=Path(cache_dir) if cache_dir else None,
            accelerator=run.accelerator,
            stop=run.stop,
        )
        return distribution_scores(
            unet,
            run.noise_scheduler,
            sampler=config.sampler,
            num_inference_steps=config.evaluation.num_inference_steps,
            seed=config.seed,
            num_images=config.evaluation.num_samples,
            batch_size=config.evaluation.batch_size,
            extractor=extractor,
            reference=reference,
            metrics=config.evaluation.metrics,
            weights="unet" if run.state.ema_unet is None else "ema",
            step=run.state.step,
            accelerator=run.accelerator,
            stop=run.stop,
        )

    def _show(self, trackers: RunTrackers, grid: Image.Image, by_timestep: LossByTimestep | None) -> None:
        """Pictures, as files and in the trackers."""
        step, output_dir = self._run.state.step, self._run.output_dir
        png = io.BytesIO()
        grid.save(png, "PNG")
        self._write(output_dir / SAMPLES / f"{checkpoint.step_name(step)}.png", png.getvalue())
        trackers.add_image("samples", grid, step)
        if by_timestep is not None:
            from ddpm_train.evaluation.plots import loss_by_timestep_png

            plot = loss_by_timestep_png(by_timestep, f"step {step:,}")
            self._write(output_dir / EVALUATION / "loss_by_timestep.png", plot)
            trackers.add_image("loss_by_timestep", Image.open(io.BytesIO(plot)), step)

    def _store(self, loss: float | None, by_timestep: LossByTimestep | None, scores: list["Score"]) -> None:
        """The numbers, with all that they depend on."""
        step = self._run.state.step
        stored = {
            "step": step,
            "held_out_loss": loss,
            "loss_by_timestep": None if by_timestep is None else by_timestep.to_json(),
            "scores": [score.to_json() for score in scores],
        }
        path = self._run.output_dir / EVALUATION / f"{checkpoint.step_name(step)}.json"
        self._write(path, json.dumps(stored, indent=1).encode())

    def _write(self, path: Path, data: bytes) -> None:
        """A full disk costs the file, and not the run."""
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, data)
        except OSError as error:
            self._run.console.warn(f"ERROR: {path} cannot be written: {error}")


def _open_extractor(run: Run) -> "Extractor | None":
    """What the metrics need, None if there are none; in time to tell before the training what is missing."""
    config = run.config.evaluation
    if config.name == "none" or not config.metrics:
        return None
    if len(run.data.train) < FEWEST_IMAGES:
        raise Mistakes(
            f"evaluation.metrics: the {len(run.data.train)} training images are too few to compare with; "
            f"use at least {FEWEST_IMAGES}, or evaluation.metrics=[]"
        )
    from ddpm_train.evaluation.features import open_extractor

    choice = config.extractor
    return open_extractor(choice.name, choice.weights, run.accelerator.device, key="evaluation.extractor")


@contextmanager
def _as_diffusers_loads_it(unet: UNet2DModel) -> Iterator[UNet2DModel]:
    """The UNet in eval mode and float32, so that its pictures are those of the pipeline that the run leaves.

    Without an average this is the network that trains, whose `forward` Accelerate has replaced by one that autocasts,
    and which may be compiled for training.
    """
    autocasting = unet.__dict__.pop("forward", None)
    compiled, unet._compiled_call_impl = unet._compiled_call_impl, None
    training = unet.training
    unet.eval()
    try:
        yield unet
    finally:
        unet.train(training)
        unet._compiled_call_impl = compiled
        if autocasting is not None:
            unet.forward = autocasting
