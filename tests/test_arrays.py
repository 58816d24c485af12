"""Images of any channels and depth: their numbers reach the model by one transform, and come back by its inverse."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from helpers.cli import TINY, Cli
from helpers.images import dataset_config
from helpers.runs import records
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.pixels import PixelValues
from ddpm_train.data.images import DeviceImages
from ddpm_train.data.loader import Data, open_data
from ddpm_train.data.overview import look_at
from ddpm_train.data.split import hold_out
from ddpm_train.diffusion.objective import to_model_range
from ddpm_train.diffusion.pixels import to_model, to_physical, to_uint8
from ddpm_train.evaluation.distribution import kid_between
from ddpm_train.evaluation.features import PixelStatistics
from ddpm_train.models.load import load_model
from ddpm_train.report.dataset import render
from ddpm_train.sampling.export import export_onnx
from ddpm_train.sampling.output import ImageFolder
from ddpm_train.sampling.pipeline import load
from ddpm_train.system.files import LFS_POINTER

Write = Callable[..., Path]
DATA = Path(__file__).parent.parent / "ddpm_train/data/fashion_tiny/train.png"


def clothes(number: int, channels: int = 1) -> np.ndarray:
    """Real images, uint8 [number, 28, 28, channels], whose bands are neighbouring ones."""
    with Image.open(DATA) as mosaic:
        pixels = np.asarray(mosaic)
    tiles = pixels.reshape(-1, 28, pixels.shape[1] // 28, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)
    return np.moveaxis(tiles[: number * channels].reshape(number, channels, 28, 28), 1, -1)


def opened(root: Path, **values: Any) -> Data:
    settings = {"dtype": "auto", "channels": 1, "validation_fraction": 0.0, "resolution": 28, "num_workers": 0}
    config = dataset_config("arrays", root, cache_dir=str(root.parent / "cache"), **{**settings, **values})
    return open_data(config, progress=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A folder of .npy files."""

    def write(*arrays: np.ndarray, name: str = "arrays") -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for number, array in enumerate(arrays):
            np.save(root / f"{number:02}.npy", array)
        return root

    return write


RANGES = {"uint8": (0, 255), "int16": (-1000, 3000), "uint16": (0, 65535), "float16": (-3, 8), "float32": (-1e-3, 0.7)}


@pytest.mark.parametrize("stretch", ["linear", "log", "asinh"])
@pytest.mark.parametrize("dtype", RANGES)
def test_the_transform_has_an_inverse(dtype: Any, stretch: Any) -> None:
    low, high = RANGES[dtype]
    whole = np.dtype(dtype).kind in "iu"
    numbers = np.arange(low, high + 1) if whole else np.linspace(low, high, 10_007)
    images = numbers.astype(dtype).reshape(1, 1, 1, -1)
    values = PixelValues(dtype, (float(low),), (float(high),), stretch)
    x_0 = to_model(values, torch.from_numpy(images))
    assert x_0.dtype == torch.float32
    assert (x_0.min().item(), x_0.max().item()) == pytest.approx((-1, 1), abs=1e-6)
    again = to_physical(values, x_0)
    assert again.dtype == dtype
    if whole:
        assert np.array_equal(again, images)
    else:
        assert np.abs(again.astype(np.float64) - images).max() <= max(np.spacing(np.array(high, dtype)), 1e-6)
    # What lies beyond is clipped.
    assert to_model(values, torch.tensor([[[[low - 1.0, high + 1.0]]]])).flatten().tolist() == pytest.approx(
        [-1, 1], abs=1e-6
    )


def test_bytes_are_what_photographs_are(write: Write) -> None:
    bytes_ = clothes(3)
    values = PixelValues("uint8", (0.0,), (255.0,))
    stored = torch.from_numpy(bytes_).permute(0, 3, 1, 2)
    assert torch.allclose(to_model(values, stored), to_model_range(stored), atol=1e-7)
    data = opened(write(bytes_))
    assert data.values == values and torch.equal(data.train.load(range(3)), stored)


@pytest.mark.parametrize("cache", ["disk", "none"])
@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 13), ("int16", 1), ("float16", 2), ("float32", 5)])
def test_numbers_stay_as_they_are(write: Write, dtype: Any, channels: int, cache: str) -> None:
    arrays = (clothes(4, channels).astype(dtype) * 100 - (0 if dtype == "uint16" else 5000)).astype(dtype)
    one, two, *rest = arrays
    # An image each, whichever way round, and several in a file.
    data = opened(write(one, np.moveaxis(two, -1, 0), np.stack(rest)), channels=channels, cache=cache)
    images, first = data.train, np.moveaxis(arrays, -1, 1)
    assert [images.source.name(index) for index in (0, 1, 2, 3)] == [
        "00.npy",
        "01.npy",
        "02.npy, image 0",
        "02.npy, image 1",
    ]
    assert images.prepared.dtype == dtype
    assert np.array_equal([images.stored(index) for index in range(4)], first)
    # Measured over all, of each channel.
    assert data.values is not None and data.values.dtype == dtype
    assert data.values.low == tuple(first.min(axis=(0, 2, 3)).astype(float).tolist())
    assert data.values.high == tuple(first.max(axis=(0, 2, 3)).astype(float).tolist())
    x_0 = images.load([3, 0])
    assert x_0.dtype == torch.float32 and x_0.abs().max() <= 1
    assert np.allclose(to_physical(data.values, x_0), first[[3, 0]], atol=0.01)
    if cache == "disk":
        resident = DeviceImages(images, torch.device("cpu"))
        assert torch.equal(resident.load(torch.tensor([3, 0])), x_0)


def test_ranges_are_given_or_measured(write: Write) -> None:
    array = np.zeros((2, 100, 100, 2), dtype=np.float32)
    array[0, 0, 0] = 1e6, -1e6
    array[..., 50:, 0] = 10
    root = write(array)
    settings = {"channels": 2, "resolution": 100}
    assert opened(root, **settings).values == PixelValues("float32", (0.0, -1e6), (1e6, 0.0))
    # Of the second, a band of one value but for one pixel.
    assert opened(root, **settings, value_range="percentile").values == PixelValues("float32", (0.0, 0.0), (10.0, 1.0))
    given = opened(root, **settings, value_range=[[0, -1], 20], stretch="asinh").values
    assert given == PixelValues("float32", (0.0, -1.0), (20.0, 20.0), "asinh")


def test_what_was_measured_is_kept_with_the_cache(write: Write, tmp_path: Path) -> None:
    root = write(clothes(3).astype(np.uint16))
    measured = opened(root).values
    (kept,) = (tmp_path / "cache").glob("*/extremes.json")
    kept.write_text("[[3.0], [4.0]]")
    assert opened(root).values == PixelValues("uint16", (3.0,), (4.0,))
    kept.write_text("[[3.0]")
    assert opened(root).values == measured and json.loads(kept.read_text())[0] == [*measured.low]
    opened(root, value_range="percentile")
    assert len([*(tmp_path / "cache").glob("*/percentiles.json")]) == 1


def test_what_ddpm_data_shows_of_arrays(write: Write, tmp_path: Path) -> None:
    """The numbers of each channel in their own units, by the range, and pictures of all channels."""
    arrays = clothes(24, 2).astype(np.float32) * 10 + 1e6
    arrays[3, :5, :5, 0] = np.nan
    settings = {"channels": 2, "dtype": "auto", "resolution": 28, "num_workers": 0, "validation_fraction": 0.2}
    settings |= {"value_range": [1e6, 1e6 + 2000], "cache_dir": str(tmp_path / "cache")}
    overview = look_at(dataset_config("arrays", write(*arrays), **settings), progress=False)
    facts, good = overview.facts, np.delete(arrays, 3, axis=0).astype(np.float64)
    assert [name for name, _ in facts.broken] == ["03.npy"] and facts.kinds == {"arrays of float32": 23}
    assert facts.chroma is None and facts.sizes == {"28": 23}
    for channel, found in enumerate(facts.numbers):
        own = good[..., channel]
        assert (found.least, found.most) == (own.min(), own.max())
        assert (found.mean, found.std) == pytest.approx((own.mean(), own.std()), rel=1e-9)
        assert found.clipped == pytest.approx((own > 1e6 + 2000).mean()) and found.clipped > 0
        assert sum(found.counts) == (own <= 1e6 + 2000).sum()
    x_0 = np.moveaxis(np.clip((good - 1e6) / 1000 - 1, -1, 1), -1, 1)
    kept = [number for number in range(23) if number not in _held_out(23, 0.2)]
    assert facts.mean == pytest.approx(x_0[kept].mean(axis=(0, 2, 3)), abs=1e-6)
    assert facts.std == pytest.approx(x_0[kept].std(axis=(0, 2, 3)), abs=1e-6)
    assert overview.transform[0].pictures[0].size == (56, 28)
    page = render(overview)
    assert "Channel 1" in page and "% beyond the range" in page and "Before and after" not in page


def _held_out(count: int, fraction: float) -> list[int]:
    return hold_out(np.arange(count), fraction).held_out.tolist()


def test_pixels_without_data_are_told_or_filled(write: Write) -> None:
    good, nan, nothing = (clothes(3)[..., 0].astype(np.float32) + np.float32(each) for each in (0, 1, 2))
    nan[1, :5], nothing[2, 3] = np.nan, -9999
    root = write(good[0], nan[1], nothing[2])
    data = opened(root, no_data=-9999, max_broken_fraction=0.9)
    reason = "has pixels without data (NaN, infinity or dataset.no_data); give dataset.fill=NUMBER"
    assert data.broken == [("01.npy", reason), ("02.npy", reason)]
    filled = opened(root, no_data=-9999, fill=-7)
    assert filled.values is not None and filled.values.low == (-7.0,)
    assert (filled.train.stored(1)[0, :5] == -7).all() and (filled.train.stored(2)[0, 3] == -7).all()
    assert np.array_equal(filled.train.stored(1)[0, 5:], nan[1, 5:])


def test_other_sizes_are_fitted_without_rounding_to_bytes(write: Write) -> None:
    rising = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10
    flat = np.full((32, 32), 40_001, dtype=np.uint16)
    data = opened(write(rising, flat), resolution=32)
    found = data.train.stored(0)[0]
    assert found.shape == (32, 32) and len(np.unique(found)) > 256 and (np.diff(found.astype(int)) > 0).all()
    assert found.max() <= rising.max()  # the filter overshoots at edges
    assert (data.train.stored(1) == 40_001).all()
    # Only cropped, nothing changes: what is in the middle of the longer side.
    assert np.array_equal(opened(write(rising, name="crop"), resolution=64).train.stored(0)[0], rising[:, 16:80])


def test_a_column_of_arrays(tmp_path: Path) -> None:
    images = np.moveaxis(clothes(3, 5).astype(np.uint16) * 257, -1, 1)
    features = datasets.Features({"bands": datasets.Array3D((5, 28, 28), "uint16"), "label": datasets.Value("string")})
    rows = {"bands": list(images), "label": ["a", "b", "c"]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
    settings = {"resolution": 28, "channels": 5, "dtype": "auto", "validation_fraction": 0, "num_workers": 0}
    config = dataset_config("hub", tmp_path / "saved", cache_dir=str(tmp_path / "cache"), **settings)
    data = open_data(config, progress=False)
    assert data.train.prepared.dtype == np.uint16
    assert np.array_equal([data.train.stored(index) for index in range(3)], images)


def test_npz_by_name(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    images = clothes(2).astype(np.float32)
    np.savez_compressed(tmp_path / "files/a.npz", image=images, mask=images[..., 0] > 0)
    with pytest.raises(Mistakes, match=r"^dataset.image_column=null: a.npz holds image, mask; give image or mask$"):
        opened(tmp_path / "files")
    data = opened(tmp_path / "files", image_column="image")
    assert np.array_equal(data.train.stored(1)[0], images[1, ..., 0])


def test_tiff_of_many_bands(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra scientific")
    (tmp_path / "files").mkdir()
    images = clothes(3, 13).astype(np.uint16) * 200
    tifffile.imwrite(tmp_path / "files/0.tif", images[0], photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(
        tmp_path / "files/1.tif", np.moveaxis(images[1], -1, 0), photometric="minisblack", compression="zlib"
    )
    tifffile.imwrite(tmp_path / "files/2.TIFF", np.moveaxis(images[2], -1, 0).astype(">u2"), photometric="minisblack")
    data = opened(tmp_path / "files", channels=13)
    assert np.array_equal([data.train.stored(index) for index in range(3)], np.moveaxis(images, -1, 1))


def test_mistakes_are_told_in_a_line(write: Write, tmp_path: Path) -> None:
    def mistake(root: Path, **values: Any) -> str:
        with pytest.raises(Mistakes) as told:
            opened(root, **values)
        (line,) = told.value.lines
        return line

    floats, bands = np.zeros((8, 8), dtype=np.float32), np.zeros((8, 8, 4), dtype=np.float32)
    assert mistake(write(floats, floats.astype(np.uint16), name="mixed")) == (
        "dataset.dtype=auto: the arrays are of several types (float32 and uint16); give uint8, int16, uint16, float16 "
        "or float32, which all are then read as"
    )
    assert opened(tmp_path / "mixed", dtype="float32").train.prepared.dtype == np.float32
    assert mistake(tmp_path / "mixed", dtype="uint16") == (
        "dataset.dtype=uint16: does not hold the numbers of type float32; give float32"
    )
    assert mistake(write(floats.astype(np.float64), name="double")).startswith(
        "dataset.dtype=auto: the arrays are of type float64"
    )
    assert mistake(write(floats, bands, name="ragged")).startswith(
        "dataset.channels=1: 1 of 2 files hold arrays of another shape (01.npy 8x8x4); an image is"
    )
    beyond = "holds numbers beyond those of dataset.dtype=uint8"
    assert beyond in mistake(write(np.full((8, 8), 256), name="beyond"), dtype="uint8")
    for number, odd in enumerate(([("r", "u1")], "complex64", "U1", "M8[s]")):
        for dtype in ("auto", "float32"):
            assert "are no images; give arrays of numbers" in mistake(
                write(np.zeros((8, 8), odd), name=f"odd{number}"), dtype=dtype
            )
    for fill in (-1, 0.5, 256):
        assert f"dataset.fill={float(fill)}: no number of type uint8" in mistake(
            tmp_path / "beyond", dtype="uint8", fill=fill
        )
    (tmp_path / "empty").mkdir()
    assert mistake(tmp_path / "empty").endswith(
        ".fits, .fits.gz, .fit, .nii, .nii.gz or .dcm); give the folder that holds them"
    )
    (line,) = dataset_config("arrays", tmp_path, dtype="auto", group_by="(").mistakes()
    assert line.startswith("dataset.group_by=(: no regular expression")
    pickled = write(name="pickled")
    np.save(pickled / "a.npy", np.array([{}], dtype=object))
    assert "none of its 1 images can be read (a.npy: " in mistake(pickled)


def test_odd_files_are_named_and_the_others_used(write: Write) -> None:
    """None is waited for, and none ends the run."""
    images = clothes(3)[..., 0].astype(np.uint16)
    root = write(images)
    os.mkfifo(root / "b.npy")
    (root / "c.npy").write_bytes(LFS_POINTER)
    np.save(root / "d.npy", images)
    os.truncate(root / "d.npy", 300)
    np.savez(root / "e.npz", images)
    flipped = bytearray((root / "e.npz").read_bytes())
    flipped[500] ^= 1
    (root / "e.npz").write_bytes(flipped)
    data = opened(root, max_broken_fraction=0.9)
    assert len(data.train) == 3 and data.broken == [
        ("b.npy", "not a regular file"),
        ("c.npy", "a Git LFS pointer (git lfs pull)"),
        ("d.npy", "mmap length is greater than file size"),
        *((f"e.npz, image {number}", "Bad CRC-32 for file 'arr_0.npy'") for number in range(3)),
    ]


def test_an_archive_is_read_anew_and_by_exact_names(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for more in range(2):  # in one process, as in a notebook
        images = clothes(2)[..., 0] // 2 + more
        np.savez(tmp_path / "files/a.npz", **{"x": images + 9, "x.npy": images})
        with zipfile.ZipFile(tmp_path / "files/a.npz", "a") as archive:
            archive.writestr("about.txt", "")
        data = opened(tmp_path / "files", image_column="x.npy", cache="none")
        assert np.array_equal(data.train.stored(1)[0], images[1])


def test_one_value_all_over_is_no_mistake(write: Write) -> None:
    for number, (value, expected) in enumerate({-3e38: (-3e38, 0), 1e30: (0, 1e30), 0: (0, 1)}.items()):
        values = opened(write(np.full((28, 28), value, dtype=np.float32), name=f"{number}")).values
        assert values is not None and (*values.low, *values.high) == pytest.approx(expected)


def test_what_a_tiff_file_says_of_its_pages(tmp_path: Path) -> None:
    """The number for no data is GDAL's; a thumbnail is no image; what tifffile gives as zeros is not there."""
    tifffile = pytest.importorskip("tifffile", reason="needs the extra scientific")
    root = tmp_path / "files"
    root.mkdir()
    images = clothes(3)[..., 0].astype(np.float32)
    images[0, 0, :5] = -9999
    gdal = [(42113, "s", 0, "-9999", True)]
    with tifffile.TiffWriter(root / "a.tif") as file:
        file.write(images[1, ::2, ::2], photometric="minisblack", subfiletype=1)
        file.write(images[0], photometric="minisblack", extratags=gdal)
        file.write(images[2, :20], photometric="minisblack")
    tifffile.imwrite(root / "b.ome.tif", images, photometric="minisblack", metadata={"axes": "TYX"})
    (root / "b.ome.tif").write_bytes((root / "b.ome.tif").read_bytes().replace(b'SizeT="3"', b'SizeT="9"'))
    data = opened(root, fill=7, max_broken_fraction=0.9)
    assert len(data.train) == 1 and (data.train.stored(0)[0, 0, :5] == 7).all()
    assert np.array_equal(data.train.stored(0)[0, 1:], images[0, 1:])
    ((name, reason),) = data.broken
    assert name == "b.ome.tif" and reason.startswith("damaged: OME series is missing 6 frames")
    assert data.left_out == [
        "left out: 1 further series of pages in .tif files (the first of each file is used); write each into a file of "
        "its own",
        "no data: -9999, which 1 file call so; dataset.no_data names another number",
    ]


ARRAYS = (*TINY, "dataset=arrays", "dataset.path=scenes", "dataset.channels=5", "name=scenes", "model.dropout=0")


@pytest.mark.slow
def test_a_run_of_arrays(cli: Cli) -> None:
    """Trains, goes on, and is another run with another range; its model knows what its numbers mean."""
    (cli.folder / "scenes").mkdir()
    np.save(cli.folder / "scenes/all.npy", clothes(64, 5).astype(np.float32) / 10 - 3)
    keys = (*ARRAYS, "dataset.validation_fraction=0.25", "evaluation.first_step=null")
    assert "  values     float32: -3 is -1 for the model, " in cli.train(*keys, "train.max_steps=4")
    assert "resumes at step 4" in cli.train(*keys)
    said = cli.train(*keys, "train.max_steps=8", "dataset.value_range=percentile", expect=2)
    assert "would make another run" in said and "pixel values" in said and "dataset.value_range" not in said
    run = cli.folder / "outputs/scenes"
    assert all("held_out_loss" in record for record in records(run) if record["step"] in (4, 6))
    with Image.open(run / "samples/step_00000006.png") as grid:
        assert grid.mode == "L"  # all bands, none of them left out
    values = [load_model(str(path)).values for path in (run / "pipeline", run / "checkpoints/step_00000006")]
    assert values[0] == values[1] and values[0] is not None and len(values[0].low) == 5
    # By the recorded numbers it runs again, wherever the arrays are then.
    config = yaml.safe_load((run / "config.yaml").read_text())["dataset"]
    assert config["dtype"] == "float32" and config["value_range"] == [[*values[0].low], [*values[0].high]]
    again = opened(cli.folder / "scenes", **{key: config[key] for key in ("dtype", "value_range", "channels")})
    assert again.values == values[0]
    assert _samples_come_back(cli, values[0])
    scores = _scores(cli)
    assert scores.keys() == {"kid_pixels_n16", "copy_rate_pixels_n16", "held_out_loss"}
    assert scores["kid_pixels_n16"]["interval"][0] > 0  # of a model that has learned nothing yet
    with Image.open(run / "evaluation/nearest.png") as nearest:
        assert nearest.mode == "L"
    assert "pixel statistics" in (run / "report.html").read_text()


def _samples_come_back(cli: Cli, values: PixelValues) -> bool:
    """In the units and the type of the training images, as files that can be trained on."""
    keys = ("pipeline=outputs/scenes", "num_images=4", "num_inference_steps=2", "mixed_precision=no", "output=made")
    assert f"  values     {values}\n" in cli.sample(*keys)
    made = np.stack([np.load(cli.folder / f"made/images/{index:06}.npy") for index in range(4)])
    assert made.dtype == np.float32 and made.shape == (4, 8, 8, 5)
    pipeline = load(cli.folder / "outputs/scenes", mixed_precision="no")
    assert np.array_equal(pipeline.sample(4, num_inference_steps=2, output="np"), made)
    with pytest.raises(Mistakes, match=r"^from_image=.*this model makes arrays; leave it out$"):
        pipeline.sample(1, from_image=Image.new("RGB", (8, 8)), strength=0.5)
    with pytest.raises(Mistakes, match=r"^format=onnx: .*, and this model makes arrays$"):
        export_onnx(pipeline.model, cli.folder / "onnx")
    assert (made.min(axis=(0, 1, 2)) >= np.float32(values.low)).all()
    assert (made.max(axis=(0, 1, 2)) <= np.float32(values.high)).all()
    x_0 = to_model(values, torch.from_numpy(made).permute(0, 3, 1, 2))
    assert np.allclose(np.moveaxis(pipeline.to_physical(x_0), 1, -1), made, atol=1e-5)
    # Five bands and no sixth, of each of four images: two rows of three, 8 pixels wide, enlarged.
    (picture, *_), (frame, *_) = pipeline.sample(1), pipeline.trajectory(1, num_inference_steps=2)
    assert picture.mode == frame.mode == "L" and picture.size == (24, 16)
    assert "format=png: holds pictures of 8 bits, and this model makes arrays of float32 in 5 channels" in cli.sample(
        *keys, "format=png", expect=2
    )
    cli.sample(*keys, "format=npz")
    with np.load(cli.folder / "made/images.npz") as archive:
        assert np.array_equal(archive["arr_0"], made)
    again = opened(cli.folder / "made/images", channels=5, resolution=8).train
    return np.array_equal(again.stored(3), np.moveaxis(made[3], -1, 0))


def _scores(cli: Cli) -> dict[str, Any]:
    keys = ("pipeline=outputs/scenes", "num_images=16", "num_inference_steps=2", "mixed_precision=no", "batch_size=16")
    metrics = "metrics=[kid,copy_rate,held_out_loss]"
    assert "extractor.name=efficientnet_lite0: sees pictures of 8 bits in 3 channels, and these are arrays; use" in (
        cli.evaluate(*keys, metrics, expect=2)
    )
    cli.evaluate(*keys, metrics, "extractor.name=pixels")
    scores = json.loads((cli.folder / "outputs/scenes/evaluation/scores.json").read_text())["scores"]
    return {score["name"]: score for score in scores}


def test_statistics_of_pixels() -> None:
    """They tell other textures and other numbers apart from what is only another choice of images."""
    images = torch.from_numpy(clothes(120, 2)).permute(0, 3, 1, 2).double() / 127.5 - 1
    real, unseen = images[:60].float(), images[60:].float()
    extractor = PixelStatistics((2, 28, 28), torch.device("cpu"))
    assert extractor(real).shape == (60, extractor.dimension)
    # The same pixels, whether they come as bytes or not.
    as_bytes = to_uint8(real)
    assert torch.allclose(extractor(as_bytes), extractor(to_model_range(as_bytes)))

    def kid(samples: torch.Tensor) -> Any:
        return kid_between(extractor(samples), extractor(real))

    blurred = torch.nn.functional.avg_pool2d(unseen, 3, stride=1, padding=1)
    brighter = (unseen + 0.3).clamp(-1, 1)
    same = kid(unseen)
    for other in (kid(blurred), kid(brighter), kid(unseen.flip(1) * torch.tensor([1.0, -1.0])[:, None, None])):
        assert other.interval[0] > same.interval[1], (other, same)


@pytest.mark.parametrize("ending", ["npy", "tiff", "png"])
@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 13), ("float32", 1), ("uint8", 3)])
def test_files_of_samples(tmp_path: Path, ending: str, dtype: Any, channels: int) -> None:
    if ending == "tiff":
        pytest.importorskip("tifffile", reason="needs the extra scientific")
    if ending == "png" and dtype != "uint8":
        return
    (tmp_path / "images").mkdir()
    folder, pixels = ImageFolder(tmp_path, ending), clothes(1, channels)[0].astype(dtype)
    folder.save(0, pixels)
    again = folder.load(0)
    assert again.dtype == dtype and np.array_equal(again, pixels)
    assert folder.missing(2) == [1]
    (file,) = (tmp_path / "images").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert folder.missing(1) == [0]  # torn
