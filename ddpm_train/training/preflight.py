"""What is wrong with a training run on this machine and at the Hub, before anything slow starts. Imports no torch."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddpm_train.config.checks import TRAINING
from ddpm_train.config.mistakes import Mistakes, not_installed, one_of
from ddpm_train.config.program import Program
from ddpm_train.config.samplers import FITTED, sampler_package_mistakes
from ddpm_train.config.train import Config, Evaluation
from ddpm_train.data.paths import path_mistakes, unused_mistakes
from ddpm_train.hub.preflight import SCHEME, is_offline, name_mistakes, parse_uri, push_mistakes
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import CHECKPOINTS
from ddpm_train.runs.identity import accept, identity
from ddpm_train.runs.state import read_state
from ddpm_train.sampling.preflight import precision_mistakes
from ddpm_train.system import exit_codes, launch
from ddpm_train.system.failures import one_line
from ddpm_train.system.files import expanded, output_mistakes
from ddpm_train.training.choices import resolve, settle


def preflight(config: Config, num_processes: int | None = None) -> Iterator[str]:
    """What is wrong with this config on this machine, a line each. Imports torch only if it must ask for a GPU."""
    yield from path_mistakes(config.dataset)
    yield from unused_mistakes(config.dataset)
    yield from _among_images_mistakes(config)
    yield from launch.launch_mistakes()
    yield from _deterministic_mistakes(config.train.deterministic)
    yield from _batch_mistakes(config, num_processes or launch.num_processes())
    yield from _precision_mistakes(config.train.mixed_precision)
    yield from _extras_mistakes(config)
    yield from _mirror_mistakes(config.checkpoint.mirror)
    yield from _evaluation_mistakes(config.evaluation)
    if exit_codes.is_first_process():  # which alone touches the run's folder, and the Hub
        yield from output_mistakes("output_dir", config.output_dir)
        yield from _resume_mistakes(config)
        yield from _push_mistakes(config)


def _among_images_mistakes(config: Config) -> Iterator[str]:
    """A line if the run's own pictures would become its data. `dataset=imagefolder` knows them, `datasets` does not."""
    path, output = expanded(config.dataset.path).resolve(), Path(config.output_dir).resolve()
    if config.dataset.source != "hub" or not path.is_dir() or not output.is_relative_to(path):
        return
    is_saved = any((path / name).exists() for name in ("state.json", "dataset_dict.json"))  # by save_to_disk
    if not is_saved and not any(part.startswith(".") for part in output.relative_to(path).parts):
        yield (
            f"output_dir={config.output_dir}: lies in dataset.path={config.dataset.path}, where the `datasets` library "
            "would take the run's files for data; choose an output_dir elsewhere, or dataset=imagefolder"
        )


def _deterministic_mistakes(deterministic: bool) -> Iterator[str]:
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if deterministic and workspace not in (None, ":4096:8", ":16:8"):
        yield f"CUBLAS_WORKSPACE_CONFIG={workspace}: not with train.deterministic=true; unset it"


def _batch_mistakes(config: Config, num_processes: int) -> Iterator[str]:
    batch_size, micro = config.train.batch_size, config.train.micro_batch_size
    if batch_size % num_processes:
        counts = [count for count in range(1, min(batch_size, 64) + 1) if batch_size % count == 0]
        yield (
            f"train.batch_size={batch_size}: not divisible by {num_processes} processes; "
            f"use {one_of(counts)} processes or a multiple of {num_processes}"
        )
    elif isinstance(micro, int) and batch_size % micro == 0 and (batch_size // micro) % num_processes:
        yield (
            f"train.micro_batch_size={micro}: {batch_size // micro} micro-batches do not divide over "
            f"{num_processes} processes; use a divisor of {batch_size // num_processes}"
        )


def _precision_mistakes(configured: str) -> Iterator[str]:
    yield from precision_mistakes("train.mixed_precision", configured, ("fp16", "bf16", "no", "auto"))
    if configured == "auto":  # which the launcher decides
        yield from precision_mistakes(launch.PRECISION, launch.precision(), ("fp16", "bf16", "no"))


def _extras_mistakes(config: Config) -> Iterator[str]:
    """Choices that need a package which is not installed."""
    yield from sampler_package_mistakes(config.sampler.name)
    if config.sampler.name == FITTED:
        yield f"sampler={FITTED}: is fitted to a finished model; use another, and this one with ddpm-sample"
    for tracker in ("wandb", "trackio"):
        if getattr(config.tracker, tracker) is not None:
            yield from not_installed(f"tracker={tracker}", tracker, tracker)
    if config.optimizer.name == "adamw_8bit":
        yield from not_installed("optimizer=adamw_8bit", "bitsandbytes", "8bit")


def _mirror_mistakes(url: str | None) -> Iterator[str]:
    if not url:
        return
    import fsspec

    # A file system that could only half open complains once more when it is collected.
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        fsspec.core.url_to_fs(url)
    except ImportError as error:
        remedy = "; pip install 'ddpm-train[s3]'" if "s3fs" in str(error) else ""
        yield f"checkpoint.mirror={url}: {error}{remedy}"
    except Exception as error:  # each of its file systems raises its own
        remedy = "give a URL that can be written to, such as s3://bucket/runs, or a folder"
        yield f"checkpoint.mirror={url}: {one_line(error)}; {remedy}"
    finally:
        sys.unraisablehook = before


def _evaluation_mistakes(evaluation: Evaluation) -> Iterator[str]:
    """What `evaluation` needs that is not here."""
    if evaluation.name == "none":
        return
    yield from evaluation.extractor.mistakes_with(evaluation.metrics, "evaluation.")
    if evaluation.timestep_bins is not None:
        yield from not_installed(f"evaluation.timestep_bins={evaluation.timestep_bins}", "matplotlib", "evaluate")


def _resume_mistakes(config: Config) -> Iterator[str]:
    if config.resume.startswith(SCHEME):
        if parse_uri(config.resume) is None:
            yield f"resume={config.resume}: not of the form {SCHEME}owner/name or {SCHEME}owner/name@revision"
    elif config.resume not in ("auto", "never") and not Path(config.resume).is_dir():
        yield f"resume={config.resume}: no such checkpoint; give auto, never, a checkpoint's folder or hf://owner/name"


def _push_mistakes(config: Config) -> Iterator[str]:
    """What would keep the run from being pushed. The Hub is asked only for a run that begins.

    A run that goes on is not ended by a Hub that is down, nor by a token that has expired meanwhile.
    """
    if not config.hub.push:
        return
    wrong_name = list(name_mistakes("hub.repo_id", config.hub.repo_id))
    yield from wrong_name
    begun = any((Path(config.output_dir) / "checkpoints").glob("step_*"))
    if not begun and not is_offline():
        repo_id = None if wrong_name else config.hub.repo_id
        otherwise = ", or HF_HUB_OFFLINE=1 to train without pushing"
        yield from push_mistakes("hub.push=true", "hub.repo_id", repo_id, config.hub.private, otherwise=otherwise)


def trial(config: Config, values: Mapping[str, Any]) -> Iterator[str]:
    """What keeps the run from its first step, the dataset apart."""
    try:
        _accept_run(config, values)
    except Mistakes as mistakes:  # of which torch need not be imported
        yield from mistakes.lines
    else:
        yield from network_mistakes(config)


def _accept_run(config: Config, values: Mapping[str, Any]) -> None:
    """Raises `Mistakes` if the newest checkpoint on the disk is of another run, as far as the config shows; `restore`
    knows the rest, and what to do about a checkpoint that is damaged."""
    published = checkpoint.published(Path(config.output_dir) / CHECKPOINTS)
    if not exit_codes.is_first_process() or config.resume == "never" or not published:
        return
    try:
        state = read_state(checkpoint.verify_state(published[-1]))
    except checkpoint.BadCheckpoint:
        return
    there = state.identity
    content, precision, split = (there.get(key) for key in ("dataset content", "precision", "dataset split"))
    now = identity(
        values,
        dataset_content=str(content),
        dataset_split=split,
        pixel_values=there.get("pixel values"),
        mixed_precision=str(precision),
    )
    accept(there, now, allowed=config.allow_change, where=f"{published[-1]} (step {state.step:,})")


def network_mistakes(config: Config) -> Iterator[str]:
    """A line if the network cannot be trained on these images, found by building and running it without memory."""
    if launch.hands_over():
        return  # those that it is handed to try it themselves
    from ddpm_train.models.trial import layout_mistakes
    from ddpm_train.models.unet import Images

    images = Images(config.dataset.resolution, config.dataset.channels)
    for line in layout_mistakes(config.model, images, config.noise_scheduler.num_train_timesteps):
        if config.model.pretrained is None:
            yield line
        else:
            problem, _, _ = line.rpartition("; ")
            yield f"model.pretrained={config.model.pretrained}: {problem}; give another model"


PROGRAM = Program("ddpm-train", "config", "output_dir", "name='{}'", TRAINING, preflight, resolve, settle, trial)
