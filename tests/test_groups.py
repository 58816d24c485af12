"""Which images are used and which are held out: `dataset.group_by` and `dataset.drop_duplicates`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from helpers.cli import Cli
from helpers.images import dataset_config
from PIL import Image

from ddpm_train.config.dataset import DATASET_SOURCES
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.decode import Decoder
from ddpm_train.data.images import Images
from ddpm_train.data.loader import Data, open_data
from ddpm_train.data.paths import unused_mistakes
from ddpm_train.data.sources import FolderSource
from ddpm_train.evaluation.image_folder import open_images

NUM_PATIENTS, NUM_SLICES = 20, 5


def noise(seed: int, **size: int) -> Image.Image:
    side = size.get("side", 8)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """Slices of patients, in two folders that do not follow them: odd and even ones."""
    folder = tmp_path / "data"
    for half in ("even", "odd"):
        (folder / half).mkdir(parents=True)
    for number in range(NUM_PATIENTS * NUM_SLICES):
        patient, half = number // NUM_SLICES, ("even", "odd")[number % 2]
        noise(number).save(folder / half / f"p{patient:02}_{number}.png")
    return folder


def opened(path: Path | str, source: str = "folder", **values: object) -> Data:
    cache = str(Path(path).parent / "cache")
    settings = {"resolution": 8, "validation_fraction": 0.1, "num_workers": 0, "cache_dir": cache, **values}
    return open_data(dataset_config(source, path, **settings), progress=False)


def names(images: Images | None) -> list[str]:
    assert images is not None
    return [images.source.name(int(item)) for item in images.prepared.usable[images.rows]]


def refused(path: Path | str, source: str = "folder", **values: object) -> str:
    with pytest.raises(Mistakes) as raised:
        opened(path, source, **values)
    (line,) = raised.value.lines
    return line


def test_what_a_regular_expression_groups_is_held_out_whole(slices: Path) -> None:
    data = opened(slices, group_by=r"(p\d+)_")
    patients = [{name.split("/")[1][:3] for name in names(each)} for each in (data.train, data.validation)]
    assert [len(each) for each in patients] == [18, 2] and not patients[0] & patients[1]
    assert (len(data.train), len(data.validation or ())) == (90, 10)
    assert data.selection.notes == {"groups": r"2 of 20 held out (dataset.group_by=(p\d+)_)"}
    assert not list(data.warnings())
    # Without a group the whole match names one, and the first group may be absent.
    for same in (r"p\d+", r"(p0\d)_|p1\d"):
        assert names(opened(slices, group_by=same).validation) == names(data.validation)
    without_cache = opened(slices, group_by=r"p\d+", cache="none")
    assert without_cache.identity() == data.identity() and names(without_cache.validation) == names(data.validation)
    assert opened(slices).identity() != data.identity() and opened(slices).selection.changed is None


def test_a_group_of_each_image_changes_nothing(slices: Path) -> None:
    data = opened(slices, group_by=".*", drop_duplicates=True)
    assert data.selection.changed is None and data.identity() == opened(slices).identity()


def test_folders_are_groups_and_the_smallest_is_held_out_where_none_fits(slices: Path) -> None:
    (slices / "odd/p00_1.png").rename(slices / "even/p00_1.png")
    data = opened(slices, group_by="folder")
    assert {name.split("/")[0] for name in names(data.validation)} == {"odd"} and len(data.train) == 51
    assert data.selection.warnings == [
        "dataset.validation_fraction=0.1: no group of dataset.group_by=folder has so few images, so the smallest is "
        "held out, 49 of 100 images"
    ]
    assert refused(slices / "odd", group_by="folder") == (
        "dataset.group_by=folder: all 49 images are one group, of which none can be held out; group them by something "
        "else, or leave it out"
    )


def test_frames_of_several_files_are_one_group(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for film in range(6):
        (folder / f"film{film}").mkdir(parents=True)
        for shot in range(2):
            first, *others = [noise(100 * film + 10 * shot + frame) for frame in range(3)]
            first.save(folder / f"film{film}/{shot}.webp", save_all=True, append_images=others, lossless=True)
    data = opened(folder, frames="all", group_by="folder", validation_fraction=0.2)
    held_out = names(data.validation)
    assert len(held_out) == 6 and len({name.split("/")[0] for name in held_out}) == 1 and len(data.train) == 30


def table(path: Path, patients: Sequence[Any]) -> Path:
    rows = {"image": [noise(number) for number in range(len(patients))], "patient": patients}
    rows["tags"] = [["a"]] * len(patients)
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(str(path))
    return path


def test_a_column_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_datasets")
    patients = [number % 20 for number in range(100)]
    path = table(tmp_path / "rows.parquet", patients)
    data = opened(path, "hub", group_by="patient")
    assert data.validation is not None
    held_out = {patients[row] for row in data.validation.rows}
    assert len(held_out) == 2 and [row for row in range(100) if patients[row] in held_out] == [*data.validation.rows]
    assert refused(path, "hub", group_by="patients") == (
        "dataset.group_by=patients: no such column; did you mean 'patient'? (one of image, patient, tags)"
    )
    assert refused(path, "hub", group_by="tags").endswith("; choose a column of texts or numbers")
    some = table(tmp_path / "some.parquet", ["a", None, "b", None])
    assert refused(some, "hub", group_by="patient") == "dataset.group_by=patient: empty in 2 of 4 rows; fill them"


@dataclass(frozen=True)
class _Grouped:
    """A source of one's own."""

    inner: FolderSource
    commit = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def groups(self, by: str) -> list[int]:
        return [number % int(by) for number in range(len(self))]


@dataclass(frozen=True)
class _Ungrouped:
    inner: FolderSource
    commit = None

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        return self.inner.load(index, decoder)


def test_a_source_of_ones_own_may_give_groups(slices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"grouped": _Grouped, "ungrouped": _Ungrouped}
    for name, kind in own.items():
        entries = {**DATASET_SOURCES, name: lambda config, split, kind=kind: kind(FolderSource(Path(config.path)))}
        monkeypatch.setattr(DATASET_SOURCES, "_entries", entries)
        if name == "grouped":
            data = opened(slices, name, group_by="10")
            assert len({row % 10 for row in data.validation.rows}) == 1 and len(data.validation) == 10
        else:
            assert len(opened(slices, name).train) == 90
            assert refused(slices, name, group_by="10") == (
                "dataset.group_by=10: _Ungrouped has no method groups that says which images belong together; write "
                "one, or leave it out"
            )


def test_wrong_keys(slices: Path) -> None:
    (slices / "odd/cover.png").write_bytes((slices / "odd/p00_1.png").read_bytes())
    assert refused(slices, group_by=r"(p\d+)_") == (
        r"dataset.group_by=(p\d+)_: matches 100 of 101 images, and not odd/cover.png; give folder, or a regular "
        "expression that matches the path of every image"
    )
    assert refused(slices, group_by="floder").startswith(
        "dataset.group_by=floder: matches 0 of 101 images, and not even/p00_0.png, even/p00_2.png"
    )
    assert not (slices.parent / "cache").exists()  # nothing slow has begun
    (line,) = dataset_config("folder", slices, group_by="(p").mistakes()
    assert line.startswith("dataset.group_by=(p: no regular expression (missing )")
    idle = {"embedded": {"path": "fashion_tiny"}, "hub": {"path": "o/n", "validation_split": "test"}}
    for source, values in {**idle, "folder": {"path": slices, "validation_fraction": 0}}.items():
        (line,) = unused_mistakes(dataset_config(source, group_by="label", **values))
        assert line.startswith("dataset.group_by=label: ") and "; leave it out" in line


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    """40 images, and 30 of them again: the same pixels in another file format."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(40):
        noise(number).save(folder / f"a{number:02}.png")
    for number in range(30):
        noise(number).save(folder / f"b{number:02}.bmp")
    return folder


def shared(data: Data) -> int:
    assert data.validation is not None
    sets = (data.train, data.validation)
    train, held_out = ({image.numpy().tobytes() for image in each.load(range(len(each)))} for each in sets)
    return len(train & held_out)


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_of_duplicates_the_first_is_kept(cache: str, doubled: Path) -> None:
    data = opened(doubled, cache=cache)
    count = shared(data)
    assert count and data.selection.warnings == [
        f"{count} of 7 held-out images have the same pixels as one that is trained on, so they say nothing about new "
        "images; dataset.drop_duplicates=true keeps one of each"
    ]
    alone = opened(doubled, cache=cache, drop_duplicates=True)
    assert (len(alone.train), len(alone.validation or ())) == (36, 4)
    assert sorted(names(alone.train) + names(alone.validation)) == [f"a{number:02}.png" for number in range(40)]
    assert not list(alone.warnings()) and shared(alone) == 0
    assert alone.selection.notes == {"duplicates": "30 images left out, with the same pixels as another"}
    assert alone.content == data.content and alone.identity() != data.identity()


def test_images_of_other_sizes_are_no_duplicates(tmp_path: Path) -> None:
    """Random crops keep what lies beside the crop: the same bytes may be of another shape."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, size in (("a", (16, 8)), ("b", (8, 16)), ("c", (16, 8))):
        Image.new("RGB", size, (9, 9, 9)).save(folder / f"{name}.png")
    data = opened(folder, crop="random", validation_fraction=0, drop_duplicates=True)
    assert names(data.train) == ["a.png", "b.png"]


def test_what_is_held_out_by_name_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_datasets")
    parts = {"train": [*range(20), 3], "test": [*range(15, 25), 24]}
    for split, seeds in parts.items():
        images = datasets.Dataset.from_dict({"image": [noise(seed) for seed in seeds]})
        parts[split] = images.cast_column("image", datasets.Image())
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    split = {"validation_split": "test", "validation_fraction": 0.02}
    (line,) = opened(tmp_path / "saved", "hub", **split).selection.warnings
    assert line.startswith("5 of 11 held-out images have the same pixels as one that is trained on")
    alone = opened(tmp_path / "saved", "hub", drop_duplicates=True, **split)
    assert alone.train.rows.tolist() == [*range(15)] and alone.validation.rows.tolist() == [*range(10)]
    assert alone.selection.notes["duplicates"].startswith("7 images left out")


def test_images_that_are_scored_are_all_used(doubled: Path) -> None:
    cache = str(doubled.parent / "cache")
    config = dataset_config("folder", doubled, resolution=8, group_by="x", drop_duplicates=True, cache_dir=cache)
    assert len(open_images(doubled, config, progress=False).train) == 70


def test_a_run_tells_its_groups_and_keeps_to_them(cli: Cli, slices: Path) -> None:
    mine = ("dataset=imagefolder", f"dataset.path={slices}", "dataset.validation_fraction=0.1", "evaluation=none")
    mine = (*mine, "tracker=none", "dataset.cache=none", "dataset.num_workers=0", "train.max_steps=2")
    (slices / "odd/p19_100.png").write_bytes((slices / "odd/p19_99.png").read_bytes())
    keys = (r"dataset.group_by=(p\d+)_", "dataset.drop_duplicates=true")
    said = cli.train(*mine, *keys)
    assert "90 images 8x8x3, 10 held out\n" in said
    assert f"  groups     2 of 20 held out ({keys[0]})\n" in said
    assert "  duplicates 1 image left out, with the same pixels as another\n" in said and "held-out image" not in said
    # The same groups by other words are the same run; others are another one.
    assert "finished at step 2" in cli.train(*mine, r"dataset.group_by=p\d+", keys[1])
    said = cli.train(*mine, keys[0], expect=2)
    assert "this config would make another run" in said and "\n  dataset split  " in said
