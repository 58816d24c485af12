"""What is no dataset as it is: each kind is told in a line of its own, with what to do."""

import base64
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.images import dataset_config, encoded
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.formats import decodable
from ddpm_train.data.loader import Data, open_data
from ddpm_train.data.paths import path_mistakes

WriteImages = Callable[[Path, int], Path]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"


def opened(source: str, path: Path, **values: Any) -> Data:
    small = {"resolution": 8, "num_workers": 0, "channels": 1, "cache_dir": str(path.parent / "cache"), **values}
    config = dataset_config(source, path, **small)
    if lines := path_mistakes(config):
        raise Mistakes(*lines)
    return open_data(config, progress=False)


def mistake(source: str, path: Path, **values: Any) -> str:
    """The one line, without its path."""
    with pytest.raises(Mistakes) as raised:
        opened(source, path, **values)
    (line,) = raised.value.lines
    return line.replace(str(path), "PATH")


def test_images_that_git_lfs_has_not_fetched(tmp_path: Path, write_images: WriteImages) -> None:
    folder = write_images(tmp_path / "clone", 6)
    for number in range(7):
        (folder / f"p{number}.jpg").write_text(POINTER)
    reason = "7 of 13 images cannot be read ({} and 4 more: a Git LFS pointer (git lfs pull)); repair or remove them"
    for source, names in (("folder", "p0.jpg, p1.jpg, p2.jpg"), ("hub", "row 6 of column image")):
        line = mistake(source, folder)
        assert line.startswith("dataset.max_broken_fraction=0.01: ") and line.endswith(", or allow more")
        assert reason.format(names)[-60:] in line and names in line and line.count("git lfs pull") == 1
    assert list(opened("folder", folder, max_broken_fraction=0.9).warnings()) == [
        "warning: 7 images cannot be read and are skipped:",
        "  p0.jpg, p1.jpg, p2.jpg and 4 more: a Git LFS pointer (git lfs pull)",
    ]


def test_data_files_that_git_lfs_has_not_fetched(
    tmp_path: Path, write_images: WriteImages, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "is a Git LFS pointer ({} first); run `git lfs pull` in the clone"
    for name in ("data/train.parquet", "train.jsonl", "train.csv", "train.zip", "train.tar", "metadata.csv"):
        clone = write_images(tmp_path / name, 2) if name == "metadata.csv" else tmp_path / name
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text(POINTER)
        assert mistake("hub", clone) == f"dataset.path=PATH: 1 of its files {said.format(name)}"
        if name.endswith("parquet"):
            single = said.replace(" ({} first)", "")
            assert mistake("hub", clone / name) == f"dataset.path=PATH: 1 of its files {single}"
            shutil.copy(clone / name, clone / "data/test.parquet")
            line = mistake("hub", clone)
            assert line.startswith("dataset.path=PATH: 2 of its files are Git LFS pointers (data/test.parquet first); ")
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(saved)
    next(saved.glob("*.arrow")).write_text(POINTER)
    assert said.format("data-00000-of-00001.arrow") in mistake("hub", saved)
    # Another mistake is told as itself.
    assert mistake("hub", tmp_path / "metadata.csv", config_name="big").startswith("dataset.config_name=big: ")
    assert capfd.readouterr().err == ""


def test_damaged_data_files(tmp_path: Path) -> None:
    for name, reason in {"a.zip": "not a zip file", "a.tar": "truncated header", "a.jsonl": "JSON parse error"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("nothing")
        line = mistake("hub", tmp_path / name)
        assert line.startswith("dataset.path=PATH: ") and reason in line


def shards(folder: Path, *columns: dict[str, Any], readme: str = "") -> Path:
    """A folder of parquet files with four images each and further columns."""
    folder.mkdir()
    image = {"bytes": encoded(Image.new("L", (8, 8), 77)), "path": None}
    for number, further in enumerate(columns):
        table = pa.table({"image": [image] * 4, **{name: [value] * 4 for name, value in further.items()}})
        pq.write_table(table, folder / f"part-{number}.parquet")
    if readme:
        (folder / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{readme}---\n")
    return folder


def test_which_of_many_data_files_is_wrong(tmp_path: Path) -> None:
    other = shards(tmp_path / "other", {}, {"caption": "a cat"})
    start = "dataset.path=PATH: the columns of its files differ, or are not those of its README.md: in one there "
    assert mistake("hub", other) == f"{start}are 1 new columns ({{'caption'}}); give all of them the same columns"
    damaged = shards(tmp_path / "damaged", {}, {})
    (damaged / "part-1.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    assert mistake("hub", damaged).startswith("dataset.path=PATH: part-1.parquet: ")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"train": 99}, "says that train has 99 rows, and not 4"),
        ({"train": 4, "test": 1}, "names a split test, which its files do not hold"),
        ({"test": 1}, "names a split test, which its files do not hold"),
    ],
)
def test_a_card_that_counts_other_rows(said: dict[str, int], line: str, tmp_path: Path) -> None:
    rows = [f"  - name: {name}\n    num_examples: {count}\n    num_bytes: 1\n" for name, count in said.items()]
    folder = shards(tmp_path / "clone", {}, readme="".join(rows))
    assert (
        mistake("hub", folder)
        == f"dataset.path=PATH: its README.md {line}; complete its files, or correct its README.md"
    )


def test_classes_within_an_archive(tmp_path: Path) -> None:
    """The `datasets` library takes the folder of the archive for the class of each of its images."""
    (tmp_path / "clone").mkdir()
    with zipfile.ZipFile(tmp_path / "clone/images.zip", "w") as archive:
        for number in range(6):
            image = Image.new("L", (8, 8), 40 * number)
            archive.writestr(f"{'cats' if number < 3 else 'dogs'}/{number}.png", encoded(image))
    data = opened("hub", tmp_path / "clone", validation_fraction=0)
    assert sorted(data.train.load([number])[0, 0, 0, 0].item() for number in range(6)) == list(range(0, 240, 40))


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.string_view(), pa.large_binary(), pa.large_string()])
def test_columns_as_polars_writes_them(kind: pa.DataType, tmp_path: Path) -> None:
    image = encoded(Image.new("L", (8, 8), 77))
    (tmp_path / "a.png").write_bytes(image)
    cell = image if "binary" in str(kind) else "a.png"
    pq.write_table(pa.table({"picture": pa.array([cell] * 4, kind)}), tmp_path / "some.parquet")
    data = opened("hub", tmp_path / "some.parquet", image_column="picture", validation_fraction=0)
    assert data.train.load([0]).unique().tolist() == [77]


def test_pictures_in_base64(tmp_path: Path) -> None:
    text = base64.b64encode(encoded(Image.effect_noise((64, 64), 99))).decode()
    for name, cell in {"plain": text, "address": f"data:image/png;base64,{text}"}.items():
        pq.write_table(pa.table({"picture": [cell] * 4}), tmp_path / f"{name}.parquet")
        line = mistake("hub", tmp_path / f"{name}.parquet", image_column="picture")
        assert "base64 text, which is not read; store its bytes instead" in line and len(line) < 300


def test_images_of_another_kind_than_their_ending(tmp_path: Path, garments: list[Image.Image]) -> None:
    box = "\0\0\0\x14ftyp{}\0\0\0\0{}".format
    cases = {
        box("heic", "heic"): "HEIC (pip install pillow-heif)",
        box("mif1", "heic"): "HEIC (pip install pillow-heif)",
        box("isom", "avc1"): "not an image",
        "\0\0\0\x0cJXL \r\n\x87\n": "JXL (pip install pillow-jxl-plugin)",
        "\xff\x0a\xfa\x1f": "JXL (pip install pillow-jxl-plugin)",
        "PK\3\4": "an archive (unpack it)",
        "\xef\xbb\xbf\n<!DOCTYPE html><html>404": "a web page (download it anew)",
        "<svg xmlns=": "SVG (convert to .png)",
        "%PDF-1.7": "PDF (convert to .png)",
        POINTER: "a Git LFS pointer (git lfs pull)",
    }
    decoder = Decoder((8, 8), 3, (255, 255, 255), "center", 10**6)
    path = tmp_path / "a.jpg"
    for text, reason in cases.items():
        path.write_bytes(data := f"{text}and more".encode("latin-1"))
        ending = f".{reason.partition(' ')[0].lower()}"
        expected = f"a damaged {ending[1:].upper()} image" if ending in decodable() else reason
        for given in (data, path):
            with pytest.raises(BrokenImage) as raised:
                decoder(given)
            assert str(raised.value) == expected
    avif = encoded(garments[0].convert("RGB"), "AVIF")
    path.write_bytes(avif)
    assert decoder(path).shape == (3, 8, 8)  # what is read is read, whatever it is called
    with pytest.raises(BrokenImage, match="a damaged AVIF image"):
        decoder(avif[:40])


def test_single_files(tmp_path: Path, garments: list[Image.Image]) -> None:
    """Each has its line before anything is loaded."""
    cases = {
        "a.zip a.tar a.tar.gz a.TGZ a.7z": "an archive; unpack it, and give the folder with dataset=imagefolder",
        "a.csv a.jsonl a.json": "a table without images; give the folder of the images: with "
        "dataset=imagefolder for all of them, with dataset=hub for those that a metadata.csv or metadata.jsonl "
        "there names in a column file_name",
        "a.npz a.npy a.h5 a.nii.gz a.dcm": "arrays; read them with dataset=arrays",
        "a.mat a.pt": "arrays, which are not read; write each image to a .npy file, and give their folder with "
        "dataset=arrays",
        "a.PNG a.heic": "one image; give the folder that holds all of them, with dataset=imagefolder",
        "a.arrow": "a part of a dataset; give its folder with dataset=hub",
        "a a.txt": "a file of no kind that is read; give a folder, or a parquet file with dataset=hub",
    }
    for names, use in cases.items():
        for name in names.split():
            (tmp_path / name).write_bytes(b"PK\3\4")
            for source in ("folder", "hub"):
                lines = path_mistakes(dataset_config(source, tmp_path / name))
                assert lines == [f"dataset.path={tmp_path / name}: {use}"]
    path = tmp_path / "a.PARQUET"
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": garments[:4]}, features=features).to_parquet(path)
    assert mistake("folder", path) == "dataset.path=PATH: a parquet file; read it with dataset=hub"
    assert mistake("hub", path, validation_split="test") == (
        "dataset.validation_split=test: PATH has no splits; use dataset.validation_fraction"
    )
    data = opened("hub", path, validation_fraction=0.0)
    decoder = Decoder((8, 8), 1, (255, 255, 255), "center", 10**6)
    expected = np.stack([decoder(encoded(image)) for image in garments[:4]])
    assert np.array_equal(data.train.load(range(4)).numpy(), expected)


def test_datasets_without_a_column_of_images(tmp_path: Path, garments: list[Image.Image]) -> None:
    def saved(name: str, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
        typed = None if features is None else datasets.Features(features)
        datasets.Dataset.from_dict(columns, features=typed).to_parquet(tmp_path / name)
        return tmp_path / name

    image = datasets.Image()
    lists = saved("lists.parquet", {"views": [garments[:2]]}, {"views": datasets.List(image)})
    structs = saved("structs.parquet", {"x": [{"image": garments[0]}]}, {"x": {"image": image}})
    for path, column in ((lists, "views"), (structs, "x")):
        for chosen in (None, column):
            line = mistake("hub", path, image_column=chosen)
            assert line.startswith(f"dataset.image_column={chosen or 'null'}: ") and "Image(mode=None" in line
            assert line.endswith("; write a dataset with one image in each row")
    pixels = [np.asarray(garment).tolist() for garment in garments[:2]]
    some = saved("some.parquet", {"name": ["a", "b"], "pixels": pixels, "number": [1, 2], "tags": [["a"], ["b"]]})
    assert mistake("hub", some) == (
        "dataset.image_column=null: no column of images; use dataset.image_column=name or pixels, if that column names "
        "or holds its images"
    )
    assert mistake("hub", saved("none.parquet", {"number": [1, 2]})) == (
        "dataset.path=PATH: none of its columns holds images (number: int64); give a dataset of images"
    )
    nothing = saved("empty.parquet", {"image": []}, {"image": image})
    datasets.Dataset.from_dict({"image": []}, features=datasets.Features({"image": image})).save_to_disk(
        tmp_path / "empty"
    )
    for path in (nothing, tmp_path / "empty"):
        assert mistake("hub", path) == "dataset.path=PATH: its train split has no rows; give one that has"


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_images_beside_their_captions(ending: str, tmp_path: Path, write_images: WriteImages) -> None:
    """The `datasets` library takes a folder for what most of its files are."""
    folder = write_images(tmp_path / "pairs", 8)
    for file in list(folder.rglob("*.png")):
        file.with_suffix(f".{ending}").write_text(json.dumps({"caption": "a garment"}))
    os.remove(next(folder.rglob("*.png")))
    line = mistake("hub", folder)
    use = "use dataset=imagefolder" + (
        ", or dataset.image_column=caption, if that column names or holds its images" if ending == "json" else ""
    )
    assert line == (
        f"dataset.path=PATH: the `datasets` library reads the .{ending} files of this folder, and none of its 7 "
        f"images; {use}"
    )
    assert len(opened("folder", folder).train) == 7
