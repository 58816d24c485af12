import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.cli import Cli
from helpers.images import dataset_config
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.paths import path_mistakes
from ddpm_train.data.sources import FolderSource, open_source

ONE_STEP = ("train.max_steps=1", "evaluation=none", "tracker=none")
DECODER = Decoder((8, 8), 1, (255, 255, 255), "center", 10**6)


def mistake(source: str, path: Path, **values: Any) -> str:
    config = dataset_config(source, path, **values)
    with pytest.raises(Mistakes) as raised:
        open_source(config, config.split)
    (line,) = raised.value.lines
    assert "\n" not in line
    return line


@pytest.fixture(autouse=True)
def own_cache_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_datasets")


@pytest.fixture
def rows(garments: list[Image.Image]) -> datasets.Dataset:
    """24 garments with a label."""
    features = datasets.Features({"label": datasets.Value("int64"), "picture": datasets.Image()})
    return datasets.Dataset.from_dict({"label": list(range(24)), "picture": garments[:24]}, features=features)


def test_a_folder_of_any_depth_and_every_format(cli: Cli, garments: list[Image.Image]) -> None:
    folder = cli.folder / "pictures"
    suffixes = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "JPG", "Png", "TIFF"]
    for index, suffix in enumerate(suffixes * 2):
        place = folder.joinpath(*"abcdefgh"[: index % 5])
        place.mkdir(parents=True, exist_ok=True)
        garments[index].convert("RGB").save(place / f"{index}.{suffix}")
    (folder / "labels.txt").write_text("not looked at")
    (folder / "._0.jpg").write_bytes(b"what macOS leaves behind")
    said = cli.train("dataset=imagefolder", f"dataset.path={folder}", "dataset.validation_fraction=0", *ONE_STEP)
    assert "pictures: 22 images 8x8x3" in said
    assert "cannot be read" not in said


def test_a_folder_is_in_the_order_of_its_paths(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    source = FolderSource(write_images(tmp_path / "images", 9))
    names = [source.name(index) for index in range(len(source))]
    assert names == sorted(names) and len(names) == 9 and names[-1] == "deeper/008.png"


def test_links_are_followed_but_not_in_circles(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(tmp_path / "images", 4)
    elsewhere = write_images(tmp_path / "elsewhere", 2)
    (folder / "more").symlink_to(elsewhere)
    (folder / "deeper/circle").symlink_to(folder)
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    source = FolderSource(folder)
    names = {source.name(index): index for index in range(len(source))}
    assert set(names) == {
        *("001.png", "003.png", "deeper/000.png", "deeper/002.png"),
        *("more/001.png", "more/deeper/000.png", "lost.png", "pipe.png"),
    }
    for name, reason in {"lost.png": "No such file", "pipe.png": "not a regular file"}.items():
        with pytest.raises(BrokenImage, match=reason):
            source.load(names[name], DECODER)
    assert len(source.fingerprint) == 64


def test_a_folder_that_may_not_be_read(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(tmp_path / "images", 2)
    closed = folder / "deeper"
    closed.chmod(0)
    for parent in [tmp_path, *tmp_path.parents]:
        if "pytest-" in str(parent):
            parent.chmod(0o755)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        line = mistake("folder", folder)
    finally:
        os.seteuid(user)
        closed.chmod(0o755)
    assert line == f"dataset.path={folder}: {closed}: Permission denied; make it readable or remove it"


def test_saved_datasets_and_local_parquet_hold_the_same_images(tmp_path: Path, rows: datasets.Dataset) -> None:
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=rows, test=rows.select([3])).save_to_disk(str(tmp_path / "dict"))
    rows.to_parquet(str(tmp_path / "one.parquet"))
    for part in range(2):
        rows.select(range(12 * part, 12 * part + 12)).to_parquet(str(tmp_path / f"parts/{part}.parquet"))
    clone = tmp_path / "clone"
    rows.to_parquet(str(clone / "data/train-00000-of-00001.parquet"))
    rows.select([3]).to_parquet(str(clone / "data/test-00000-of-00001.parquet"))
    (clone / "README.md").write_text("---\nlicense: mit\n---\n# Garments\n")
    expected = [DECODER.from_image(image) for image in rows["picture"]]
    for place in ("saved", "dict", "one.parquet", "parts", "clone"):
        source = open_source(dataset_config("hub", tmp_path / place), "train")
        assert np.array_equal([source.load(index, DECODER) for index in range(len(source))], expected), place
        if place in ("dict", "clone"):
            held_out = open_source(dataset_config("hub", tmp_path / place), "test")
            assert len(held_out) == 1 and np.array_equal(held_out.load(0, DECODER), expected[3])
            assert 'dataset.split=nope: Unknown split "nope"' in mistake("hub", tmp_path / place, split="nope")


def test_one_dataset_cannot_be_its_own_validation_split(tmp_path: Path, rows: datasets.Dataset) -> None:
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(str(tmp_path / "one.parquet"))
    (tmp_path / "folder").mkdir()
    for source, place in (("hub", "saved"), ("hub", "one.parquet"), ("folder", "folder")):
        path = tmp_path / place
        assert path_mistakes(dataset_config(source, path)) == []
        assert path_mistakes(dataset_config(source, path, validation_split="test")) == [
            f"dataset.validation_split=test: {path} has no splits; use dataset.validation_fraction"
        ]


def test_a_parquet_file_that_changes_is_another_dataset(tmp_path: Path, rows: datasets.Dataset) -> None:
    path = tmp_path / "one.parquet"
    rows.to_parquet(str(path))
    before = open_source(dataset_config("hub", path), "train")
    again = open_source(dataset_config("hub", path), "train")
    rows.select(range(23, -1, -1)).to_parquet(str(path))
    after = open_source(dataset_config("hub", path), "train")
    assert before.fingerprint == again.fingerprint != after.fingerprint
    assert np.array_equal(after.load(0, DECODER), before.load(23, DECODER))


def without_features(path: Path, images: list[bytes], structs: bool) -> Path:
    """Parquet as other programs write it: nothing says that the column holds images."""
    cells = [{"bytes": data, "path": None} for data in images] if structs else images
    pq.write_table(pa.table({"id": list(range(len(images))), "img": cells}), path)
    return path


@pytest.mark.parametrize("structs", [True, False])
def test_image_column_names_a_column_without_the_feature(
    structs: bool, tmp_path: Path, write_images: Callable[[Path, int], Path]
) -> None:
    files = sorted(write_images(tmp_path / "images", 5).rglob("*.png"))
    path = without_features(tmp_path / "plain.parquet", [file.read_bytes() for file in files], structs)
    assert mistake("hub", path) == (
        "dataset.image_column=null: no column of images; use dataset.image_column=img, if that column names or holds "
        "its images"
    )
    source = open_source(dataset_config("hub", path, image_column="img"), "train")
    assert np.array_equal([source.load(i, DECODER) for i in range(5)], [DECODER(file) for file in files])


@pytest.mark.parametrize("key", ["split", "validation_split"])
def test_a_part_that_the_embedded_images_do_not_have(key: str) -> None:
    nothing = "x" * 300  # no file can be called so
    config = dataset_config("embedded", Path("fashion_tiny"), **{key: nothing})
    with pytest.raises(Mistakes) as raised:
        open_source(config, nothing)
    assert raised.value.lines == (f"dataset.{key}={nothing}: fashion_tiny has the splits train and validation",)


def test_the_wrong_column_is_told(tmp_path: Path, rows: datasets.Dataset) -> None:
    path = tmp_path / "saved"
    rows.save_to_disk(str(path))
    assert mistake("hub", path, image_column="pictures") == (
        "dataset.image_column=pictures: no such column; did you mean 'picture'? (one of label, picture)"
    )
    line = mistake("hub", path, image_column="label")
    assert line == "dataset.image_column=label: holds no images (Value('int64')); choose another"
    both = {"picture": rows["picture"][:], "mask": rows["picture"][:]}
    features = datasets.Features(dict.fromkeys(both, datasets.Image()))
    datasets.Dataset.from_dict(both, features=features).save_to_disk(str(tmp_path / "two"))
    assert mistake("hub", tmp_path / "two") == (
        "dataset.image_column=null: several columns of images (picture, mask); choose one of picture, mask"
    )


def test_empty_and_broken_cells_are_broken_images(tmp_path: Path) -> None:
    cells = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": None, "path": "gone.png"}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "cells.parquet")
    source = open_source(dataset_config("hub", tmp_path / "cells.parquet", image_column="image"), "train")
    for index, reason in enumerate(("empty", "empty", "an empty file", "gone.png: no such file")):
        with pytest.raises(BrokenImage, match=reason):
            source.load(index, DECODER)


def test_only_the_datasets_own_files_are_read(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    """Whatever file of this machine a row names, in a dataset that comes from elsewhere."""
    own = write_images(tmp_path / "data/images", 1)
    (image,) = own.rglob("*.png")
    private = tmp_path / "private.png"
    private.write_bytes(image.read_bytes())
    (own / "link.png").symlink_to(private)
    (own / "loop.png").symlink_to(own / "loop.png")
    os.mkfifo(own / "pipe.png")
    inside = [str(image), str(image.relative_to(tmp_path / "data"))]
    outside = [
        str(private),
        "../private.png",
        "images/link.png",
        "images/loop.png",
        "images/pipe.png",
        "x" * 300,
        "a\0b",
    ]
    outside += [f"file://{private}", f"zip://x::{private}", "http://localhost:1/x.png", f"images/../../{private.name}"]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": path} for path in inside + outside], kind)
    pq.write_table(pa.table({"image": cells}), tmp_path / "data/rows.parquet")
    source = open_source(dataset_config("hub", tmp_path / "data/rows.parquet", image_column="image"), "train")
    assert all(np.array_equal(source.load(index, DECODER), DECODER(image)) for index in range(len(inside)))
    for index in range(len(inside), len(source)):
        with pytest.raises(BrokenImage) as broken:
            source.load(index, DECODER)
        assert str(broken.value).isprintable(), source.name(index)


def test_images_in_an_archive_of_the_datasets_own(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    image, data = write_images(tmp_path / "elsewhere", 1) / "deeper/000.png", tmp_path / "data"
    data.mkdir()
    for archive in (data / "images.zip", data / "damaged.zip", tmp_path / "private.zip"):
        with zipfile.ZipFile(archive, "w") as file:
            file.write(image, "deeper/a.png")
    whole = (data / "damaged.zip").read_bytes()
    (data / "damaged.zip").write_bytes(whole.replace(image.read_bytes(), bytes(image.stat().st_size)))
    (data / "no.zip").write_bytes(b"no archive")
    reasons = {
        "zip://deeper/b.png::images.zip": "deeper/b.png is not in images.zip",
        "zip://deeper/a.png::absent.zip": "absent.zip: no such file",
        "zip://deeper/a.png::damaged.zip": "damaged.zip: Bad CRC-32",
        "zip://deeper/a.png::no.zip": "no.zip: File is not a zip file",
        f"zip://deeper/a.png::{tmp_path / 'private.zip'}": "does not lie in the dataset's own folder",
        "zip://deeper/a.png": "what zip:// names is not read",
        "zip://a.png::zip://b.zip::images.zip": "is not in images.zip",
        "zip://a.png::https://localhost/b.zip": "what zip:// names is not read",
        "https://localhost/a.png": "what https:// names is not read; have rows hold the images",
    }
    good = ["zip://deeper/a.png::images.zip", f"zip://deeper/a.png::{data / 'images.zip'}"]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": path} for path in [*good, *reasons]], kind)
    pq.write_table(pa.table({"image": cells}), data / "rows.parquet")
    source = open_source(dataset_config("hub", data / "rows.parquet", image_column="image"), "train")
    assert all(np.array_equal(source.load(index, DECODER), DECODER(image)) for index in range(len(good)))
    for index, reason in enumerate(reasons.values(), len(good)):
        with pytest.raises(BrokenImage, match=reason):
            source.load(index, DECODER)


@pytest.mark.parametrize("files", ["{private}/*.parquet", "../private/*.parquet", "{private}/**", "link.parquet"])
def test_a_card_names_only_files_of_its_folder(files: str, tmp_path: Path, rows: datasets.Dataset) -> None:
    folder, private = tmp_path / "data", tmp_path / "private"
    for place in (folder, private):
        place.mkdir()
        rows.to_parquet(str(place / "rows.parquet"))
    (folder / "link.parquet").symlink_to(private / "rows.parquet")
    card = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"
    (folder / "README.md").write_text(card.format(files.format(private=private)))
    line = mistake("hub", folder)
    reason = "link.parquet is a link to" if files == "link.parquet" else "none of its own files"
    assert line.startswith(f"dataset.path={folder}: ") and reason in line
    (folder / "README.md").write_text(card.format("rows.*"))
    assert len(open_source(dataset_config("hub", folder), "train")) == 24


@pytest.mark.parametrize("name", ["{private}", "../private.png", "link.png"])
def test_metadata_names_only_files_of_its_folder(
    name: str, tmp_path: Path, write_images: Callable[[Path, int], Path]
) -> None:
    folder = write_images(tmp_path / "data", 1)
    private = write_images(tmp_path / "elsewhere", 1)
    (private,) = private.rglob("*.png")
    private = private.rename(tmp_path / "private.png")
    (folder / "link.png").symlink_to(private)
    (folder / "metadata.csv").write_text(f"file_name,text\n{name.format(private=private)},x\n")
    try:
        source = open_source(dataset_config("hub", folder), "train")
    except Mistakes as mistakes:
        assert len(mistakes.lines) == 1
        return
    for index in range(len(source)):
        with pytest.raises(BrokenImage, match="own folder"):
            source.load(index, DECODER)


def test_a_cache_of_the_library_that_cannot_be_written(
    tmp_path: Path, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.to_parquet(str(tmp_path / "one.parquet"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/nowhere/datasets")
    line = mistake("hub", tmp_path / "one.parquet")
    assert line.startswith(f"dataset.path={tmp_path / 'one.parquet'}: ")
    assert line.endswith("; set HF_HOME to a folder in which the datasets library may write")


def test_mistakes_of_the_command_line(cli: Cli, rows: datasets.Dataset, tmp_path: Path) -> None:
    rows.save_to_disk(str(tmp_path / "saved"))
    said = cli.train("dataset=hub", f"dataset.path={tmp_path / 'saved'}", "dataset.image_column=pictur", expect=2)
    assert said == (
        "error: dataset.image_column=pictur: no such column; did you mean 'picture'? (one of label, picture)\n"
    )
    (tmp_path / "empty").mkdir()
    said = cli.train("dataset=imagefolder", f"dataset.path={tmp_path / 'empty'}", expect=2)
    assert said == (
        f"error: dataset.path={tmp_path / 'empty'}: no images in it "
        "(no file below it has the ending of an image); give the folder that holds them\n"
    )


def test_a_saved_dataset_trains(cli: Cli, rows: datasets.Dataset, tmp_path: Path) -> None:
    rows.to_parquet(str(tmp_path / "parts/0.parquet"))
    said = cli.train("dataset=hub", f"dataset.path={tmp_path / 'parts'}", "dataset.channels=1", *ONE_STEP)
    assert "22 images 8x8x1, 2 held out" in said
    assert "Traceback" not in said and "Generating" not in said


@pytest.mark.parametrize("name", ["[cats]", "a*b", "q?"])
def test_names_that_the_library_takes_for_a_pattern(name: str, tmp_path: Path, rows: datasets.Dataset) -> None:
    """Of [cats] it finds nothing, and of a*b also what lies in axb."""
    for file in (tmp_path / name / "train.parquet", tmp_path / f"clone/{name}.parquet", tmp_path / "axb/train.parquet"):
        file.parent.mkdir(exist_ok=True)
        rows.to_parquet(str(file))
    for path in (tmp_path / name, tmp_path / f"clone/{name}.parquet"):
        (line,) = path_mistakes(dataset_config("hub", path))
        sign = next(sign for sign in name if sign in "*?[")
        assert line == (
            f"dataset.path={path}: the `datasets` library takes the {sign} in it for a pattern of names; give it "
            "another name"
        )
    rows.save_to_disk(str(tmp_path / name / "saved"))
    assert path_mistakes(dataset_config("hub", tmp_path / name / "saved")) == []
    assert len(open_source(dataset_config("hub", tmp_path / name / "saved"), "train")) == 24


def test_a_folder_of_links(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    """The library would follow them to any file of this machine; a folder of images is the user's own."""
    real, links = write_images(tmp_path / "real", 4), tmp_path / "links"
    links.mkdir()
    for number, file in enumerate(sorted(real.rglob("*.png"))):
        (links / f"{number}.png").symlink_to(file)
    line = mistake("hub", links)
    assert line.startswith(f"dataset.path={links}: {links}/") and " is a link to " in line
    assert line.endswith("dataset=imagefolder, which follows links")
    assert len(FolderSource(links)) == 4


def test_a_clone_with_a_script(tmp_path: Path) -> None:
    """Scripts are what repositories were made of before; `datasets` runs them no longer."""
    clone = tmp_path / "cats"
    clone.mkdir()
    (clone / "cats.py").write_text("import datasets\n")
    assert mistake("hub", clone) == (
        f"dataset.path={clone}: Dataset scripts are no longer supported, but found cats.py; nobody runs them: give its "
        "images with dataset=imagefolder, or a copy of it in parquet files"
    )


def test_numbers_that_are_no_images(tmp_path: Path) -> None:
    """The `datasets` library would make one row of pixels of a list of bytes, and says nothing of an array's shape."""
    flat = {"x": [list(range(64))] * 3}
    array = datasets.Features({"x": datasets.Array3D((3, 8, 8), "uint8")})
    for rows, features, remedy in (
        (flat, None, "store encoded images as binary, and pixels as lists of rows"),
        (
            {"x": [np.zeros((3, 8, 8), np.uint8)]},
            array,
            r"images are arrays of \(height, width\), or of \(height, width, 3",
        ),
    ):
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "x.parquet")
        said = mistake("hub", tmp_path / "x.parquet", image_column="x")
        assert re.match(rf"dataset.image_column=x: holds no images \(.*\); {remedy}", said)


@pytest.mark.parametrize(("card", "reason"), [(b"---\nconfigs: [\n---\n", "while"), (b"\xff\xfe", "'utf-8' codec")])
def test_a_card_that_cannot_be_read(card: bytes, reason: str, tmp_path: Path, rows: datasets.Dataset) -> None:
    rows.to_parquet(tmp_path / "train.parquet")
    (tmp_path / "README.md").write_bytes(card)
    said = mistake("hub", tmp_path)
    assert re.fullmatch(rf"dataset.path={tmp_path}: README.md: {reason}.*; correct it, or remove it", said)
