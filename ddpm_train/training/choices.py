"""What the images decide of a run where its command leaves it open: `dataset.chosen=auto`, and of the network alone
`model=auto`. Imports no torch.

All of it follows from the command and the images alone, so that it is the same on any machine. A run that was begun has
its choices in its record, and keeps them when images are added.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from ddpm_train.config.foreign import BadFile
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.naming import named_after
from ddpm_train.config.parts import CONF
from ddpm_train.models import pretrained
from ddpm_train.runs.folder import CONFIG, read_config
from ddpm_train.system.files import expanded

# What the images may decide, as the program's configs have it. What is otherwise was asked for.
OPEN: dict[str, Any] = {
    "dataset.resolution": 64,
    "dataset.validation_fraction": 0.02,
    "train.batch_size": 64,
    "train.max_steps": 1400,
    "evaluation.every_steps": None,
    "evaluation.first_step": None,
}
# Follow the layout of the network, as `model=unet_64` in a command would have them.
_OF_A_LAYOUT = ("model", "optimizer.lr", "lr_scheduler.warmup_steps")

# What a run is called that nothing names, and its folder.
_UNNAMED = {"name": "default", "output_dir": "outputs/default"}

# Larger than 64 shows more and takes four times as long, which only a person can weigh.
_RESOLUTIONS, _MOST_ENLARGED = (64, 32, 16), 0.1
# The loss of fewer than ten images says little; and most images are there to be learned.
_FEWEST_HELD_OUT, _MOST_HELD_OUT = 10, 0.1
# Fewer images than this a large network learns by heart; and of still fewer a small one, too.
_FEW_IMAGES, _VERY_FEW_IMAGES, _DROPOUT = 5_000, 2_000, 0.1
# The passes are those of diffusers' recipe for 8,189 flowers. Few images need as many steps as that all the same.
_PASSES, _FEWEST_STEPS, _MOST_STEPS = 100, 10_000, 100_000
# Pictures on the way, the first within minutes also on a CPU. A shorter run has them at its end.
_NUM_EVALUATIONS, _FIRST_EVALUATION, _EVALUATED_FROM = 8, 100, 1_000

# Sources whose images are here before a run begins.
_COUNTED = ("folder", "embedded")
_WHY_LAYOUT = {
    "unet_tiny": "at most 16 pixels, or a side that is no multiple of 8",
    "unet_small": f"fewer than {_FEW_IMAGES:,} images, which a larger network learns by heart",
    "unet_32": "at most 32 pixels",
    "unet_64": "more than 32 pixels",
    "unet_128": "more than 64 pixels",
}
_WHY = {
    "name": "after the folder of the images",
    "dataset.resolution": f"at most {_MOST_ENLARGED:.0%} of the images are smaller, and 64 is the most",
    "dataset.validation_fraction": f"held out: 2 %, at least {_FEWEST_HELD_OUT} images, at most {_MOST_HELD_OUT:.0%}",
    "train.batch_size": "no more than there are images",
    "model.dropout": f"fewer than {_VERY_FEW_IMAGES:,} images",
    "train.max_steps": f"{_PASSES} passes over the images, within {_FEWEST_STEPS:,} and {_MOST_STEPS:,} steps",
    "evaluation.every_steps": f"pictures and held-out loss {_NUM_EVALUATIONS} times",
    "evaluation.first_step": "and once soon",
}


def resolve(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A composed config with all choices made: those of the images, then the network of `model.pretrained`."""
    dataset = values.get("dataset")
    if _asks_for_layout(values):
        if any(_key(text) == "experiment" for text in overrides):
            return values, ["model=auto: an experiment has a network of its own; leave out one of the two"]
        if isinstance(dataset, dict) and dataset.get("chosen") != "auto":
            values = _with(values, _chosen(values, overrides))
    if isinstance(dataset, dict) and dataset.get("chosen") == "auto":
        if dataset.get("source") != "folder":
            return values, ["dataset.chosen=auto: only a folder of images decides on a run; leave it out"]
        named = _named(values, overrides)
        values = {**values, **named}
        made = _chosen(values, overrides)
        values = _with(values, {**made, "dataset.chosen": [*named.keys() & {"name"}, *made.get("dataset.chosen", ())]})
    if _asks_for_layout(values):
        values = {**values, "model": {key: value for key, value in values["model"].items() if key != "layout"}}
    return pretrained.resolve(values, overrides)


def _asks_for_layout(values: Mapping[str, Any]) -> bool:
    """Whether the command, or a config of the user's, says `model=auto`."""
    return _value(values, "model.layout") == "auto"


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def described(chosen: str, values: Mapping[str, Any]) -> str:
    """An entry of `dataset.chosen` for a person: the key that changes it, its value, and why."""
    key, _, name = chosen.partition("=")
    if key != "model":
        return f"{key}={name or _value(values, key)}  ({_WHY[key]})"
    unknown = "" if values["dataset"]["source"] in _COUNTED else "; how many images there are was not known"
    return f"model={name}  ({_WHY_LAYOUT[name]}{unknown})"


def is_chosen(key: str, values: Mapping[str, Any]) -> bool:
    """Whether the images decided on this key, or on which keys they do."""
    names = {name.partition("=")[0] for name in values["dataset"]["chosen"]}
    of_layout = key in _OF_A_LAYOUT or key.startswith("model.")
    return key in names or key == "dataset.chosen" or (of_layout and "model" in names)


def _named(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The name after the folder of the images, and the run's folder by it, where nothing else names them."""
    given = set(map(_key, overrides))
    folder = expanded(str(values["dataset"].get("path")))
    is_named = given & _UNNAMED.keys() or any(values.get(key) != default for key, default in _UNNAMED.items())
    if is_named or not os.path.isdir(folder):
        return {}
    name = named_after(os.path.basename(os.path.abspath(folder)))
    with suppress(OSError, BadFile, KeyError, TypeError):
        began = read_config(Path(_UNNAMED["output_dir"], CONFIG))["dataset"]
        if began["source"] == "folder" and expanded(began["path"]).resolve() == folder.resolve():
            return {}  # it has its name from before runs were called after their images
    return {"name": name, "output_dir": f"outputs/{name}"} if name else {}


def _chosen(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """New values by key, `dataset.chosen` among them; none where the checks that follow have something to say."""
    made, given = _made(values, overrides), set(map(_key, overrides))
    if "model" in made:
        made["model"] = {key: value for key, value in made["model"].items() if f"model.{key}" not in given}
    return made


def _made(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The same, but for keys of a layout that are given."""
    left_open = _left_open(values, overrides)
    recorded = pretrained.recorded_config(values) or {}
    kept: dict[str, Any] = {}
    dataset = values["dataset"]
    if isinstance(began := recorded.get("dataset"), dict) and began.get("source") == dataset.get("source"):
        kept = _as_recorded(recorded, began.get("chosen"), left_open)
        left_open = [key for key in left_open if key not in kept]  # what a command before this one gave
        values = _with(dict(values), kept)
    try:
        made = _decided(values, left_open, *_images(dataset))
    except (Mistakes, OSError, KeyError, TypeError, ValueError):
        return kept
    return {**kept, **made, "dataset.chosen": [*kept.get("dataset.chosen", ()), *made["dataset.chosen"]]}


def _images(dataset: Mapping[str, Any]) -> tuple[int, Sequence[tuple[int, int]]]:
    """How many images there are, and of a folder (height, width) of some. Where they are not here yet, many."""
    from ddpm_train.data.sizes import image_sizes  # numpy takes its time to import, and few datasets need it
    from ddpm_train.data.sources import EmbeddedSource, FolderSource

    if dataset["source"] == "folder":
        source = FolderSource(expanded(dataset["path"]), max_broken_fraction=1.0)
        return len(source), image_sizes(source, dataset["max_pixels"])
    if dataset["source"] == "embedded":
        config: Any = SimpleNamespace(**dataset)
        return len(EmbeddedSource(config, config.split)), ()
    return _FEW_IMAGES, ()


def _left_open(values: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The keys on which neither the command nor a config of the user's says anything. An experiment says all."""
    given = set(map(_key, overrides))
    if _asks_for_layout(values):
        layout = [key for key in (*_OF_A_LAYOUT, "model.dropout") if key == "model" or key not in given]
    elif "experiment" in given or any(key.partition(".")[0] == "model" for key in given):
        layout = []
    else:
        layout = [key for key in _OF_A_LAYOUT if key not in given]
    if "experiment" in given or _value(values, "dataset.chosen") != "auto":
        return layout
    return [*(key for key, default in OPEN.items() if key not in given and _value(values, key) == default), *layout]


def _as_recorded(recorded: Mapping[str, Any], chosen: Sequence[str] | None, left_open: Sequence[str]) -> dict[str, Any]:
    """What was chosen when the run began. A run from before there were choices (None) keeps all that is open."""
    names = [name for name in chosen or () if name.partition("=")[0] in left_open]
    kept = {name.partition("=")[0] for name in names} if chosen is not None else {*left_open}
    kept |= {*_OF_A_LAYOUT} if "model" in kept else set()
    return {key: _value(recorded, key) for key in left_open if key in kept} | {"dataset.chosen": names}


def _decided(
    values: Mapping[str, Any], left_open: Sequence[str], num_images: int, sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """What these images decide.

    Args:
        sizes: (height, width) of some of them.
    """
    made: dict[str, Any] = {}
    names: list[str] = []

    def decide(key: str, value: Any) -> Any:
        """The value of the key from here on."""
        if key not in left_open:
            return _value(values, key)
        made[key] = value
        names.append(key)
        return value

    resolution = decide("dataset.resolution", _resolution(sizes))
    fraction = _value(values, "dataset.validation_fraction")
    if _value(values, "dataset.validation_split") is None:
        fraction = decide("dataset.validation_fraction", _validation_fraction(num_images))
    num_training = num_images - round(fraction * num_images)
    batch_size = _value(values, "train.batch_size")
    if num_training < batch_size:
        batch_size = decide("train.batch_size", 2 ** (max(num_training, 1).bit_length() - 1))
    if "model" in left_open:
        layout = _layout(resolution, num_images)
        made |= {key: value for key, value in _of_layout(layout, values).items() if key in left_open}
        names.append(f"model={layout}")
    if num_images < _VERY_FEW_IMAGES:
        decide("model.dropout", _DROPOUT)
    passes, epochs = num_training / batch_size, _value(values, "train.epochs")
    max_steps = epochs and int(epochs * passes)
    if epochs is None:
        max_steps = decide("train.max_steps", _max_steps(passes))
    if max_steps and max_steps >= _EVALUATED_FROM and _value(values, "evaluation.name") == "grid":
        decide("evaluation.every_steps", max_steps // _NUM_EVALUATIONS)
        decide("evaluation.first_step", _FIRST_EVALUATION)
    return {**made, "dataset.chosen": names}


def _resolution(sizes: Sequence[tuple[int, int]]) -> int:
    smaller = {side: sum(min(size) < side for size in sizes) for side in _RESOLUTIONS}
    return next((side for side in _RESOLUTIONS if smaller[side] <= _MOST_ENLARGED * len(sizes)), _RESOLUTIONS[-1])


def _validation_fraction(num_images: int) -> float:
    held_out = min(max(OPEN["dataset.validation_fraction"] * num_images, _FEWEST_HELD_OUT), _MOST_HELD_OUT * num_images)
    return round(int(held_out) / num_images, 4)


def _layout(resolution: int | Sequence[int], num_images: int) -> str:
    """The name of a model that can be cut as often as these sides."""
    sides = [resolution] if isinstance(resolution, int) else [*resolution]
    if max(sides) <= 16 or any(side % 8 for side in sides):
        return "unet_tiny"
    if num_images < _FEW_IMAGES:
        return "unet_small"
    if max(sides) <= 32:
        return "unet_32"
    return "unet_128" if max(sides) > 64 and not any(side % 32 for side in sides) else "unet_64"


def _of_layout(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `_OF_A_LAYOUT`; none for the network that the config has already."""
    if name == "unet_tiny":
        return {}
    optimizer, lr_scheduler = (read_choice(group, values[group]["name"]) for group in ("optimizer", "lr_scheduler"))
    model = {**values["model"], **read_choice("model", name)}
    return dict(zip(_OF_A_LAYOUT, (model, optimizer["lr"], lr_scheduler["warmup_steps"]), strict=True))


def read_choice(group: str, name: str) -> dict[str, Any]:
    """A choice of the program's own configs with what it builds on."""
    own: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text("utf-8"))
    below = [base for base in own.pop("defaults", ()) if base != "_self_"]
    return {key: value for base in below for key, value in read_choice(group, base).items()} | own


def _max_steps(passes: float) -> int:
    """Of so many steps a pass, in thousands."""
    return min(max(1_000 * round(_PASSES * passes / 1_000), _FEWEST_STEPS), _MOST_STEPS)


def _value(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _with(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with some keys changed."""
    changed = dict(values)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        changed[section] = {**changed[section], name: value} if name else {**changed[section], **value}
    return changed
