"""What the number and the sizes of images decide of a run. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ddpm_train.config.parts import CONF

# What the images may decide, as the program's configs have it. What is otherwise was asked for.
OPEN: dict[str, Any] = {
    "dataset.resolution": 64,
    "dataset.validation_fraction": 0.02,
    "train.batch_size": 64,
    "train.max_steps": 1400,
    "evaluation.first_step": None,
}
# Follow the layout of the network, as `model=unet_64` in a command would have them.
OF_A_LAYOUT = ("model", "optimizer.lr", "lr_scheduler.warmup_steps")

# Larger than 64 shows more and takes four times as long, which only a person can weigh.
_RESOLUTIONS, _MOST_ENLARGED = (64, 32, 16), 0.1
# The loss of fewer than ten images says little; and most images are there to be learned.
_FEWEST_HELD_OUT, _MOST_HELD_OUT = 10, 0.1
# Fewer images than this a large network learns by heart; and of still fewer a small one, too.
FEW_IMAGES, _VERY_FEW_IMAGES, _DROPOUT = 5_000, 2_000, 0.1
# The passes are those of diffusers' recipe for 8,189 flowers. Few images need as many steps as that all the same.
_PASSES, _FEWEST_STEPS, _MOST_STEPS = 100, 10_000, 100_000
# A first picture within minutes also on a CPU. A shorter run has one at its end.
_FIRST_EVALUATION, _EVALUATED_FROM = 100, 1_000
WHY_LAYOUT = {
    "unet_tiny": "at most 16 pixels",
    "unet_small": f"fewer than {FEW_IMAGES:,} images, which a larger network learns by heart",
    "unet_32": "at most 32 pixels",
    "unet_64": "more than 32 pixels",
    "unet_128": "more than 64 pixels",
}
_SIDE = "a side that is no multiple of 8"
WHY = {
    "name": "after the images",
    "dataset.resolution": f"at most {_MOST_ENLARGED:.0%} of the images are smaller, and 64 is the most",
    "dataset.validation_fraction": (
        f"held out: 2 %, but at least {_FEWEST_HELD_OUT} images, and at most {_MOST_HELD_OUT:.0%}"
    ),
    "train.batch_size": "no more than there are images",
    "model.dropout": f"fewer than {_VERY_FEW_IMAGES:,} images",
    "train.max_steps": f"{_PASSES} passes over the images, within {_FEWEST_STEPS:,} and {_MOST_STEPS:,} steps",
    "evaluation.every_steps": "an eighth of the run",  # in the records of runs from before `auto`
    "evaluation.first_step": "a picture within minutes",
}


def decided(
    values: Mapping[str, Any], left_open: Sequence[str], num_images: int, sizes: Sequence[tuple[int, int]]
) -> tuple[dict[str, Any], list[str]]:
    """What these images decide, by key, and the entries of `dataset.chosen` for that.

    Args:
        sizes: (height, width) of some of them.
    """
    made: dict[str, Any] = {}
    names: list[str] = []

    def decide(key: str, value: Any) -> Any:
        """The value of the key from here on."""
        if key not in left_open:
            return value_of(values, key)
        made[key] = value
        names.append(key)
        return value

    resolution = decide("dataset.resolution", _resolution(sizes))
    fraction = value_of(values, "dataset.validation_fraction")
    if value_of(values, "dataset.validation_split") is None:
        fraction = decide("dataset.validation_fraction", _validation_fraction(num_images))
    if "train" not in values:  # it is a config of `ddpm-data`
        return made, names
    num_training = num_images - round(fraction * num_images)
    batch_size = value_of(values, "train.batch_size")
    if num_training < batch_size:
        batch_size = decide("train.batch_size", 2 ** (max(num_training, 1).bit_length() - 1))
    if "model" in left_open:
        layout = _layout(resolution, num_images)
        made |= {key: value for key, value in _of_layout(layout, values).items() if key in left_open}
        names.append(f"model={layout}")
    if num_images < _VERY_FEW_IMAGES:
        decide("model.dropout", _DROPOUT)
    passes, epochs = num_training / batch_size, value_of(values, "train.epochs")
    max_steps = epochs and int(epochs * passes)
    if epochs is None:
        max_steps = decide("train.max_steps", _max_steps(passes))
    if max_steps and max_steps >= _EVALUATED_FROM and value_of(values, "evaluation.name") == "grid":
        decide("evaluation.first_step", _FIRST_EVALUATION)
    return made, names


def _resolution(sizes: Sequence[tuple[int, int]]) -> int:
    smaller = {side: sum(min(size) < side for size in sizes) for side in _RESOLUTIONS}
    return next((side for side in _RESOLUTIONS if smaller[side] <= _MOST_ENLARGED * len(sizes)), _RESOLUTIONS[-1])


def _validation_fraction(num_images: int) -> float:
    held_out = min(max(OPEN["dataset.validation_fraction"] * num_images, _FEWEST_HELD_OUT), _MOST_HELD_OUT * num_images)
    return round(int(held_out) / num_images, 4)


def _layout(resolution: int | Sequence[int], num_images: int) -> str:
    """The name of a model that can be cut as often as these sides."""
    sides = _sides(resolution)
    if max(sides) <= 16 or any(side % 8 for side in sides):
        return "unet_tiny"
    if num_images < FEW_IMAGES:
        return "unet_small"
    if max(sides) <= 32:
        return "unet_32"
    return "unet_128" if max(sides) > 64 and not any(side % 32 for side in sides) else "unet_64"


def why_layout(name: str, resolution: int | Sequence[int]) -> str:
    """Why these sides have this model."""
    return _SIDE if name == "unet_tiny" and max(_sides(resolution)) > 16 else WHY_LAYOUT[name]


def _sides(resolution: int | Sequence[int]) -> list[int]:
    return [resolution] if isinstance(resolution, int) else [*resolution]


def _of_layout(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `OF_A_LAYOUT`; none for the network that the config has already."""
    if name == "unet_tiny":
        return {}
    optimizer, lr_scheduler = (read_choice(group, values[group]["name"]) for group in ("optimizer", "lr_scheduler"))
    model = {**values["model"], **read_choice("model", name)}
    return dict(zip(OF_A_LAYOUT, (model, optimizer["lr"], lr_scheduler["warmup_steps"]), strict=True))


def read_choice(group: str, name: str) -> dict[str, Any]:
    """A choice of the program's own configs with what it builds on."""
    own: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text("utf-8"))
    below = [base for base in own.pop("defaults", ()) if base != "_self_"]
    return {key: value for base in below for key, value in read_choice(group, base).items()} | own


def _max_steps(passes: float) -> int:
    """Of so many steps a pass, in thousands."""
    return min(max(1_000 * round(_PASSES * passes / 1_000), _FEWEST_STEPS), _MOST_STEPS)


def value_of(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def with_changes(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with some keys changed."""
    changed = dict(values)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        changed[section] = {**changed[section], name: value} if name else {**changed[section], **value}
    return changed
