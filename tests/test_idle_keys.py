"""A key that nothing follows from is a mistake, if the user has changed it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.cli import Cli
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import Program, compose_configs
from ddpm_train.evaluation.preflight import PROGRAM as EVALUATE
from ddpm_train.sampling.preflight import PROGRAM as SAMPLE
from ddpm_train.training.preflight import PROGRAM as TRAIN

ALL = {"split": "test", "config_name": "small", "revision": "v1", "image_column": "picture"}
INSTEAD = "give the path of that part instead"


def told(program: Program[Any], overrides: Sequence[str]) -> list[str]:
    """The lines that refuse a command before its images are loaded; none: it is taken."""
    try:
        compose_configs(replace(program, settle=lambda config, values, overrides: values), overrides)
    except Mistakes as mistakes:
        return list(mistakes.lines)
    return []


@pytest.fixture
def sources(tmp_path: Path, garments: list[Image.Image]) -> dict[str, str]:
    """Of each kind, the keys that choose it."""
    rows = datasets.Dataset.from_dict({"picture": garments[:4]}).cast_column("picture", datasets.Image())
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "dict"))
    rows.to_parquet(str(tmp_path / "one.parquet"))
    rows.to_parquet(str(tmp_path / "clone/data/test-00000-of-00001.parquet"))
    return {"folder": "imagefolder", **dict.fromkeys(("saved", "dict", "one.parquet", "clone"), "hub")}


# Of each source what it is called, and the keys that it has no use for.
UNUSED = {
    "folder": ("a folder of images", ("split", "config_name", "revision", "image_column")),
    "saved": ("a dataset that was saved without splits", ("split", "config_name", "revision")),
    "one.parquet": ("a parquet file", ("split", "config_name", "revision")),
    "dict": ("a dataset that was saved to the disk", ("config_name", "revision")),
    "clone": ("a local folder", ("revision",)),
}


@pytest.mark.parametrize("place", UNUSED)
def test_keys_of_another_kind_of_dataset(place: str, tmp_path: Path, sources: dict[str, str]) -> None:
    (tmp_path / "folder").mkdir()
    what, unused = UNUSED[place]
    chosen = (f"dataset={sources[place]}", f"dataset.path={tmp_path / place}")
    lines = [
        f"dataset.{key}={ALL[key]}: means nothing for {what}; {INSTEAD if key == 'split' else 'leave it out'}"
        for key in unused
    ]
    assert told(TRAIN, [*chosen, *(f"dataset.{key}={value}" for key, value in ALL.items())]) == lines
    assert told(TRAIN, [*chosen, "dataset.split=train", "dataset.revision=null"]) == []
    evaluating = told(EVALUATE, [f"pipeline={tmp_path}", *chosen, f"dataset.{unused[0]}=test"])
    assert len(evaluating) == 1 and evaluating[0].startswith(f"dataset.{unused[0]}=test: means nothing for {what}; ")


def test_what_the_command_line_says(cli: Cli, write_images: Callable[[Path, int], Path]) -> None:
    write_images(cli.folder / "cats", 4)
    images = ("dataset=imagefolder", "dataset.path=cats", "dataset.split=test")
    assert cli.train(*images, expect=2) == (
        f"error: dataset.split=test: means nothing for a folder of images; {INSTEAD}\n"
    )


def test_keys_of_other_datasets_of_ours() -> None:
    assert told(TRAIN, ["dataset.image_column=img", "dataset.validation_fraction=0"]) == [
        "dataset.image_column=img: means nothing for the images of this package; leave it out",
        "dataset.validation_fraction=0.0: means nothing where dataset.validation_split=validation is held out; "
        "leave it out, or add dataset.validation_split=null",
    ]
    assert told(TRAIN, ["dataset.validation_split=null", "dataset.validation_fraction=0.1"]) == []
    assert (
        told(TRAIN, ["dataset=hub", "dataset.path=a/b", *(f"dataset.{key}={value}" for key, value in ALL.items())])
        == []
    )


# What does nothing, the keys with which it does, and why not without.
SAMPLING = {
    "strength=0.5": ("from_image=picture.png", "without from_image=PATH"),
    "inpaint_repeats=2": ("from_image=picture.png inpaint=picture.png sampler=ddim", "without inpaint=PATH"),
    "inpaint_jump_steps=2": ("from_image=picture.png inpaint=picture.png sampler=ddim", "without inpaint=PATH"),
    "trajectory_every_steps=2": ("trajectory=true", "without trajectory=true"),
    "interpolate_seed=7": ("interpolate=true", "without interpolate=true"),
    "interpolate_frames=7": ("interpolate=true", "without interpolate=true"),
    "animation=webp": ("interpolate=true", "without trajectory=true or interpolate=true"),
}


def test_keys_of_other_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garments: list[Image.Image]) -> None:
    monkeypatch.chdir(tmp_path)
    garments[0].save("picture.png")
    model = "pipeline=."
    for idle, (needed, why) in SAMPLING.items():
        assert told(SAMPLE, [model, idle]) == [f"{idle}: does nothing {why}; leave it out"]
        assert told(SAMPLE, [model, idle, *needed.split()]) == []
        key, _, _ = idle.partition("=")
        ((config, _),) = compose_configs(SAMPLE, [model])
        unchanged = getattr(config, key)
        assert told(SAMPLE, [model, f"{key}={'null' if unchanged is None else unchanged}"]) == []
    pictures = ["from_image=picture.png", "inpaint=picture.png", "sampler=ddim"]
    assert told(SAMPLE, [model, *pictures, "strength=0.5"]) == [
        "strength=0.5: does nothing with inpaint=picture.png; leave it out"
    ]
    assert told(SAMPLE, [model, "trajectory=true", "format=npz"]) == [
        "format=npz: does nothing with trajectory=true; leave it out"
    ]
    compared = ["compare.samplers=[ddim]", "compare.steps=[5]"]
    assert told(SAMPLE, [model, *compared, "num_inference_steps=10"]) == [
        "num_inference_steps=10: does nothing with compare.steps=[5]; leave it out"
    ]


def test_keys_of_other_models(tmp_path: Path, trained: Path, write_images: Callable[[Path, int], Path]) -> None:
    for program in (SAMPLE, EVALUATE):
        assert told(program, [f"pipeline={trained}", "revision=v1"]) == [
            f"revision=v1: does nothing with pipeline={trained}, which is no repository; leave it out"
        ]
    assert told(EVALUATE, [f"pipeline={trained}", "bound_timesteps=5"]) == [
        "bound_timesteps=5: does nothing without bits_per_dim among metrics; leave it out"
    ]
    folder = write_images(tmp_path / "made", 12)
    given = ("weights=ema", "num_images=12", "num_inference_steps=5", "mixed_precision=bf16", "compile=true")
    lines = [f"{key}: does nothing where {folder} is a folder of images; leave it out" for key in given]
    assert told(EVALUATE, [f"pipeline={folder}", "dataset=fashion_tiny", *given]) == lines
