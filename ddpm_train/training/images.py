"""The images of a run: the same in every process, and enough of them for what is asked."""

from dataclasses import replace
from typing import Any

from ddpm_train.config.metrics import FEWEST_IMAGES
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.objective import criterion
from ddpm_train.config.schema import dotted_values
from ddpm_train.config.train import Config
from ddpm_train.data.loader import Data, DataIdentity, open_data
from ddpm_train.system.console import Console
from ddpm_train.system.ranks import everywhere, require_same
from ddpm_train.training.choices import is_chosen


def open_same_data(config: Config, values: dict[str, Any], console: Console) -> tuple[Config, dict[str, Any], Data]:
    """The same dataset on all processes, and the config, typed and as plain values, with what was found of the dataset:
    its commit, and what its numbers mean."""
    data = everywhere(lambda: _open_data(config, console))
    require_same(f"dataset.path={config.dataset.path}", data.identity(), _other_images)
    chosen = {key: value for key, value in dotted_values(values) if is_chosen(key, values)}
    require_same("dataset.chosen", chosen, lambda *_: "copy config.yaml of the run's folder to every machine")
    # What was asked for, a branch or nothing, may mean other images tomorrow.
    found: dict[str, Any] = {} if data.commit is None else {"revision": data.commit}
    if data.values is not None:  # likewise
        found |= {"dtype": data.values.dtype, "value_range": (data.values.low, data.values.high)}
    config = replace(config, dataset=replace(config.dataset, **found))
    written = {key: [[*each] for each in value] if key == "value_range" else value for key, value in found.items()}
    return config, {**values, "dataset": {**values["dataset"], **written}}, data


def _open_data(config: Config, console: Console) -> Data:
    """Raises `Mistakes` also if there are too few images, or none held out where the run is to be judged by them."""
    data = open_data(config.dataset, progress=console.live)
    if len(data.train) < config.train.batch_size:
        raise Mistakes(
            f"train.batch_size={config.train.batch_size}: more than the {len(data.train)} training images; "
            f"use at most {len(data.train)}"
        )
    chosen, needed = criterion(config), config.objective != "auto" or config.train.patience is not None
    if data.validation is None and needed and chosen is not None and chosen.name == "held_out_loss":
        raise Mistakes(
            f"dataset.validation_fraction={config.dataset.validation_fraction}: this holds out none of "
            f"{len(data.train)} images, and the run is to be judged by the held-out loss; raise it"
        )
    held_out = 0 if data.validation is None else len(data.validation)
    if config.train.stop_before_copying and held_out < FEWEST_IMAGES:
        raise Mistakes(
            f"train.stop_before_copying=true: {held_out} held-out images are too few to show when copying begins; hold "
            f"out at least {FEWEST_IMAGES}"
        )
    return data


def _other_images(here: DataIdentity, there: DataIdentity) -> str:
    counts = [sum(count for _, count in each) for each in (here, there)]
    told = (
        f"{counts[1]:,} images, not {counts[0]:,}"
        if counts[0] != counts[1]
        else "the same number of images, but other ones"
    )
    return f"{told}; every machine needs the same dataset"
