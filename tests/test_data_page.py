"""`ddpm-data`: what it finds in a folder of real images with a fault of each kind, prints and writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.cli import Cli
from helpers.images import dataset_config, encoded
from helpers.page import Page
from PIL import Image, ImageEnhance, ImageOps

from ddpm_train.cli.data import preflight
from ddpm_train.config.data import DATA, DataConfig
from ddpm_train.config.grammar import parse
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.loader import open_data
from ddpm_train.data.overview import look_at
from ddpm_train.data.pixels import read_pixels, robust_scores
from ddpm_train.data.split import hold_out
from ddpm_train.report.dataset import Facts, rows

COUNT, SIDE = 36, 32
HOSTILE = "<script>\x1b[31m&"


def colourful(garments: list[Image.Image], number: int) -> Image.Image:
    """A picture of twelve garments, 56 x 56, in three colours, moved on: no two of them look alike."""
    pixels = np.stack([np.asarray(garments[12 * number + place]) for place in range(12)]).reshape(3, 2, 2, 28, 28)
    picture = pixels.transpose(1, 3, 2, 4, 0).reshape(56, 56, 3)
    return Image.fromarray(np.roll(picture, (9 * number, 23 * number), axis=(0, 1)))


def seen(path: Path) -> np.ndarray:
    """What the objective sees of a file, float64 [SIDE, SIDE, 3] in [-1, 1]."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return np.asarray(ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)) / 127.5 - 1


def test_a_folder_with_a_fault_of_each_kind(cli: Cli, garments: list[Image.Image]) -> None:
    split = hold_out(np.arange(COUNT), 0.2)
    train, held_out = split.train.tolist(), split.held_out.tolist()
    pictures = [colourful(garments, number) for number in range(COUNT)]
    contents = [encoded(picture) for picture in pictures]
    names = [f"{number:02}.png" for number in range(COUNT)]
    contents[held_out[0]] = contents[train[0]]
    names[train[1]] = f"{train[1]:02}{HOSTILE}.png"
    near = ImageEnhance.Brightness(pictures[train[1]]).enhance(1.04)
    contents[held_out[1]] = encoded(near, "JPEG", quality=85)
    contents[train[3]] = contents[train[2]]
    contents[train[4]] = encoded(Image.new("RGB", (64, 64), "white"))
    contents[train[5]] = encoded(pictures[train[5]].crop((0, 0, 40, 20)))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    contents[train[6]] = encoded(pictures[train[6]].resize((80, 40)), "JPEG", exif=exif)
    folder = cli.folder / "photos"
    (folder / ".Trash").mkdir(parents=True)
    files = dict(zip(names, contents, strict=True)) | {"z.jpg": contents[train[6]][:900], ".Trash/x.png": contents[0]}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    said = cli.python(
        *("-m", "ddpm_train.cli.data", "dataset=imagefolder", "dataset.path=photos", f"dataset.resolution={SIDE}"),
        *("dataset.validation_fraction=0.2", "dataset.num_workers=0"),
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    found = json.loads((cli.folder / "data/photos/data.json").read_text())
    page = Page(cli.folder / "data/photos/report.html")

    assert [found[key] for key in ("num_images", "num_train", "num_held_out")] == [COUNT, len(train), len(held_out)]
    assert found["schedule_shift"] is None and "log_snr_shift" not in said  # at 32 pixels there is none
    assert found["kinds"] == {"PNG RGB": 34, "JPEG RGB": 2}
    assert found["sizes"] == {"56": 33, "[20,40]": 1, "64": 1, "[80,40]": 1}
    assert (found["num_upscaled"], found["shorter_side"]["least"], found["shorter_side"]["most"]) == (1, 20, 64)
    ((name, reason),) = found["broken"]
    assert name == "z.jpg" and "truncated" in reason and found["too_many_broken"]
    assert found["left_out"] == ["left out: 1 image (1 in .Trash)"]
    shown = names[train[1]].replace("\x1b", "\\x1b")
    same, alike = found["equal"], found["alike"]
    pairs = [[names[train[0]], names[held_out[0]]], [names[train[2]], names[train[3]]]]
    assert sorted(map(sorted, same["groups"])) == sorted(map(sorted, pairs))
    assert (same["num_images"], same["num_groups"], same["num_held_out"]) == (4, 2, 1)
    assert [set(group) for group in alike["groups"]] == [{shown, names[held_out[1]]}]
    assert (alike["num_images"], alike["num_held_out"]) == (2, 1)
    first = found["brightness"]["outliers"][0]
    assert first["name"] == names[train[4]] and first["value"] == pytest.approx(1) and first["score"] > 3.5
    expected = np.stack([seen(folder / names[number]) for number in train])
    np.testing.assert_allclose(found["mean"], expected.mean(axis=(0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(found["std"], expected.std(axis=(0, 1, 2)), atol=1e-3)

    mean = ", ".join(f"{value:.3f}" for value in found["mean"])
    equal = "4 images have the same pixels as another, 1 of them held out with others trained on. To use one of each, "
    for text in (
        *(f"{equal}and leave out 2 images: dataset.drop_duplicates=true", "1 held-out image looks like one that is"),
        *("36: 29 to train on, 7 held out", "34 PNG RGB; 2 JPEG RGB", "1 of 36 files (2.8 %) to 32x32", "z.jpg"),
        *("1; more than dataset.max_broken_fraction, so ddpm-train would not begin", mean, "1 image (1 in .Trash)"),
        "4 images in 2 groups; 1 of them held out, with others in the training images",
    ):
        assert text in said and text in page.text, text
    assert shown in page.text and "\x1b" not in said + page.text and "data/photos/report.html" in said
    assert len(page.all("img")) == 2 * 12 + 2 * 3 + len(found["brightness"]["outliers"] + found["chroma"]["outliers"])
    assert len(page.all("svg")) == 3


def test_numbers_do_not_hang_on_how_many_images_are_read_at_once(
    tmp_path: Path, garments: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of random crops, and without a cache; grey images have the brightness of their pixels, and no chroma."""
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(encoded(garments[number].resize((20 + number, 20))))
    values = {"channels": 1, "resolution": 16, "num_workers": 0, "validation_fraction": 0, "crop": "random"}
    read = []
    for cache, chunk_bytes in (("disk", 2**24), ("disk", 3 * 16 * 16), ("none", 1)):
        monkeypatch.setattr("ddpm_train.data.pixels._CHUNK_BYTES", chunk_bytes)
        config = dataset_config("folder", tmp_path, **values, cache=cache, cache_dir=str(tmp_path / "cache"))
        images = open_data(config, progress=False).train
        read.append(read_pixels(images, progress=False))
    pixels = images.load(np.arange(7)).numpy() / 255
    for one in read:
        np.testing.assert_allclose(one.brightness, pixels.mean(axis=(1, 2, 3)), rtol=1e-6)
        assert not one.chroma.any()
        assert one.mean == pytest.approx([2 * pixels.mean() - 1]) and one.std == pytest.approx([2 * pixels.std()])
        assert (one.look == read[0].look).all()


def test_what_belongs_together_is_found_and_the_key_divides_it_no_more(
    tmp_path: Path, garments: list[Image.Image]
) -> None:
    """Slices of patients look alike; the advice is a key for their folder or their name, and holds."""
    for kind, name in (("folder", "{}/{}.png"), ("name", "{}_slice-{}.png"), ("none", "{1}{0}.png")):
        for patient in range(10):
            picture = colourful(garments, patient)
            for number in range(3):
                path = tmp_path / kind / name.format(f"p{patient}", number)
                path.parent.mkdir(parents=True, exist_ok=True)
                ImageEnhance.Brightness(picture).enhance(1 + number / 50).save(path)
        Image.open(path).save(path.with_suffix(".bmp"))

    def looked_at(kind: str, **keys: object) -> Facts:
        values = {"resolution": 32, "num_workers": 0, "validation_fraction": 0.2, "cache_dir": str(tmp_path / "cache")}
        return look_at(dataset_config("folder", tmp_path / kind, **values, **keys), progress=False).facts

    for kind, key in (("folder", "dataset.group_by=folder"), ("name", "'dataset.group_by=.*[_-]'"), ("none", "")):
        first = looked_at(kind)
        assert [advice.keys for advice in first.advice] == ["dataset.drop_duplicates=true", key]
        assert first.equal.num_groups == 1 and first.alike.num_held_out
    group_by = parse("dataset.group_by=.*[_-]").value()
    grouped = looked_at("name", group_by=group_by, drop_duplicates=True)
    assert grouped.notes == {
        "groups": f"2 of 10 held out (dataset.group_by={group_by})",
        "duplicates": "1 image left out, with the same pixels as another",
    }
    assert grouped.advice == [] and grouped.alike.num_groups == 10 and not grouped.alike.num_held_out


def test_images_above_32_pixels_are_told_a_shift_of_the_schedule(tmp_path: Path, garments: list[Image.Image]) -> None:
    for number in range(COUNT):
        colourful(garments, number).resize((64, 64)).save(tmp_path / f"{number:02}.png")
    values = {"resolution": 64, "num_workers": 0, "validation_fraction": 0.2, "cache_dir": str(tmp_path / "cache")}
    facts = look_at(dataset_config("folder", tmp_path, **values), progress=False).facts
    shift = facts.schedule_shift
    assert shift is not None and shift.of_pixels == pytest.approx(-1.386, abs=1e-3)
    assert shift.of_pixels < shift.half < -0.3
    told = dict(rows(facts))["schedule"]
    assert f"noise_scheduler.log_snr_shift={shift.half:.1f} (" in told and "no training has tested it here" in told


def test_robust_scores() -> None:
    np.testing.assert_allclose(robust_scores(np.array([1, 2, 3, 4, 100])), np.array([-2, -1, 0, 1, 97]) / 1.4826)
    # More than half of the values are equal: the mean absolute deviation is 10.
    np.testing.assert_allclose(robust_scores(np.array([5, 5, 5, 5, 55])), np.array([0, 0, 0, 0, 50]) / 12.533)
    assert robust_scores(np.array([3, 3, 3])).tolist() == [0, 0, 0]


def test_a_dataset_that_is_the_folder_of_the_pages(
    tmp_path: Path, garments: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data` is what many call theirs; nobody has asked for an output there."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    garments[0].save("data/a.png")
    assert list(preflight(DataConfig(None, dataset_config("folder", "data")))) == []


def test_what_is_refused_before_anything_is_read(tmp_path: Path, garments: list[Image.Image]) -> None:
    garments[0].save(tmp_path / "a.png")
    dataset = dataset_config("folder", tmp_path)
    (line,) = preflight(DataConfig(str(tmp_path / "looked/at"), dataset))
    assert line.endswith("where nothing is written; choose an output elsewhere")
    (line,) = preflight(DataConfig(str(tmp_path.parent / "x"), dataset_config("folder", tmp_path / "none")))
    assert line.endswith("no such folder")
    with pytest.raises(Mistakes, match=r"^dataset=null: which images"):
        DATA.parse({"output": None, "dataset": None, "extensions": []})
