"""A folder of images alone: what it decides of a run, what the run says before it starts, and that it stays so."""

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from helpers.cli import Cli
from PIL import Image

from ddpm_train.cli import data
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.optimizers import Cosine
from ddpm_train.config.program import compose_configs
from ddpm_train.config.train import Config, too_short
from ddpm_train.evaluation import bootstrap
from ddpm_train.models.unet import build_unet
from ddpm_train.system.compute import PLAIN
from ddpm_train.training import choices, decisions
from ddpm_train.training.forecast import activation_bytes
from ddpm_train.training.preflight import PROGRAM

UNCHECKED = replace(PROGRAM, preflight=lambda config: iter(()), trial=lambda config, values: iter(()))
WriteImages = Callable[[Path, int], Path]


def composed(*overrides: str) -> tuple[Config, dict[str, Any]]:
    ((config, values),) = compose_configs(UNCHECKED, overrides)
    return config, values


@pytest.fixture(scope="module")
def photographs(write_images: WriteImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty garments of 80 x 100 pixels, and two of 28 x 28."""
    folder = write_images(tmp_path_factory.mktemp("photographs") / "all", 42)
    for path in sorted(folder.rglob("*.png"))[2:]:
        with Image.open(path) as image:
            image.resize((80, 100)).save(path)
    return folder


def of(folder: Path, *overrides: str) -> tuple[Config, dict[str, Any]]:
    return composed("dataset=imagefolder", f"dataset.path={folder}", f"output_dir={folder.parent}/none", *overrides)


def test_photographs_decide_what_the_command_leaves_open(photographs: Path) -> None:
    config, values = of(photographs)
    assert config.dataset.resolution == (64, 64) and config.dataset.validation_fraction == round(4 / 42, 4)
    assert config.model.block_out_channels == (64, 128, 128, 192) and config.model.layers_per_block == 2
    assert (config.optimizer.lr, config.lr_scheduler.warmup_steps) == (1e-4, 500)
    assert (config.train.batch_size, config.train.max_steps) == (32, 10_000)  # of 38 images that are left
    assert (config.evaluation.interval(10_000), config.evaluation.first_step) == (1_250, 100)
    told = [choices.described(chosen, values) for chosen in config.dataset.chosen]
    keys = ["dataset.resolution=64", "dataset.validation_fraction=0.0952", "train.batch_size=32", "model=unet_small"]
    keys += ["train.max_steps=10000", "evaluation.first_step=100"]
    assert [line.split("  (")[0] for line in told] == keys and all(line.endswith(")") for line in told)


def test_small_images_take_the_small_network(write_images: WriteImages, tmp_path: Path) -> None:
    config, _ = of(write_images(tmp_path / "garments", 30))
    demo, _ = composed()
    assert config.dataset.resolution == (16, 16) and config.model == demo.model and config.optimizer == demo.optimizer
    assert config.dataset.validation_fraction == 0.1 and config.train.batch_size == 16


@pytest.mark.parametrize(
    ("num_images", "held_out", "layout", "max_steps"),
    [
        (9, 0, "unet_small", 10_000),
        (100, 10, "unet_small", 10_000),
        (1_000, 20, "unet_small", 10_000),
        (8_189, 163, "unet_64", 13_000),
        (60_000, 1_200, "unet_64", 92_000),
        (10**6, 20_000, "unet_64", 100_000),
    ],
)
def test_the_number_of_images_decides(num_images: int, held_out: int, layout: str, max_steps: int) -> None:
    _, values = composed("dataset=flowers102")
    left_open = [*decisions.OPEN, "model"]
    made, names = decisions.decided(values, left_open, num_images, [(480, 640)] * 10)
    assert round(made["dataset.validation_fraction"] * num_images) == held_out
    assert f"model={layout}" in names and made["train.max_steps"] == max_steps
    assert ("train.batch_size" in made) == (num_images < 65)


def test_how_often_a_run_evaluates_follows_from_its_length() -> None:
    """The default run does so four times, and so its report says whether going on helps."""
    config, _ = composed()
    assert config.train.max_steps == 1_400
    intervals = {1: None, 699: None, 700: 350, 1_000: 500, 1_400: 350, 10_007: 1_251, 100_000: 12_500}
    assert {steps: config.evaluation.interval(steps) for steps in intervals} == intervals
    assert replace(config.evaluation, every_steps=20).interval(10_000) == 20
    assert replace(config.evaluation, every_steps=None).interval(10_000) is None


def test_images_that_must_be_loaded_decide_as_those_of_a_folder(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = [Image.open(path) for path in sorted(photographs.rglob("*.png"))]
    rows = Dataset.from_dict({"image": pictures}, features=Features({"image": ImageFeature()}))
    rows.save_to_disk("saved/my cats")
    mine = ("dataset=hub", "dataset.path='saved/my cats'")
    expected, _ = of(photographs, "name=my_cats")
    config, values = composed(*mine)
    assert (config.name, config.dataset.chosen) == ("my_cats", ("name", *expected.dataset.chosen))
    for section in ("model", "optimizer", "lr_scheduler", "train", "evaluation"):
        assert getattr(config, section) == getattr(expected, section)
    for key in ("resolution", "validation_fraction"):
        assert getattr(config.dataset, key) == getattr(expected.dataset, key)
    # A run keeps its choices when there are other images, and one from before there were any keeps what it had.
    rows.select(range(2)).save_to_disk("saved/two")
    Path("outputs/my_cats").mkdir(parents=True)
    before = {**values, "dataset": {**values["dataset"], "chosen": [], "resolution": 32}}
    for record, resolution, chosen in ((values, 64, config.dataset.chosen[1:]), (before, 32, ())):
        Path("outputs/my_cats/config.yaml").write_text(yaml.safe_dump(record))
        again, _ = composed("dataset=hub", "dataset.path=saved/two", "name=my_cats")
        assert again.dataset.chosen == chosen and again.dataset.resolution == (resolution, resolution)
        assert again.train == config.train
    with pytest.raises(Mistakes, match=r"^train\.batch_size=0: must be greater than 0$"):  # before anything is loaded
        composed("dataset=hub", "dataset.path=owner/name", "train.batch_size=0")


def test_ddpm_data_looks_at_what_would_be_trained_on(photographs: Path) -> None:
    folder = f"dataset.path={photographs}"
    ((config, _),) = compose_configs(data.PROGRAM, ["dataset=imagefolder", folder])
    expected, _ = of(photographs)
    assert config.dataset is not None and config.dataset.chosen == ("dataset.resolution", "dataset.validation_fraction")
    assert config.dataset.resolution == expected.dataset.resolution
    assert config.dataset.validation_fraction == expected.dataset.validation_fraction
    assert data.output_folder(config) == Path("data") / photographs.name


def test_what_was_asked_for_stays(photographs: Path) -> None:
    config, _ = of(photographs, "dataset.resolution=[32,48]", "model=unet_64", "train.max_steps=500", "optimizer.lr=1")
    assert config.dataset.resolution == (32, 48) and config.model.block_out_channels == (128, 256, 256, 384)
    assert (config.train.max_steps, config.optimizer.lr, config.evaluation.first_step) == (500, 1.0, None)
    assert config.dataset.chosen == ("dataset.validation_fraction", "train.batch_size")
    demo, _ = composed()
    config, _ = of(photographs, "model.dropout=0.5", "train.epochs=1e4", "train.max_steps=null", "evaluation=full")
    assert config.model == replace(demo.model, dropout=0.5) and config.optimizer == demo.optimizer
    assert config.train.max_steps is None and config.evaluation.every_steps == 1_000


@pytest.mark.parametrize(
    ("dataset", "resolution", "layout", "why"),
    [
        ("fashion_tiny", 16, "unet_tiny", "at most 16 pixels"),
        ("fashion_tiny", 32, "unet_small", "fewer than 5,000 images, which a larger network learns by heart"),
        ("cifar10", 32, "unet_32", "at most 32 pixels; how many images there are was not known"),
        ("flowers102", 64, "unet_64", "more than 32 pixels; how many images there are was not known"),
        ("flowers102", 128, "unet_128", "more than 64 pixels; how many images there are was not known"),
        (
            "flowers102",
            36,
            "unet_tiny",
            "a side that is no multiple of 8; how many images there are was not known",
        ),
    ],
)
def test_a_layout_is_chosen_for_any_dataset(dataset: str, resolution: int, layout: str, why: str) -> None:
    """As if it had been named; and keys that are given win."""
    command = (f"dataset={dataset}", f"dataset.resolution={resolution}")
    named, _ = composed(*command, f"model={layout}")
    config, values = composed(*command, "model=auto")
    assert config.dataset.chosen == (f"model={layout}",) and choices.described(f"model={layout}", values).endswith(
        f"model={layout}  ({why})"
    )
    assert replace(config, dataset=named.dataset) == named
    given = ("model.dropout=0.3", "optimizer.lr=0.5", "model.resnet_time_scale_shift=scale_shift")
    config, _ = composed(*command, "model=auto", *given)
    layout_of_it = replace(named.model, dropout=0.3, resnet_time_scale_shift="scale_shift")
    assert config.model == layout_of_it and config.optimizer.lr == 0.5


def test_few_images_get_a_small_network_and_dropout(photographs: Path) -> None:
    """Where a folder decides on a run, it had the layout anyway; and a run that was begun keeps its own."""
    chosen, _ = of(photographs)
    config, values = of(photographs, "model=auto")
    assert config.model == replace(chosen.model, dropout=0.1) and config.train == chosen.train
    assert set(config.dataset.chosen) - set(chosen.dataset.chosen) == {"model.dropout"}
    assert choices.described("model.dropout", values) == "model.dropout=0.1  (fewer than 2,000 images)"
    larger = {**values["model"], **decisions.read_choice("model", "unet_64")}
    record = {**values, "model": larger, "dataset": {**values["dataset"], "chosen": ["model=unet_64"]}}
    (photographs.parent / "begun").mkdir()
    (photographs.parent / "begun/config.yaml").write_text(yaml.safe_dump(record))
    config, _ = of(photographs, "model=auto", f"output_dir={photographs.parent}/begun")
    assert config.model.block_out_channels == (128, 256, 256, 384) and "model=unet_64" in config.dataset.chosen


def test_a_layout_is_asked_for_once() -> None:
    with pytest.raises(Mistakes) as refused:
        composed("experiment=cifar10", "model=auto")
    assert refused.value.lines[0] == ("model=auto: an experiment has a network of its own; leave out one of the two")


def test_a_run_is_called_after_the_folder_of_its_images(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it has a name; and a run that was begun before goes on under the name that it has."""
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "my cats (2)").symlink_to(photographs)
    mine = ("dataset=imagefolder", f"dataset.path={folder}/")
    config, values = composed(*mine)
    assert (config.name, config.output_dir) == ("my_cats__2_", "outputs/my_cats__2_")
    assert choices.described(config.dataset.chosen[0], values).startswith("name=my_cats__2_  (")
    for given, name, output_dir in (
        ("name=cats", "cats", "outputs/cats"),
        ("output_dir=there", "default", "there"),
        ("experiment=cifar10", "cifar10", "outputs/cifar10"),
    ):
        config, _ = composed(*mine, given)
        assert (config.name, config.output_dir) == (name, output_dir) and "name" not in config.dataset.chosen
    for began, name in ((tmp_path / "other", "my_cats__2_"), (photographs, "default")):
        record = {**values, "dataset": {**values["dataset"], "path": str(began)}}
        (tmp_path / "outputs/default").mkdir(parents=True, exist_ok=True)
        (tmp_path / "outputs/default/config.yaml").write_text(yaml.safe_dump(record))
        config, _ = composed(*mine)
        assert (config.name, config.output_dir) == (name, f"outputs/{name}")


def test_other_datasets_and_experiments_are_as_they_were(photographs: Path) -> None:
    for overrides in ((), ("dataset=cifar10",)):
        config, values = composed(*overrides)
        assert {key: decisions.value_of(values, key) for key in decisions.OPEN} == decisions.OPEN | {
            "dataset.resolution": config.dataset.resolution[0]
        }
        assert config.dataset.chosen == () and config.model.block_out_channels == (32, 64, 64)
    whole, _ = composed("experiment=flowers102_64")
    config, _ = of(photographs, "experiment=flowers102_64")
    assert config.dataset.chosen == () and config.dataset.validation_fraction == whole.dataset.validation_fraction
    assert (config.model, config.train, config.evaluation) == (whole.model, whole.train, whole.evaluation)


def test_a_run_keeps_its_choices_and_tells_what_it_takes(cli: Cli, write_images: WriteImages, tmp_path: Path) -> None:
    """Also when images were added, which is told as before; and its few held-out images are no reason to fail."""
    folder = write_images(cli.folder / "photos", 40)
    command = ("dataset=imagefolder", "dataset.path=photos", "dataset.channels=1", "name=photos", "tracker=none")
    said = cli.train(
        *(*command, "dataset.resolution=32", "lr_scheduler.warmup_steps=500", "train.channels_last=auto"),
        "evaluation.first_step=2",
    )
    assert [path.stem for path in sorted(cli.output("photos").glob("samples/*"))] == ["step_00000002", "step_00000006"]
    assert "  evaluates  at step 2 and at the end  (evaluation.every_steps)" in said
    assert (
        "  chosen     dataset.validation_fraction=0.1  (held out: 2 %, but at least 10 images, and at most 10%)" in said
    )
    assert "  takes      about " in said and " on this machine, about " in said and " GB" in said
    lines = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: 40 of the 40 images that were looked at are smaller than 32x32 and are scaled up, which blurs them; "
        "give a smaller dataset.resolution=…",
        "warning: lr_scheduler.warmup_steps=500 is not shorter than the run of 6 steps: the learning rate ends at "
        "1.2e-05 and never reaches 0.001",
        "warning: 6 steps of 16 images will show noise, or spots of colour; give a larger train.max_steps=…",
    ]
    assert "  equal " not in said and "  look at it ddpm-data dataset=imagefolder dataset.path=photos " in said
    kept = yaml.safe_load((cli.output("photos") / "config.yaml").read_text())["dataset"]
    assert (kept["validation_fraction"], kept["chosen"]) == (0.1, ["dataset.validation_fraction"])

    said = cli.evaluate("pipeline=outputs/photos", "num_images=10", "num_inference_steps=2", "metrics=[kid,copy_rate]")
    assert "left out: copy_rate needs at least 10 held-out images, and there are 4" in said
    assert "kid_efficientnet_lite0_n10" in said
    said = cli.evaluate("pipeline=outputs/photos", "num_images=10", "metrics=[copy_rate]", expect=2)
    assert said == (
        "error: pipeline=outputs/photos: 4 held-out images for copy_rate; leave that out, or train a run that holds "
        "out at least 10\n"
    )

    write_images(tmp_path / "more", 200).rename(folder / "more")
    again = (*command, "dataset.resolution=32", "lr_scheduler.warmup_steps=500", "train.max_steps=7")
    said = cli.train(*again, expect=2)
    assert "dataset content" in said and "validation_fraction" not in said
    said = cli.train(*again, "allow_change=[dataset content]")
    (equal,) = re.findall(r"  equal      (\d+) of these images have the same pixels as another\n", said)
    (shared,) = re.findall(r"warning: (\d+) of 24 held-out images have the same pixels as one that is trained on", said)
    (look,) = re.findall(r"  look at it (ddpm-data .*)\n", said)
    shown = cli.python("-m", "ddpm_train.cli.data", *shlex.split(look)[1:])
    assert int(equal) >= 80 and f"{equal} images in " in shown and f"; {shared} of them held out" in shown
    assert "216 to train on, 24 held out" in shown
    kept = yaml.safe_load((cli.output("photos") / "config.yaml").read_text())["dataset"]
    assert kept["validation_fraction"] == 0.1  # of 240 images it would be another


def test_activations_are_those_that_a_step_keeps() -> None:
    config, _ = composed()
    unet, kept = build_unet(config.model, config.dataset, config.noise_scheduler), {}
    own = {parameter.data_ptr() for parameter in unet.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(torch.zeros(1, 1, 16, 16), torch.zeros(1, dtype=torch.long))
    real = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    assert activation_bytes(config, PLAIN) == pytest.approx(real, rel=0.1)
    assert activation_bytes(config, replace(PLAIN, mixed_precision="bf16")) == activation_bytes(config, PLAIN) // 2


def test_too_short_is_told_by_steps_and_by_images() -> None:
    assert too_short(499, 64) and too_short(1_400, 4) and not too_short(700, 64)
    assert Cosine("cosine", 500).at(59, 1e-4, 60) == pytest.approx(60 / 501 * 1e-4)


def test_an_interval_holds_its_value() -> None:
    for hits, value in ((0, 0.0), (20, 1.0)):
        low, high = bootstrap.share(value, hits, 20, bootstrap.new_rng())
        assert low <= value <= high and high - low > 0.05
