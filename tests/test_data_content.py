"""The cache never serves other pixels than the files hold, and serves its own as long as they hold the same."""

import os
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.images import dataset_config, encoded
from PIL import Image

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data import content
from ddpm_train.data.cache import prepare
from ddpm_train.data.decode import Decoder
from ddpm_train.data.images import Images
from ddpm_train.data.loader import open_data
from ddpm_train.data.sources import FolderSource

DECODER = Decoder((8, 8), 1, (255, 255, 255), "center", 10**6)
CELL = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_datasets")
    monkeypatch.setattr(content, "_TICK_SECONDS", -3600)  # what was written a moment ago is kept in mind, too


def picture(value: int) -> bytes:
    """Of one size, whatever the value."""
    return encoded(Image.new("L", (8, 8), value), "BMP")


def overwrite(path: Path, data: bytes) -> None:
    """Give a file another content in place, as far as that is possible without a trace."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # within a tick of the file system's clock nothing shows it
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


def folder(root: Path, values: range) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for index, value in enumerate(values):
        (root / f"{index}.bmp").write_bytes(picture(value))
    return root


def parquet(root: Path, values: range) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array([picture(value) for value in values])}), root / "rows.parquet")
    return root / "rows.parquet"


def parquet_of_paths(root: Path, values: range) -> Path:
    folder(root / "images", values)
    cells = [{"bytes": None, "path": f"images/{index}.bmp"} for index in range(len(values))]
    pq.write_table(pa.table({"image": pa.array(cells, CELL)}), root / "rows.parquet")
    return root / "rows.parquet"


def saved(root: Path, values: range) -> Path:
    cells = {"image": [{"bytes": picture(value), "path": None} for value in values]}
    rows = datasets.Dataset.from_dict(cells, features=datasets.Features({"image": datasets.Image()}))
    rows.save_to_disk(str(root))
    return root


def clone(root: Path, values: range) -> Path:
    folder(root, values)
    (root / "README.md").write_text("# Images in a folder, as `datasets` finds them\n")
    return root


def zipped_clone(root: Path, values: range) -> Path:
    root.mkdir()
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for index, value in enumerate(values):
            archive.writestr(f"deeper/{index}.bmp", picture(value))
    return root


SOURCES = {
    "folder": ("folder", folder),
    "parquet": ("hub", parquet),
    "parquet of paths": ("hub", parquet_of_paths),
    "save_to_disk": ("hub", saved),
    "clone": ("hub", clone),
    "zipped clone": ("hub", zipped_clone),
}


def pixels(images: Images) -> list[int]:
    loaded = images.load(range(len(images)))
    assert bool((loaded == loaded[:, :, :1, :1]).all())
    return loaded[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("cache", ["disk", "none"])
@pytest.mark.parametrize("kind", SOURCES)
def test_pixels_that_change_in_place_are_seen(kind: str, cache: str, tmp_path: Path) -> None:
    """Whatever holds them, with size, time of modification and inode as before."""
    source, make = SOURCES[kind]
    path, other = make(tmp_path / "data", range(10, 14)), tmp_path / "other"
    make(other, range(20, 24))
    column = {"image_column": "image"} if "parquet" in kind else {}
    values = {"cache": cache, "cache_dir": str(tmp_path / "cache"), "validation_fraction": 0.0, "num_workers": 0}
    config = dataset_config(source, path, resolution=8, channels=1, **values, **column)
    before = open_data(config, progress=False)
    assert pixels(before.train) == [10, 11, 12, 13]
    assert open_data(config, progress=False).train.prepared.folder == before.train.prepared.folder
    for file in (tmp_path / "data").rglob("*"):
        if file.suffix in (".bmp", ".arrow", ".zip") or (kind == "parquet" and file.is_file()):
            overwrite(file, (other / file.relative_to(tmp_path / "data")).read_bytes())
    after = open_data(config, progress=False)
    assert pixels(after.train) == [20, 21, 22, 23] and after.content != before.content


def test_what_is_moved_or_copied_is_not_prepared_again(tmp_path: Path) -> None:
    def prepared(root: Path) -> tuple[Path, int]:
        """The cache's folder, and how many caches there are."""
        config = dataset_config("folder", root, resolution=8, channels=1, cache_dir=str(tmp_path / "cache"))
        found = open_data(config, progress=False).train.prepared.folder
        return found, len(list((tmp_path / "cache").glob("*/meta.json")))

    there = folder(tmp_path / "there", range(60))
    first = prepared(there)
    shutil.copytree(there, tmp_path / "copied", copy_function=shutil.copy)  # its times are new, as its inodes are
    assert prepared(tmp_path / "copied") == first
    there.rename(tmp_path / "moved")
    assert prepared(tmp_path / "moved") == first == (first[0], 1)


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that could change once more within the same tick of the file system's clock."""
    root, names = folder(tmp_path / "images", range(200)), [f"{index}.bmp" for index in range(200)]
    os.mkfifo(root / "pipe.bmp")
    names += ["pipe.bmp", "absent.bmp", "a\0b", str(root)]
    read: list[str] = []
    before = content._file_hash
    monkeypatch.setattr(content, "_file_hash", lambda path, stop: read.append(path) or before(path, stop))
    first = content.content_hash(root, names, tmp_path / "cache")
    assert content.content_hash(root, names, tmp_path / "cache") == first and len(read) == len(names)
    (kept,) = (tmp_path / "cache/contents").glob("*[!k]")
    kept.write_text("damaged")
    assert content.content_hash(root, names, tmp_path / "cache") == first and len(read) == 2 * len(names)
    monkeypatch.setattr(content, "_TICK_SECONDS", 3600)
    for _ in range(2):
        assert content.content_hash(root, names, tmp_path / "another") == first
    assert len(read) == 4 * len(names)
    # Where nothing can be kept it is computed all the same.
    assert content.content_hash(root, names, root / "0.bmp") == first
    (root / "0.bmp").write_bytes(picture(99))
    assert content.content_hash(root, names, None) != first


def test_images_that_change_while_they_are_prepared_are_told(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", range(5))

    class Changing(FolderSource):
        def load(self, index: int, decoder: Decoder) -> np.ndarray:
            overwrite(root / "0.bmp", picture(99))
            return super().load(index, decoder)

    with pytest.raises(Mistakes, match="changed while they were prepared"):
        prepare(Changing(root), DECODER, tmp_path / "cache", keep_pixels=True, num_workers=0, progress=False)
    assert not list((tmp_path / "cache").glob("*/meta.json"))
    prepared = prepare(FolderSource(root), DECODER, tmp_path / "cache", keep_pixels=True, num_workers=0, progress=False)
    assert prepared.pixels()[0] == 99
