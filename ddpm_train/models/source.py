"""Where a model comes from: whether that can be a folder or a Hub repository at all. Imports no torch."""

import re
from collections.abc import Iterator
from pathlib import Path

from ddpm_train.config.mistakes import did_you_mean
from ddpm_train.runs.folder import is_best
from ddpm_train.system.files import expanded

INDEX, CONFIG = "model_index.json", "config.json"  # of a pipeline of diffusers, and of each of its models
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


def path_mistakes(pipeline: str, key: str = "pipeline", revision: str | None = None) -> Iterator[str]:
    """A line if it is no folder and cannot be a repository, or was meant as a folder: its parent is here.

    Args:
        revision: of the repository.
    """
    path = expanded(pipeline)
    if path.is_dir() or is_best(pipeline):
        if revision is not None:
            name = key.removesuffix("pipeline") + "revision"
            yield f"{name}={revision}: does nothing with {key}={pipeline}, which is no repository; leave it out"
        if (model := _model_within(path)) is not None:
            which = "the average of its weights" if model.name == "unet_ema" else "its weights"
            yield f"{key}={pipeline}: no {INDEX} in it, but a UNet further down; use {key}={model}, {which}"
        return
    if path.is_file():
        yield f"{key}={pipeline}: {_file_use(path, key)}"
        return
    parent_is_here = path.parent != Path() and path.parent.is_dir()
    if parent_is_here or not re.fullmatch(r"[\w.-]+/[\w.-]+", pipeline):
        siblings = [str(path.parent / other.name) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        remedy = did_you_mean(pipeline, siblings) or " give a run, a model's folder, or a Hub repository (owner/name)"
        yield f"{key}={pipeline}: no such folder;{remedy}"


def script_checkpoint(folder: Path) -> bool:
    """Whether a folder is called as the checkpoints of diffusers' train_unconditional.py are."""
    return re.fullmatch(r"checkpoint-\d+", folder.name) is not None


def _model_within(folder: Path) -> Path | None:
    """Which model was meant by a checkpoint of that script, or by a folder of them: the newest, and its average."""
    if (folder / INDEX).exists() or (folder / CONFIG).exists():
        return None
    inside = [path for path in folder.glob("checkpoint-*") if script_checkpoint(path)]
    newest_first = sorted(inside, key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    models = (each / name for each in (folder, *newest_first) for name in ("unet_ema", "unet"))
    return next((model for model in models if (model / CONFIG).is_file()), None)


def _file_use(path: Path, key: str) -> str:
    """What is wrong with a file in the place of a model's folder, and what to do."""
    if any((path.parent / name).is_file() for name in (INDEX, CONFIG)):
        return f"a single file; use its folder, {key}={path.parent}"
    if path.suffix.lower() in _PICKLES:
        return (
            "a pickle, which is not read, for it may run any code; load it with the program that made it, and give the "
            "folder that UNet2DModel.save_pretrained writes"
        )
    return (
        f"a single file, without the {CONFIG} that describes its network; give the folder that "
        "UNet2DModel.save_pretrained writes"
    )
