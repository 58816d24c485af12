"""What the images decide of a run where its command leaves it open: `dataset.chosen=auto`, and of the network alone
`model=auto`. Imports no torch.

A folder decides before the config is checked. Images that must be loaded decide after that: a mistake must not wait for
a download. All of it follows from the command and the images alone, so that it is the same on any machine. A run that
was begun has its choices in its record, and keeps them when images are added.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from ddpm_train.config.data import DataConfig
from ddpm_train.config.foreign import BadFile
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.naming import named_after_images
from ddpm_train.config.parts import CONF
from ddpm_train.config.train import Config
from ddpm_train.models import pretrained
from ddpm_train.runs.folder import CONFIG, read_config
from ddpm_train.system import launch
from ddpm_train.system.files import expanded

# What the images may decide, as the program's configs have it. What is otherwise was asked for.
OPEN: dict[str, Any] = {
    "dataset.resolution": 64,
    "dataset.validation_fraction": 0.02,
    "train.batch_size": 64,
    "train.max_steps": 1400,
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
# A first picture within minutes also on a CPU. A shorter run has one at its end.
_FIRST_EVALUATION, _EVALUATED_FROM = 100, 1_000
# How many images there are, and (height, width) of some of them.
_Found = tuple[int, Sequence[tuple[int, int]]]

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
    "name": "after the images",
    "dataset.resolution": f"at most {_MOST_ENLARGED:.0%} of the images are smaller, and 64 is the most",
    "dataset.validation_fraction": f"held out: 2 %, at least {_FEWEST_HELD_OUT} images, at most {_MOST_HELD_OUT:.0%}",
    "train.batch_size": "no more than there are images",
    "model.dropout": f"fewer than {_VERY_FEW_IMAGES:,} images",
    "train.max_steps": f"{_PASSES} passes over the images, within {_FEWEST_STEPS:,} and {_MOST_STEPS:,} steps",
    "evaluation.every_steps": "an eighth of the run",  # in the records of runs from before `auto`
    "evaluation.first_step": "a picture within minutes",
}


def resolve(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A composed config with a name after its images, the choices that need nothing to be loaded, and the network of
    `model.pretrained`. Images that must be loaded first choose in `settle`."""
    dataset = values.get("dataset")
    if _asks_for_layout(values, overrides) and any(_key(text) == "experiment" for text in overrides):
        return values, ["model=auto: an experiment has a network of its own; leave out one of the two"]
    if isinstance(dataset, dict):
        is_open, is_here = dataset.get("chosen") == "auto", dataset.get("source") == "folder"
        if is_open:
            values = {**values, **_named(values, overrides)}
        if is_here if is_open else _asks_for_layout(values, overrides):
            # The checks that follow say what is wrong.
            passed = (Mistakes, OSError, KeyError, TypeError, ValueError)
            values = _with_choices(values, overrides, _images, passed)
    if isinstance(model := values.get("model"), dict):
        values = {**values, "model": {key: value for key, value in model.items() if key != "layout"}}
    return pretrained.resolve(values, overrides)


def settle(config: Config | DataConfig, values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The same values with the choices of images that must be loaded first: all but those of a folder.

    Args:
        config: the values, checked and typed.

    Raises:
        Mistakes: the dataset cannot be had.
    """
    dataset = config.dataset
    if dataset is None or dataset.chosen != "auto" or launch.hands_over():
        return values
    from ddpm_train.data.sizes import image_sizes  # both take their time to import
    from ddpm_train.data.sources import open_source

    def images(section: Mapping[str, Any]) -> _Found:
        source = open_source(dataset, dataset.split)
        return len(source), image_sizes(source, dataset.max_pixels)

    values, lines = pretrained.resolve(_with_choices(values, overrides, images), overrides)
    if lines:
        raise Mistakes(*lines)
    return values


def _asks_for_layout(values: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Whether the command, or a config of the user's, says `model=auto`."""
    return _value(values, "model.layout") == "auto" or "model=auto" in overrides


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def described(chosen: str, values: Mapping[str, Any]) -> str:
    """An entry of `dataset.chosen` for a person: the key that changes it, its value, and why."""
    key, _, name = chosen.partition("=")
    if key != "model":
        return f"{key}={name or _value(values, key)}  ({_WHY[key]})"
    settled = any(not each.startswith("model") for each in values["dataset"]["chosen"])
    is_known = settled or values["dataset"]["source"] in _COUNTED
    unknown = "" if is_known else "; how many images there are was not known"
    return f"model={name}  ({_WHY_LAYOUT[name]}{unknown})"


def is_chosen(key: str, values: Mapping[str, Any]) -> bool:
    """Whether the images decided on this key, or on which keys they do."""
    names = {name.partition("=")[0] for name in values["dataset"]["chosen"]}
    of_layout = key in _OF_A_LAYOUT or key.startswith("model.")
    return key in names or key == "dataset.chosen" or (of_layout and "model" in names)


def _named(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The name after the images, and the run's folder by it, where nothing else names them."""
    given = set(map(_key, overrides))
    path, source = str(values["dataset"].get("path")), values["dataset"].get("source")
    name = named_after_images(path)
    named = {"name": name, "output_dir": f"outputs/{name}"}
    is_named = given & named.keys() or {key: values.get(key) for key in named} not in (_UNNAMED, named)
    if is_named or not name or source not in ("folder", "hub") or path == "???":
        return {}
    with suppress(OSError, BadFile, KeyError, TypeError):
        began = read_config(Path(_UNNAMED["output_dir"], CONFIG))["dataset"]
        if began["source"] == source and expanded(began["path"]).resolve() == expanded(path).resolve():
            return {}  # it has its name from before runs were called after their images
    return named


def _with_choices(
    values: dict[str, Any],
    overrides: Sequence[str],
    images: Callable[[Mapping[str, Any]], _Found],
    passed: tuple[type[Exception], ...] = (),
) -> dict[str, Any]:
    """The values with what the run chose when it began, and with what its images decide of the rest.

    Args:
        images: those of a section `dataset`.
        passed: errors that are passed over: then the images decide nothing.
    """
    given, is_open = set(map(_key, overrides)), values["dataset"].get("chosen") == "auto"
    left_open, chosen = _left_open(values, overrides), ["name"] if is_open and _named(values, overrides) else []
    began = pretrained.recorded_config(values) or {}

    def take(made: dict[str, Any], names: Sequence[str]) -> None:
        """But for keys of a layout that are given."""
        nonlocal values, chosen
        if "model" in made:
            made["model"] = {key: value for key, value in made["model"].items() if f"model.{key}" not in given}
        values, chosen = _with(values, made), [*chosen, *names]

    if isinstance(began.get("dataset"), dict):
        kept, names = _as_recorded(began, left_open, all_open=is_open)
        left_open = [key for key in left_open if key not in kept]  # what a command before this one gave
        take(kept, names)
    with suppress(*passed):
        take(*_decided(values, left_open, *images(values["dataset"])))
    return _with(values, {"dataset.chosen": chosen})


def _images(dataset: Mapping[str, Any]) -> _Found:
    """Those of a folder, or of the package. Where they are not here yet, many of unknown size."""
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
    if "model" not in values:  # it is a config of `ddpm-data`
        layout = []
    elif _asks_for_layout(values, overrides):
        layout = [key for key in (*_OF_A_LAYOUT, "model.dropout") if key == "model" or key not in given]
    elif "experiment" in given or any(key.partition(".")[0] == "model" for key in given):
        layout = []
    else:
        layout = [key for key in _OF_A_LAYOUT if key not in given]
    if "experiment" in given or _value(values, "dataset.chosen") != "auto":
        return layout
    return [*(key for key, default in OPEN.items() if key not in given and _value(values, key) == default), *layout]


def _as_recorded(
    began: Mapping[str, Any], left_open: Sequence[str], *, all_open: bool
) -> tuple[dict[str, Any], list[str]]:
    """What was chosen when the run began, by key, and the entries of `dataset.chosen` for that.

    Args:
        all_open: the images may decide all that is open. A run from before they did keeps all of that.
    """
    chosen = began["dataset"].get("chosen")
    names = [name for name in chosen or () if name.partition("=")[0] in left_open]
    keeps_all = chosen is None or (all_open and not chosen)
    kept = {*left_open} if keeps_all else {name.partition("=")[0] for name in names}
    kept |= {*_OF_A_LAYOUT} if "model" in kept else set()
    return {key: _value(began, key) for key in left_open if key in kept}, names


def _decided(
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
            return _value(values, key)
        made[key] = value
        names.append(key)
        return value

    resolution = decide("dataset.resolution", _resolution(sizes))
    fraction = _value(values, "dataset.validation_fraction")
    if _value(values, "dataset.validation_split") is None:
        fraction = decide("dataset.validation_fraction", _validation_fraction(num_images))
    if "train" not in values:  # it is a config of `ddpm-data`
        return made, names
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
