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

from ddpm_train.config.data import DataConfig
from ddpm_train.config.foreign import BadFile
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.naming import named_after_images
from ddpm_train.config.train import Config
from ddpm_train.models import pretrained
from ddpm_train.runs.folder import CONFIG, read_config
from ddpm_train.system import launch
from ddpm_train.system.files import expanded
from ddpm_train.training.decisions import (
    FEW_IMAGES,
    OF_A_LAYOUT,
    OPEN,
    WHY,
    decided,
    value_of,
    why_layout,
    with_changes,
)

# What a run is called that nothing names, and its folder.
_UNNAMED = {"name": "default", "output_dir": "outputs/default"}

# How many images there are, and (height, width) of some of them.
_Found = tuple[int, Sequence[tuple[int, int]]]
# Sources whose images are here before a run begins.
_COUNTED = ("folder", "embedded")


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
    return value_of(values, "model.layout") == "auto" or "model=auto" in overrides


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def described(chosen: str, values: Mapping[str, Any]) -> str:
    """An entry of `dataset.chosen` for a person: the key that changes it, its value, and why."""
    key, _, name = chosen.partition("=")
    if key != "model":
        return f"{key}={name or value_of(values, key)}  ({WHY[key]})"
    settled = any(not each.startswith("model") for each in values["dataset"]["chosen"])
    is_known = settled or values["dataset"]["source"] in _COUNTED
    unknown = "" if is_known else "; how many images there are was not known"
    why = why_layout(name, value_of(values, "dataset.resolution"))
    return f"model={name}  ({why}{unknown})"


def is_chosen(key: str, values: Mapping[str, Any]) -> bool:
    """Whether the images decided on this key, or on which keys they do."""
    names = {name.partition("=")[0] for name in values["dataset"]["chosen"]}
    of_layout = key in OF_A_LAYOUT or key.startswith("model.")
    return key in names or key == "dataset.chosen" or (of_layout and "model" in names)


def _named(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The name after the images, and the run's folder by it, where nothing else names them."""
    given = set(map(_key, overrides))
    path, source = str(values["dataset"].get("path")), values["dataset"].get("source")
    name = named_after_images(path)
    named = {"name": name, "output_dir": f"outputs/{name}"}
    is_named = given & named.keys() or {key: values.get(key) for key in named} not in (_UNNAMED, named)
    if is_named or not name or source not in ("folder", "hub", "arrays") or path == "???":
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
        values, chosen = with_changes(values, made), [*chosen, *names]

    if isinstance(began.get("dataset"), dict):
        kept, names = _as_recorded(began, left_open, all_open=is_open)
        left_open = [key for key in left_open if key not in kept]  # what a command before this one gave
        take(kept, names)
    with suppress(*passed):
        take(*decided(values, left_open, *images(values["dataset"])))
    return with_changes(values, {"dataset.chosen": chosen})


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
    return FEW_IMAGES, ()


def _left_open(values: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The keys on which neither the command nor a config of the user's says anything. An experiment says all."""
    given = set(map(_key, overrides))
    if "model" not in values:  # it is a config of `ddpm-data`
        layout = []
    elif _asks_for_layout(values, overrides):
        layout = [key for key in (*OF_A_LAYOUT, "model.dropout") if key == "model" or key not in given]
    elif "experiment" in given or any(key.partition(".")[0] == "model" for key in given):
        layout = []
    else:
        layout = [key for key in OF_A_LAYOUT if key not in given]
    if "experiment" in given or value_of(values, "dataset.chosen") != "auto":
        return layout
    return [*(key for key, default in OPEN.items() if key not in given and value_of(values, key) == default), *layout]


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
    kept |= {*OF_A_LAYOUT} if "model" in kept else set()
    return {key: value_of(began, key) for key in left_open if key in kept}, names
