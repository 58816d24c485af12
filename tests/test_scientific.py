"""Files of scanners, telescopes and simulations, as the packages that read them ship them: in their own units."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import astropy
import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import zarr
from astropy.io import fits
from helpers.cli import TINY, Cli
from helpers.images import dataset_config

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.array_files import ARRAY_READERS
from ddpm_train.data.loader import Data, open_data
from ddpm_train.data.paths import ARRAY_ENDINGS, path_mistakes

OF_NIBABEL = Path(nibabel.__file__).parent / "tests/data"
OF_ASTROPY = Path(astropy.__file__).parent / "io/fits/tests/data"
OF_PYDICOM = Path(pydicom.__file__).parent / "data/test_files"


def opened(path: Path, size: tuple[int, int], **values: Any) -> Data:
    settings = {"dtype": "auto", "channels": 1, "validation_fraction": 0.0, "num_workers": 0, "resolution": size}
    config = dataset_config("arrays", path, cache_dir=str(path.parent / "cache"), **{**settings, **values})
    assert path_mistakes(config) == []
    return open_data(config, progress=False)


def all_of(data: Data) -> np.ndarray:
    return np.stack([data.train.stored(number) for number in range(len(data.train))])


def head() -> np.ndarray:
    """Two magnetic resonance volumes of nibabel's, int16 [2, 24, 96, 128]."""
    return np.asarray(nibabel.load(OF_NIBABEL / "example4d.nii.gz").dataobj).T


def copy(root: Path, *files: Path) -> Path:
    root.mkdir(exist_ok=True)
    for file in files:
        shutil.copy(file, root)
    return root


def test_each_ending_has_a_reader() -> None:
    assert {*ARRAY_READERS} == {*ARRAY_ENDINGS}


def test_slices_of_nifti(tmp_path: Path) -> None:
    """Also of compressed files, of other byte orders, and of numbers that the file scales."""
    data = opened(copy(tmp_path / "a", OF_NIBABEL / "example4d.nii.gz"), (96, 128))
    assert np.array_equal(all_of(data)[:, 0], head().reshape(48, 96, 128))
    assert data.train.name(30) == "example4d.nii.gz, image 1,6"
    anatomy = OF_NIBABEL / "anatomical.nii"
    data = opened(copy(tmp_path / "b", anatomy), (41, 33))
    assert data.train.prepared.dtype == np.int16  # the file's are of the other byte order
    assert np.array_equal(all_of(data)[:, 0], np.asarray(nibabel.load(anatomy).dataobj).T)
    functional = OF_NIBABEL / "functional.nii"
    data = opened(copy(tmp_path / "c", functional), (21, 17))
    scaled = nibabel.load(functional).get_fdata().T.reshape(60, 21, 17)
    assert data.train.prepared.dtype == np.float32 and np.array_equal(all_of(data)[:, 0], scaled.astype(np.float32))


def test_dicom_in_its_units(tmp_path: Path) -> None:
    ct, mr = (pydicom.dcmread(OF_PYDICOM / f"{name}_small.dcm") for name in ("CT", "MR"))
    assert (ct.RescaleSlope, ct.RescaleIntercept) == (1, -1024)
    files = [OF_PYDICOM / name for name in ("CT_small.dcm", "reportsi.dcm")]  # a report has no image
    data = opened(copy(tmp_path / "ct", *files), (128, 128), max_broken_fraction=0.5)
    assert data.train.prepared.dtype == np.int16
    assert np.array_equal(all_of(data)[0, 0], ct.pixel_array.astype(int) - 1024)
    assert [name for name, _ in data.broken] == ["reportsi.dcm"]
    # Packed by run lengths, and with a fraction for a slope; frames come before rows, and colours last.
    mr.RescaleSlope, mr.RescaleIntercept = "0.5", "10"
    mr.save_as(copy(tmp_path / "mr") / "mr.dcm")
    data = opened(tmp_path / "mr", (64, 64))
    assert data.train.prepared.dtype == np.float32 and np.array_equal(all_of(data)[0, 0], mr.pixel_array / 2 + 10)
    colours = OF_PYDICOM / "SC_rgb_rle_2frame.dcm"
    data = opened(copy(tmp_path / "rgb", colours), (100, 100), channels=3)
    assert np.array_equal(all_of(data), np.moveaxis(pydicom.dcmread(colours).pixel_array, -1, 1))
    # What does not fit into the type is told.
    ct.RescaleSlope = "100"
    ct.save_as(copy(tmp_path / "large") / "ct.dcm")
    with pytest.raises(Mistakes, match=r"holds numbers beyond those of dataset\.dtype=int16"):
        opened(tmp_path / "large", (128, 128))
    assert (
        all_of(opened(tmp_path / "large", (128, 128), dtype="float32")).max() == int(ct.pixel_array.max()) * 100 - 1024
    )


def test_fits(tmp_path: Path) -> None:
    """Integers without a sign, compressed images, scaled ones, and those of several extensions."""
    for name, dtype in {"o4sp040b0_raw": "uint16", "comp": "int16", "scale": "float32"}.items():
        file = OF_ASTROPY / f"{name}.fits"
        with fits.open(file) as found:
            key, expected = next(
                (unit.name or None, unit.data) for unit in found if unit.is_image and unit.data is not None
            )
        assert expected.ndim == 2
        several = key if name == "o4sp040b0_raw" else None
        data = opened(copy(tmp_path / name, file), expected.shape, image_column=several)
        assert data.train.prepared.dtype == dtype and np.array_equal(all_of(data)[0, 0], expected), name
    with pytest.raises(Mistakes) as told:
        opened(copy(tmp_path / "test0", OF_ASTROPY / "test0.fits"), (40, 40), image_column="ERR")
    assert str(told.value) == "dataset.image_column=ERR: test0.fits holds SCI; give SCI"


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip")


def write_zarr(path: Path, arrays: dict[str, np.ndarray]) -> None:
    group = zarr.open_group(path, mode="w")
    for name, array in arrays.items():
        group.create_array(name, data=array)


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_large_files_by_key(tmp_path: Path, kind: str) -> None:
    """Of one file, or several in a folder; what is no image does not count; other pixels are another dataset."""
    path, volumes = tmp_path / f"all.{kind}", head()[:, :4].copy()
    write = write_hdf5 if kind == "h5" else write_zarr
    write(path, {"scans/mr": volumes, "label": np.arange(8)})
    data = opened(path, (96, 128))
    assert np.array_equal(all_of(data)[:, 0], volumes.reshape(8, 96, 128))
    assert data.train.name(5) == f"all.{kind}, image 1,1"
    shutil.copytree(path, tmp_path / f"folder/b.{kind}") if kind == "zarr" else copy(tmp_path / "folder", path)
    folder = opened(tmp_path / "folder", (96, 128))
    assert folder.content == data.content
    # Slices as channels, where there are as many.
    assert np.array_equal(all_of(opened(path, (96, 128), channels=4)), volumes)
    volumes[0, 0, 0, 0] = 77
    write(path, {"scans/mr": volumes})
    assert all_of(opened(path, (96, 128)))[0, 0, 0, 0] == 77
    write(path, {"scans/mr": volumes, "mask": volumes > 0})
    with pytest.raises(Mistakes) as told:
        opened(path, (96, 128))
    given = f"dataset.image_column=null: all.{kind} holds mask, scans/mr; give mask or scans/mr"
    assert str(told.value) == given
    assert opened(path, (96, 128), image_column="scans/mr").train.prepared.dtype == np.int16


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    root = copy(tmp_path / "scans", OF_NIBABEL / "anatomical.nii", OF_NIBABEL / "functional.nii")
    with pytest.raises(Mistakes) as told:
        opened(root, (8, 8))
    assert str(told.value) == (
        f"dataset.path={root}: 2 .nii files: nibabel is not installed; pip install 'ddpm-train[scientific]'"
    )


# As the command line's keys of the tiny model.
SCRIPT = """
import sys, yaml
import ddpm_train

pairs = (each.split("=", 1) for each in sys.argv[2:])
tiny = {key: value if value == "no" else yaml.safe_load(value) for key, value in pairs}
for path in sys.argv[1].split(","):
    dataset = {"name": "arrays", "path": path, "validation_fraction": 0.0, "resolution": 8, "num_workers": 0}
    run = ddpm_train.train(f"outputs/{path}", {**tiny, "train.max_steps": 2, "evaluation": "none"}, dataset=dataset)
    made = run.sample(1, output="np", num_inference_steps=2)
    print(path, made.shape, made.dtype, run.records[-1]["step"])
"""


@pytest.mark.slow
def test_each_kind_trains_and_samples(cli: Cli) -> None:
    """All of real numbers, and each sample is of the type and the range of its source."""
    slices = head()[0]
    copy(cli.folder / "nifti", OF_NIBABEL / "example4d.nii.gz")
    write_hdf5(cli.folder / "all.h5", {"mr": slices.astype(np.float16)})
    write_zarr(cli.folder / "all.zarr", {"mr": slices.astype(np.uint16)})
    (cli.folder / "sky").mkdir()
    sky = fits.getdata(OF_ASTROPY / "comp.fits").astype(np.float32)
    for number in range(20):
        fits.writeto(cli.folder / f"sky/{number}.fits", sky[number * 10 :][:100, :100])
    said = cli.python("-c", SCRIPT, "nifti,all.h5,all.zarr,sky", *TINY)
    found = [line for line in said.splitlines() if "(1, 8, 8, 1)" in line]
    kinds = {"nifti": "int16", "all.h5": "float16", "all.zarr": "uint16", "sky": "float32"}
    assert found == [f"{path} (1, 8, 8, 1) {dtype} 2" for path, dtype in kinds.items()], said


@pytest.mark.slow
def test_tomography_from_files_to_scores(cli: Cli) -> None:
    """A folder of DICOM files trains, and its samples are Hounsfield units, which are scored as files."""
    ct = pydicom.dcmread(OF_PYDICOM / "CT_small.dcm")
    pixels = ct.pixel_array
    (cli.folder / "scans").mkdir()
    for number in range(40):
        ct.PixelData = np.roll(pixels, (3 * number, 7 * number), (0, 1)).tobytes()
        ct.save_as(cli.folder / f"scans/{number}.dcm")
    keys = ("dataset=arrays", "dataset.path=scans", "dataset.value_range=[-1000,2000]", "dataset.validation_fraction=0")
    said = cli.train(*keys, "name=scans", "train.max_steps=2", "evaluation=none", "dataset.resolution=8")
    assert "values     int16: -1000 is -1 for the model, 2000 is 1" in said
    cli.sample("pipeline=outputs/scans", "num_images=16", "num_inference_steps=2", "output=made")
    made = np.stack([np.load(path) for path in sorted((cli.folder / "made/images").iterdir())])
    assert made.dtype == np.int16 and made.shape == (16, 8, 8, 1) and -1000 <= made.min() < made.max() <= 2000
    score = ("pipeline=made", *keys, "dataset.resolution=8", "metrics=[kid]", "dataset.num_workers=0")
    told = cli.evaluate(*score, expect=2)
    assert "extractor.name=efficientnet_lite0: sees pictures of 8 bits in 3 channels, and these are arrays" in told
    cli.evaluate(*score, "extractor.name=pixels", "output=scores")
    (found,) = json.loads((cli.folder / "scores/scores.json").read_text())["scores"]
    assert found["name"] == "kid_pixels_n16" and found["interval"][0] > 0
