"""`dataset.frames=all`: every frame of an animation and every page of a document is an image of its own."""

import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.cli import Cli
from helpers.images import dataset_config, encoded
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data import decode_all
from ddpm_train.data.decode import BrokenImage, Decoder
from ddpm_train.data.frames import MOST_FRAMES, FrameReader
from ddpm_train.data.loader import Data, open_data
from ddpm_train.data.order import image_indices
from ddpm_train.data.paths import unused_mistakes
from ddpm_train.data.sources import FolderSource
from ddpm_train.data.split import hold_out
from ddpm_train.evaluation.image_folder import open_images

SIDE = 8
CLEAR, RED, GREEN = (0, 0, 0, 0), (255, 0, 0, 255), (0, 255, 0, 255)


def opened(path: Path, **values: object) -> Data:
    settings = {"frames": "all", "resolution": SIDE, "validation_fraction": 0.0, "num_workers": 0, **values}
    cache = str(path.parent / "cache")
    return open_data(
        dataset_config(str(settings.pop("source", "folder")), path, cache_dir=cache, **settings), progress=False
    )


def pixels(data: Data) -> np.ndarray:
    """uint8 [N, H, W, C]"""
    return data.train.load(range(len(data.train))).numpy().transpose(0, 2, 3, 1)


def flat(colour: object, mode: str = "RGB", side: int = SIDE) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def animation(images: list[Image.Image], format: str = "GIF", **options: object) -> bytes:
    return encoded(images[0], format, save_all=True, append_images=images[1:], **options)


def column(number: int, colour: tuple[int, int, int, int]) -> Image.Image:
    """Transparent but for one column."""
    image = flat(CLEAR, "RGBA")
    image.paste(colour, (number, 0, number + 1, SIDE))
    return image


def shown(*columns: tuple[int, tuple[int, int, int, int]]) -> np.ndarray:
    """Columns over white."""
    picture = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    for number, colour in columns:
        picture[:, number] = colour[:3]
    return picture


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of files with several frames, and what each of its images shows, in order."""
    folder = tmp_path / "data"
    folder.mkdir()
    moving = [column(2, RED), column(5, GREEN), column(6, RED)]
    greys = [flat((level,) * 3) for level in (10, 20, 30)]
    (folder / "a.gif").write_bytes(animation(moving, disposal=2))  # each is taken away before the next
    (folder / "b.png").write_bytes(animation(moving, "PNG", disposal=0, blend=1))  # each is drawn over those before it
    # Its first picture is for programs that know no animation.
    (folder / "c.png").write_bytes(animation([flat(99), *greys], "PNG", default_image=True))
    greys[0].save(folder / "d.jpg", quality=100)
    (folder / "e.webp").write_bytes(animation(greys, "WEBP", lossless=True))
    pages = [
        flat(10, "L", 16),
        Image.fromarray(np.full((8, 12), 20 * 257, dtype=np.uint16)),
        flat((30, 30, 30), side=40),
    ]
    (folder / "f.tiff").write_bytes(animation(pages, "TIFF"))
    (folder / "g.avif").write_bytes(animation(greys, "AVIF", quality=100, subsampling="4:4:4"))
    return folder


WHAT_IS_SHOWN = [
    *([(2, RED)], [(5, GREEN)], [(6, RED)]),
    *([(2, RED)], [(2, RED), (5, GREEN)], [(2, RED), (5, GREEN), (6, RED)]),
    *(10, 20, 30, 10, 10, 20, 30, 10, 20, 30, 10, 20, 30),
]


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_every_frame_is_an_image_as_viewers_show_it(
    source: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_datasets")
    path = files
    if source == "hub":
        rows = [{"bytes": file.read_bytes(), "path": None} for file in sorted(files.iterdir())]
        features = datasets.Features({"image": datasets.Image()})
        path = tmp_path / "rows.parquet"
        datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(str(path))
    values = [shown(*each) if isinstance(each, list) else np.full((SIDE, SIDE, 3), each) for each in WHAT_IS_SHOWN]
    data = opened(path, source=source)
    assert data.broken == data.left_out == []
    assert np.abs(pixels(data).astype(int) - values).max() <= 1
    assert data.frames_text == "18 of 19 images are frames of 6 files"
    assert data.train.prepared.usable.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]
    assert data.train.prepared.frames.tolist() == [0, 1, 2, 0, 1, 2, 1, 2, 3, 0, *[0, 1, 2] * 3]
    without_cache = opened(path, source=source, cache="none")
    assert np.array_equal(pixels(without_cache), pixels(data)) and without_cache.content == data.content
    first = opened(path, source=source, frames="first")
    assert len(first.train) == 7 and first.frames_text is None and first.content != data.content
    assert first.left_out == [
        "left out: 13 frames of 6 images with several (the first of each is used, of 20 frames in all); "
        "dataset.frames=all uses every frame"
    ]


def gif(*frames: tuple[int, int, int]) -> bytes:
    """Of red columns from one to before another one, each with what becomes of them before the next frame."""
    data = b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0xF0, 0, 0) + bytes((9, 9, 9, *RED[:3]))
    for first, last, disposal in frames:
        columns = Image.new("P", (last - first, SIDE), 1)
        columns.putpalette((9, 9, 9, *RED[:3]))
        alone = encoded(columns, "GIF", optimize=False)
        data += b"\x21\xf9\4" + bytes((disposal << 2, 0, 0, 0, 0))
        data += b"\x2c" + struct.pack("<4HB", first, 0, last - first, SIDE, 0) + alone[alone.index(b"\x2c") + 10 : -1]
    return data + b";"


KEPT, CLEARED, UNDONE = 1, 2, 3


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([(2, 4, KEPT), (5, 6, KEPT)], ["2 3", "2 3 5"]),
        ([(2, 4, CLEARED), (5, 6, CLEARED), (6, 7, KEPT)], ["2 3", "5", "6"]),
        ([(2, 4, UNDONE), (5, 6, UNDONE), (6, 7, KEPT)], ["2 3", "5", "6"]),
        ([(0, 8, CLEARED), (5, 6, KEPT)], ["0 1 2 3 4 5 6 7", "5"]),
        ([(0, 8, KEPT), (5, 6, CLEARED), (6, 7, KEPT)], ["0 1 2 3 4 5 6 7", "0 1 2 3 4 5 6 7", "0 1 2 3 4 6 7"]),
    ],
)
def test_what_no_frame_of_a_gif_paints_is_transparent(frames: list[tuple[int, int, int]], expected: list[str]) -> None:
    """Its palette's first colour, and its background colour, are shown nowhere."""
    decoder = Decoder((SIDE, SIDE), 3, (255, 255, 255), "center", 10**6, frames="all")
    reader = FrameReader(**vars(decoder))
    for number, columns in enumerate(expected):
        picture = shown(*((int(column), RED) for column in columns.split())).transpose(2, 0, 1)
        for each in (reader, decoder):  # one after the other, and at once
            assert np.array_equal(each.at(number)(gif(*frames)), picture)
    assert len(reader.numbers) == len(frames)


def test_each_file_is_opened_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    before = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: read.append(file) or before(file, **options))
    for frames in ("all", "first"):
        opened(files, frames=frames, value_range=[0, 65535])
        assert len(read) == len({*read}) == 7
        read.clear()


def test_pages_that_are_copies_or_masks_of_others_are_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    # Copied to memory: Pillow writes tags of a single page only.
    pages = [(flat(10, "L"), 0), (flat(11, "L", 4), 1), (flat(20, "L"), 2), (flat(255, "1"), 4)]
    (tmp_path / "data/pages.tiff").write_bytes(tiff(pages))
    assert pixels(opened(tmp_path / "data", channels=1))[:, 0, 0, 0].tolist() == [10, 20]
    assert opened(tmp_path / "data", channels=1, frames="first").train.prepared.unused_frames == (1, 1)


def test_the_first_page_that_is_no_copy_is_the_picture(tmp_path: Path) -> None:
    """Scanners and cameras put a thumbnail before it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scan.tiff").write_bytes(tiff([(flat(11, "L", 4), 1), (flat(10, "L"), 0), (flat(20, "L"), 2)]))
    (tmp_path / "data/thumbnail.tiff").write_bytes(tiff([(flat(12, "L", 4), 1)]))
    assert pixels(opened(tmp_path / "data", channels=1))[:, 0, 0, 0].tolist() == [10, 20, 12]
    first = opened(tmp_path / "data", channels=1, frames="first")
    assert pixels(first)[:, 0, 0, 0].tolist() == [10, 12] and first.train.prepared.unused_frames == (1, 1)
    samples, sub_files = (struct.pack("<2H", tag, 4) for tag in (277, 330))
    raw = (tmp_path / "data/thumbnail.tiff").read_bytes().replace(samples, sub_files)
    with pytest.raises(BrokenImage, match="a raw photo, of which Pillow reads a preview alone"):
        Decoder((8, 8), 1, (0, 0, 0), "center", 10**6)(raw)


def tiff(pages: list[tuple[Image.Image, int]]) -> bytes:
    """Uncompressed pages of at most 8 bits, each with its NewSubfileType."""
    data = b"II*\0" + bytes(4)
    link = 4
    for image, kind in pages:
        place, raw = len(data), image.convert("L").tobytes()
        data += raw
        tags = {
            254: kind,
            256: image.width,
            257: image.height,
            258: 8,
            259: 1,
            262: 1,
            273: place,
            277: 1,
            279: len(raw),
        }
        data = data[:link] + len(data).to_bytes(4, "little") + data[link + 4 :]
        entries = (
            b"".join(value.to_bytes(size, "little") for value, size in ((tag, 2), (4, 2), (1, 4), (number, 4)))
            for tag, number in tags.items()
        )
        data += len(tags).to_bytes(2, "little") + b"".join(entries)
        link = len(data)
        data += bytes(4)
    return data


def test_broken_frames_and_claims(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    noise = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)) for seed in range(4)]
    stack = bytearray(animation(noise, "TIFF", compression="tiff_adobe_deflate"))
    second = stack.index(b"\x78", stack.index(b"\x78") + 200)
    stack[second : second + 60] = bytes(60)
    (folder / "a.tiff").write_bytes(stack)
    gif = animation(noise)
    (folder / "b.gif").write_bytes(gif[: len(gif) * 5 // 8])
    png = animation(noise, "PNG")
    (folder / "c.png").write_bytes(claiming(png, 10**6))
    (folder / "d.tiff").write_bytes(tiff([(flat(1, "L"), 0), (flat(2, "L", 200), 0), (flat(3, "L"), 0)]))
    # Its second picture would be of 4 gigapixels, which are cleared before the next.
    parts = re.split(rb"(,\0\0\0\0\x08\0\x08\0)", animation(noise, disposal=2), maxsplit=2)
    parts[3] = parts[3].replace(b"\x08\0", b"\xff\xff")
    (folder / "e.gif").write_bytes(b"".join(parts))
    (folder / "f.gif").write_bytes(b"GIF89a")
    with pytest.raises(Mistakes, match=r"^dataset.max_broken_fraction=0.01: 6 of 18 images cannot be read"):
        opened(folder, max_pixels=1000)
    data = opened(folder, max_pixels=1000, max_broken_fraction=0.5)
    names, reasons = zip(*data.broken, strict=True)
    assert list(names) == [
        "a.tiff, frame 2",
        "b.gif, frame 3",
        "c.png, frame 5",
        "d.tiff, frame 2",
        "e.gif, frame 2",
        "f.gif",
    ]
    lost = ["the frames after it are lost, too" in reason for reason in reasons]
    assert lost == [False, False, True, False, True, False], data.broken
    assert "megapixels, more than dataset.max_pixels=1000" in reasons[3]
    assert "is larger than dataset.max_pixels=1000" in reasons[4]
    kept = data.train.prepared
    assert list(zip(kept.usable.tolist(), kept.frames.tolist(), strict=True)) == [
        *((0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 2), (4, 0))
    ]
    again = opened(folder, max_pixels=1000, max_broken_fraction=0.5, cache="none")
    assert np.array_equal(pixels(again), pixels(data))


def claiming(png: bytes, number: int) -> bytes:
    """The animated PNG, as if it had so many frames."""
    start = png.index(b"acTL")
    chunk = b"acTL" + number.to_bytes(4) + bytes(4)
    return png[:start] + chunk + zlib.crc32(chunk).to_bytes(4) + png[start + 16 :]


def test_files_of_very_many_frames(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    head = b"GIF89a\x01\0\x01\0\x80\0\0" + b"\0\0\0\xff\xff\xff"
    frames = b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0" * (2 * MOST_FRAMES)
    (tmp_path / "data/many.gif").write_bytes(head + frames + b";")
    data = opened(tmp_path / "data", channels=1, resolution=1)
    assert len(data.train) == MOST_FRAMES and data.left_out == ["left out: the frames after the first 10,000 of 1 file"]
    (line,) = opened(tmp_path / "data", frames="first").left_out
    assert line.startswith("left out: at least 10,000 frames of 1 image")
    page = (flat(7, "L", 1), 0)
    stack = tiff([page] * 3)
    # The last page is followed by the first, for ever.
    (tmp_path / "data/many.gif").unlink()
    (tmp_path / "data/circle.tiff").write_bytes(stack[:-4] + stack[4:8])
    assert len(opened(tmp_path / "data", channels=1).train) == 3


def test_workers_prepare_the_same(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of what has more frames than a worker sends at once."""
    frames = [flat((level, 0, 0), side=2) for level in range(8)]
    (files / "c.gif").write_bytes(animation(frames))
    large = {"resolution": 1024}
    alone = opened(files, **large)
    monkeypatch.setattr(decode_all, "_ALONE_SECONDS", 0)
    monkeypatch.setattr(decode_all, "_PACE_SECONDS", 0)
    sent = decode_all._most_sent(decode_all.FrameReader((1024, 1024), 3, (255, 255, 255), "center", 10**6))
    assert sent < len(frames)
    source = FolderSource(files)
    decoder = replace(alone.train.decoder, frames="all")
    found = list(decode_all.decode_all(source, decoder, 1, files.parent))
    assert [each.item for each in found] == alone.train.prepared.usable.tolist()
    assert np.array_equal([each.pixels for each in found], alone.train.load(range(len(found))))


def test_files_are_held_out_whole(tmp_path: Path) -> None:
    alone = np.flatnonzero(np.arange(1000) % 10)  # some images are broken
    train, held_out, divided = hold_out(alone, 0.1)
    order = image_indices(np.arange(900), 900, 0)
    assert (
        held_out.tolist() == sorted(order[:90].tolist())
        and train.tolist() == sorted(order[90:].tolist())
        and not divided
    )
    files = np.repeat(np.arange(100), 7)
    train, held_out, divided = hold_out(files, 0.1)
    assert (
        len(held_out) == 70
        and len({*files[held_out]}) == 10
        and not {*files[held_out]} & {*files[train]}
        and not divided
    )
    assert [len(rows) for rows in hold_out(np.array([0] * 900 + [*range(1, 101)]), 0.05)[:2]] == [950, 50]
    assert [len(rows) for rows in hold_out(files, 0)[:2]] == [700, 0]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "only.gif").write_bytes(animation([flat((level,) * 3) for level in range(20)]))
    data = opened(folder, validation_fraction=0.1)
    assert (len(data.train), len(data.validation or ())) == (18, 2)
    (line,) = data.selection.warnings
    assert line.startswith("dataset.validation_fraction=0.1: no file has so few frames, so single frames")


def test_pages_of_one_dataset_have_one_range_of_values(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pages = [Image.fromarray(np.full((8, 8), value, dtype=np.uint16)) for value in (200, 25700, 65535)]
    (tmp_path / "data/stack.tiff").write_bytes(animation(pages, "TIFF"))
    data = opened(tmp_path / "data", channels=1)
    assert pixels(data)[:, 0, 0, 0].tolist() == [1, 100, 255] and "(3 of 3 looked at)" in str(data.greys)


def test_pages_to_be_scored_have_one_size(files: Path) -> None:
    config = dataset_config("folder", files, resolution=SIDE, frames="all", cache_dir=str(files.parent / "cache"))
    with pytest.raises(Mistakes, match=r"images of 4 sizes \(6 of 8x8, 1 of 16x16, 1 of 8x12\)"):
        open_images(files, config, progress=False)
    (files / "f.tiff").unlink()
    assert len(open_images(files, config, progress=False).train) == 16


def test_where_frames_mean_nothing() -> None:
    (line,) = unused_mistakes(dataset_config("embedded", "fashion_tiny", frames="all"))
    assert line == "dataset.frames=all: means nothing for the images of this package; leave it out"
    assert Decoder((8, 8), 1, (0, 0, 0), "center", 10**6).frames == "first"


def test_a_run_tells_how_many(cli: Cli, files: Path) -> None:
    mine = (
        "dataset=imagefolder",
        f"dataset.path={files}",
        "dataset.cache=none",
        "train.batch_size=4",
        "train.max_steps=2",
    )
    also = ("evaluation=none", "tracker=none", "dataset.num_workers=1")
    said = cli.train(*mine, *also, "dataset.frames=all")
    assert "  frames     18 of 19 images are frames of 6 files\n" in said
    assert said.count("warning") == 1 and "will show noise, or spots of colour" in said
    said = cli.train(*mine, *also, expect=2)
    assert "dataset content" in said
