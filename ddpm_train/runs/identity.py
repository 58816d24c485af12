"""What makes a run the run it is: which changes a resumed run takes over, and which would make it another run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_train.config.mistakes import Mistakes, one_of
from ddpm_train.config.schema import dotted_values
from ddpm_train.config.text import printable

# Everything else decides what the run computes. Of the dataset its content counts (by hash), not where it lies.
MAY_CHANGE = (
    *("name", "output_dir", "resume", "allow_change", "objective", "extensions"),
    *("train.max_steps", "train.epochs", "train.patience", "train.stop_before_copying"),
    *("train.micro_batch_size", "train.gradient_checkpointing"),
    *("train.log_every_steps", "train.mixed_precision", "train.channels_last", "train.attention", "train.compile"),
    *("train.deterministic", "lr_scheduler.total_steps", "dataset.chosen"),
    *("dataset.source", "dataset.path", "dataset.config_name", "dataset.revision", "dataset.image_column"),
    *("dataset.cache", "dataset.device_cache", "dataset.cache_dir", "dataset.num_workers", "dataset.max_pixels"),
    *(
        "dataset.max_broken_fraction",
        "dataset.value_range",
        "dataset.dtype",
        "dataset.stretch",
        "dataset.no_data",
        "dataset.fill",
        "dataset.frames",
        "dataset.group_by",
        "dataset.drop_duplicates",
        "checkpoint",
        "hub",
        "evaluation",
        "sampler",
        "tracker",
    ),
)
# By these the network has other tensors: no checkpoint of the one can be loaded into the other.
_LAYOUT = (
    *("model.time_embedding_type", "model.time_embedding_dim", "model.down_block_types", "model.mid_block_type"),
    *("model.up_block_types", "model.block_out_channels", "model.layers_per_block", "model.downsample_type"),
    *("model.upsample_type", "model.resnet_time_scale_shift", "model.add_attention", "dataset.channels"),
)
# Keys that came later, as every run before them had it: so they say nothing of a run.
_AS_EVER = {
    "timestep_distribution.name": "uniform",
    "timestep_distribution.stratified": False,
    "augmentation.name": "none",
    "loss.learned_uncertainty": False,
    "noise.perturbation": 0.0,
    "noise.nearest_of": 1,
    "noise_scheduler.log_snr_shift": 0.0,
    "dataset.dtype": None,
    "dataset.stretch": "linear",
    "dataset.no_data": None,
    "dataset.fill": None,
}
# Where the run lies and how it was asked to start say nothing about it; what was chosen is told by its own keys.
_UNMENTIONED = ("name", "output_dir", "resume", "allow_change", "dataset.chosen")


def identity(
    values: Mapping[str, Any],
    *,
    dataset_content: str,
    mixed_precision: str,
    dataset_split: str | None = None,
    pixel_values: str | None = None,
) -> dict[str, Any]:
    """The config as flat keys, with what the machine decided: the dataset's content and the precision.

    Args:
        dataset_split: a hash of which images are used where keys have changed that; see `data.split.Selection`.
        pixel_values: what the numbers of arrays mean, see `config.pixels.PixelValues`; None: they are pictures.
    """
    flat = {key: list(value) if isinstance(value, tuple) else value for key, value in dotted_values(values)}
    flat = {key: value for key, value in flat.items() if key not in _AS_EVER or value != _AS_EVER[key]}
    pretrained = str(flat.get("model.pretrained") or "")  # a folder's name may be a number
    if pretrained and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", pretrained):
        # Only the name of a folder: it may lie elsewhere now.
        flat["model.pretrained"] = Path(pretrained).name
    of_images = {"dataset content": dataset_content, "dataset split": dataset_split, "pixel values": pixel_values}
    of_images = {key: value for key, value in of_images.items() if value}
    return {**flat, **of_images, "precision": mixed_precision}


def accept(
    there: Mapping[str, Any], now: Mapping[str, Any], *, allowed: tuple[str, ...], where: str
) -> tuple[list[str], list[str]]:
    """Compare a checkpoint's identity with the configured one.

    Args:
        allowed: keys, or groups of keys, whose change the user has accepted.
        where: names the checkpoint in the message.

    Returns:
        A line for each harmless change, and the accepted keys that did change.

    Raises:
        Mistakes: the rest of the changes, as a table of two columns, with the remedy.
    """
    changed = [key for key in dict.fromkeys([*there, *now]) if not _same(key, there.get(key), now.get(key))]
    harmless = [key for key in changed if _covers(MAY_CHANGE, key)]
    accepted = [key for key in changed if _covers(allowed, key) and key not in harmless]
    refused = [key for key in changed if key not in harmless and key not in accepted]
    if refused:
        rows = [(key, str(there.get(key)), str(now.get(key))) for key in refused]
        title = f"this config would make another run than the one in {where}:"
        change = f"'allow_change=[{','.join(refused)}]'"
        remedy = f"give it another name=…, or accept the change, which the run then records, with {change}"
        if other := [key for key in refused if _covers(_LAYOUT, key)]:
            remedy = f"give it another name=…: with another {one_of(other)} its checkpoints do not fit the network"
        raise Mistakes("\n".join([title, *in_columns(("key", "there", "now"), *rows), f"  {remedy}"]))
    # A key that is not there was left out when the checkpoint was shared, or is newer than it.
    known = [key for key in harmless if key in there and key not in _UNMENTIONED]
    return [f"{key}: {there[key]} -> {now.get(key)}" for key in known], accepted


def _same(key: str, there: Any, now: Any) -> bool:
    if key == "model.pretrained" and "/" not in str(there):  # of a folder the name alone is noted, or shared
        return str(there) == Path(str(now)).name
    return bool(there == now)


def in_columns(*rows: tuple[str, str, str]) -> list[str]:
    """A line for each row, with the columns one below the other."""
    rows = tuple((printable(one), printable(two), printable(three)) for one, two, three in rows)
    first, second, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [f"  {one:<{first}}  {two:<{second}}  {three}" for one, two, three in rows]


def _covers(keys: tuple[str, ...], key: str) -> bool:
    return any(key == covering or key.startswith(f"{covering}.") for covering in keys)
