"""Only the images that were meant go in; what is left out below the folder is told, by kind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.cli import Cli
from helpers.images import dataset_config
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.formats import decodable
from ddpm_train.data.image_files import find_images
from ddpm_train.data.loader import Data, open_data
from ddpm_train.data.sources import FolderSource
from ddpm_train.evaluation.image_folder import open_images

WriteImages = Callable[[Path, int], Path]


def opened(folder: Path, source: str = "folder", **values: object) -> Data:
    cache = {"cache_dir": str(folder.parent / "cache"), "resolution": 8, "num_workers": 0}
    return open_data(dataset_config(source, folder, **cache, **values), progress=False)


def test_what_file_managers_notebooks_and_network_storage_leave(tmp_path: Path, write_images: WriteImages) -> None:
    folder = write_images(tmp_path / "data", 6)
    names = [".ipynb_checkpoints", ".Trash-1000", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"]
    for name in names:
        write_images(folder / "deeper" / name, 2)
    shutil.copy(folder / "001.png", folder / "._001.png")
    shutil.copy(folder / "001.png", folder / ".hidden.JPG")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "labels.txt"):
        (folder / name).write_bytes(b"x")
    (folder / ".itself").symlink_to(folder)
    found = find_images(folder)
    assert found.paths == ["001.png", "003.png", "005.png", "deeper/000.png", "deeper/002.png", "deeper/004.png"]
    assert found.left_out == {"hidden": 2, **{f"in {name}": 2 for name in names}}
    (line,) = opened(folder).warnings()
    assert line.startswith("warning: left out: 16 images (2 ") and line.count("2 in ") >= 5


def test_a_folder_of_root_among_the_data(tmp_path: Path, write_images: WriteImages) -> None:
    """lost+found of a disk that is mounted there may not be read, and need not be."""
    folder = write_images(tmp_path / "data", 2)
    (folder / "lost+found").mkdir(0)
    for parent in [tmp_path, *tmp_path.parents]:
        if "pytest-" in str(parent):
            parent.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        assert len(find_images(folder).paths) == 2
    finally:
        os.seteuid(user)


def test_what_the_programs_have_written(tmp_path: Path, write_images: WriteImages) -> None:
    folder = write_images(tmp_path / "data", 4)
    own = {
        "outputs/cats": ("config.yaml", "metrics.jsonl"),
        "drawn": ("sampling.json",),
        "evaluation/model": ("scores.json", "report.html"),
        "sweeps/lr": ("sweep.csv", "sweep.png"),
        "pipeline": ("model_index.json",),
        "hub/datasets--o--n": ("blobs/0", "snapshots/0"),
        "venv": ("pyvenv.cfg",),
    }
    for place, files in own.items():
        write_images(folder / place / "samples", 2)
        for file in files:
            (folder / place / file).parent.mkdir(exist_ok=True)
            (folder / place / file).touch()
    assert find_images(folder).left_out.total() == 15 and len(find_images(folder).paths) == 4
    # A folder of images that a run lies in, too; and one that was asked for by its name.
    (write_images(folder / "outputs/cats", 2) / "checkpoints").mkdir()
    assert len(find_images(folder).paths) == 6 and len(find_images(folder / "outputs/cats").paths) == 2
    write_images(folder / "drawn/images", 2)
    shutil.copy(folder / "001.png", folder / "drawn/grid.png")
    shutil.rmtree(folder / "drawn/samples")
    assert find_images(folder / "drawn").paths == ["images/001.png", "images/deeper/000.png"]


@pytest.mark.slow
def test_the_same_command_continues_among_its_own_pictures(cli: Cli, write_images: WriteImages) -> None:
    """`dataset.path=.`, stopped and given again, beside another run, samples of it and its cache."""
    write_images(cli.folder, 24)
    run = ("dataset=imagefolder", "dataset.path=.", "dataset.channels=1", "dataset.cache_dir=prepared", "tracker=none")
    shown = ("evaluation.every_steps=2", "checkpoint.every_steps=2", "name=default")
    said = cli.train(*run, *shown, "train.max_steps=2")
    assert "22 images 8x8x1, 2 held out" in said and "left out" not in said
    cli.sample("pipeline=outputs/default", "num_images=2", "num_inference_steps=1", "sampler=ddim")
    said = cli.train(*run, *shown, "train.max_steps=4")
    assert "resumes at step 2" in said and "dataset content" not in said
    assert "warning: left out: 4 images (3 in folders of ddpm-sample, 1 in runs of ddpm-train)" in said
    assert [record["step"] for record in cli.metrics()][-1] == 4
    said = cli.train("dataset=hub", "dataset.path=.", "name=other", expect=2)
    assert "output_dir=outputs/other: lies in dataset.path=., where" in said
    said = cli.train("dataset=hub", "dataset.path=.", "output_dir=.other", "checkpoint.mirror=nosuch://x", expect=2)
    assert "output_dir" not in said  # `datasets` takes nothing that is hidden


def test_an_evaluation_tells_it_of_both_folders(cli: Cli, write_images: WriteImages) -> None:
    for name, hidden in {"made": 2, "real": 3}.items():
        write_images(cli.folder / name, 20)
        write_images(cli.folder / name / ".trash", hidden)
    pages = [Image.new("L", (28, 28), grey) for grey in range(5)]
    pages[0].save(cli.folder / "real/pages.tiff", save_all=True, append_images=pages[1:])
    said = cli.evaluate(
        *(
            "pipeline=made",
            "dataset.frames=all",
            "dataset=imagefolder",
            "dataset.path=real",
            "dataset.resolution=28",
            "dataset.channels=1",
        ),
        *("metrics=[kid]", "dataset.num_workers=0", "dataset.validation_fraction=0"),
    )
    assert "warning: left out: 2 images (2 in .trash)\nwarning: left out: 3 images (3 in .trash)\n" in said
    assert "\ndataset.frames=all: 5 of 25 images are frames of 1 file\n" in f"\n{said}"


def test_whatever_pillow_decodes(tmp_path: Path, garments: list[Image.Image]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    endings = ["jfif", "avif", "pgm", "jp2", "GIF", "tiff", "webp", "bmp", "tga", "qoi", "pcx", "sgi", "ico", "dds"]
    for number, ending in enumerate(endings):
        image = garments[number].convert("L" if ending == "pgm" else "RGB")
        image.save(folder / f"{number}.{ending}")
    data = opened(folder, validation_fraction=0.0)
    assert len(data.train) == len(endings) and not data.broken and not data.left_out
    assert not {".eps", ".pdf", ".svg", ".mpg", ".wmf", ".h5", ".txt", ".dng"} & decodable().keys()
    # No format without a mark at its beginning is tried on what is called otherwise.
    shutil.copy(folder / "8.tga", folder / "8.png")
    assert opened(folder, max_broken_fraction=0.5).broken == [("8.png", "not an image")]


def test_what_nothing_here_reads_is_named_with_what_would(tmp_path: Path, write_images: WriteImages) -> None:
    folder = write_images(tmp_path / "data", 12)
    for ending, count in {"jxl": 12, "cr2": 7, "HEIC": 1}.items():
        for number in range(count):
            (folder / f"{number}.{ending}").write_bytes(b"not looked at")
    heif = ".heic" in decodable()
    told = "cannot be read: 12 .jxl (pip install pillow-jxl-plugin), 7 .cr2 (convert to .png)"
    told = f"19 of 32 images {told}" if heif else f"20 of 32 images {told}, 1 .heic (pip install pillow-heif)"
    with pytest.raises(Mistakes) as raised:
        opened(folder)
    assert raised.value.lines == (f"dataset.max_broken_fraction=0.01: {told}; convert or remove them, or allow more",)
    assert f"warning: {told}" in opened(folder, max_broken_fraction=0.9).warnings()
    with pytest.raises(Mistakes, match="32 images cannot be read"):
        open_images(folder, dataset_config("folder", folder, resolution=28), progress=False)
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(Mistakes, match="no images in it"):
        FolderSource(folder)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_metadata_that_names_some_of_the_files(format: str, tmp_path: Path, write_images: WriteImages) -> None:
    folder = write_images(tmp_path / "data", 6)
    (folder / "deeper/raw.heic").touch()
    names = ["001.png", "deeper/000.png"]
    rows = ["file_name,text", *(f"{name},x" for name in names)]
    if format == "jsonl":
        rows = [json.dumps({"file_name": name, "text": "x"}) for name in names]
    (folder / f"metadata.{format}").write_text("\n".join(rows))
    data = opened(folder, "hub", validation_fraction=0.0)
    assert len(data.train) == 2
    otherwise = "dataset=imagefolder takes all that can be read"
    assert data.left_out == [
        f"left out: 4 of 6 images, which metadata.{format} does not name; {otherwise}",
        f"left out: 1 image, which the `datasets` library takes for no split; {otherwise}",
    ]
    (folder / "deeper/raw.heic").unlink()
    assert opened(folder).left_out == [
        f"metadata.{format} names 2 of 6 images; all are used (dataset=hub uses only those)"
    ]
    (folder / f"deeper/metadata.{format}").write_text("\n".join(rows).replace("001", "002").replace("deeper/", ""))
    assert opened(folder).left_out == [
        "2 metadata files name 3 of 6 images; all are used (dataset=hub uses only those)"
    ]
    # A table of something else, a damaged one, and a pipe.
    (folder / f"metadata.{format}").write_text("\n".join(rows).replace("file_name", "name"))
    (folder / f"deeper/metadata.{format}").write_bytes(b"file_name\n\xff\xfe\0")
    assert opened(folder).left_out == []
    (folder / f"metadata.{format}").unlink()
    os.mkfifo(folder / f"metadata.{format}")
    assert opened(folder).left_out == []


def test_frames_beyond_the_first(tmp_path: Path, garments: list[Image.Image]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pages = [image.convert("RGB") for image in garments[:6]]
    for ending in ("tiff", "gif", "webp"):
        pages[0].save(folder / f"all.{ending}", save_all=True, append_images=pages[1:])
    pages[0].save(folder / "one.tiff")
    pages[0].save(folder / "one.gif")
    pages[0].save(folder / "more.jpg.png")
    line = (
        "left out: 15 frames of 3 images with several (the first of each is used, of 21 frames in all); "
        "dataset.frames=all uses every frame"
    )
    for _ in range(2):  # also where the cache is there
        assert opened(folder, validation_fraction=0.0).left_out == [line]
    first = Decoder((8, 8), 3, (255, 255, 255), "center", 10**6)(folder / "one.tiff")
    names = find_images(folder).paths
    data = opened(folder, validation_fraction=0.0)
    assert np.array_equal(data.train.load([names.index("all.tiff")])[0].numpy(), first)
    images = open_images(folder, dataset_config("folder", folder, resolution=28), progress=False)
    assert list(images.warnings()) == [f"warning: {line}"]


def test_images_whose_ending_says_nothing(tmp_path: Path, write_images: WriteImages) -> None:
    """As downloads leave them; texts and programs are no images."""
    folder = write_images(tmp_path / "data", 6)
    for name in ("1a2b", "3c4d", "photo.jpg_large", "x.bin"):
        shutil.copy(folder / "001.png", folder / name)
    for name, text in {"README": "PyTorch", "LICENSE": "BM", "a.py": "GIF", "b.bin": "P5"}.items():
        (folder / name).write_text(text)
    os.mkfifo(folder / "pipe")
    line = "4 images (2 in files without an ending, 1 in files that end in .jpg_large, 1 in files that end in .bin)"
    (said,) = opened(folder).left_out
    assert sorted(said) == sorted(f"left out: {line}") and "2 in files without an ending" in said
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(Mistakes, match=r"no images in it \(left out: 4 images \("):
        FolderSource(folder)


def test_what_pillow_half_reads_is_named(tmp_path: Path) -> None:
    apple = b"\x89PNG\r\n\x1a\n\0\0\0\4CgBI\x50\0\x20\2" + bytes(4)
    for data, name in {apple: "PNG as apps", b"P7\nWIDTH 8\n": "PAM", b"SIMPLE  =": "FITS"}.items():
        (tmp_path / "a.png").write_bytes(data.ljust(300))
        with pytest.raises(BrokenImage, match=rf"^{name}.* \(convert to .png\)$"):
            Decoder((8, 8), 1, (0, 0, 0), "center", 10**6)(tmp_path / "a.png")
    assert ".fits" not in decodable()  # of which Pillow forgets the sign
