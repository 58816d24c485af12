"""Pipes where files should be are told and not waited for; what killed processes were writing does not stay."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.images import dataset_config

from ddpm_train.cli import flags
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.data.loader import open_data
from ddpm_train.data.paths import path_mistakes
from ddpm_train.evaluation.image_folder import open_images
from ddpm_train.system.files import replace_file, write_atomic
from ddpm_train.training.preflight import PROGRAM


def test_a_pipe_among_images(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    folder = write_images(tmp_path / "images", 4)
    os.mkfifo(folder / "pipe.png")
    dataset = dataset_config("folder", folder, resolution=28, channels=1, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(Mistakes, match=r"1 images cannot be read \(pipe\.png: not a regular file\)"):
        open_images(folder, dataset, progress=False)


@pytest.mark.parametrize("name", ["images.parquet", "clone/state.json", "clone/data/train/dog.png"])
def test_a_pipe_in_what_the_datasets_library_opens(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    (path.parent / "lost").symlink_to("nowhere")
    asked = tmp_path / Path(name).parts[0]
    line = f"dataset.path={asked}: {path} is not a regular file; remove it"
    assert path_mistakes(dataset_config("hub", asked)) == [line]


def test_names_that_are_not_utf_8(tmp_path: Path, write_images: Callable[[Path, int], Path]) -> None:
    """Linux takes any bytes; archives of other systems hold such names."""
    folder = write_images(tmp_path / "images", 3)
    next(folder.iterdir()).rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    values = {"resolution": 8, "validation_fraction": 0.0, "max_broken_fraction": 0.5}
    config = dataset_config("folder", folder, cache_dir=str(tmp_path / "cache"), **values)
    for _ in range(2):  # the second time from the cache
        data = open_data(config, progress=False)
        assert len(data.train) == 3 and data.broken == [("\\udcff.png", "an empty file")]
    with pytest.raises(Mistakes, match=r"^dataset.path=caf\\udce9: not UTF-8; rename it, or for a path make a link"):
        compose_configs(PROGRAM, ["dataset=imagefolder", os.fsdecode(b"dataset.path=caf\xe9")])


def test_a_current_folder_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    (tmp_path / "job").rmdir()
    with pytest.raises(Mistakes, match=r"^the current folder has been deleted; change to one that exists \(cd\)$"):
        compose_configs(PROGRAM, [])


def test_a_pipe_as_a_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(Mistakes, match="--config-name=config: no such file in"):
        flags.read(["--config-path", str(tmp_path)], PROGRAM, sweeps_itself=False)


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    if (writer := os.fork()) == 0:
        with replace_file(path) as staging:
            staging.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)
    (torn,) = tmp_path.iterdir()
    # Of a process that lives, of other hosts today and long ago, and of nobody.
    living, today, long_ago, other = (
        tmp_path / name
        for name in (
            torn.name.replace(str(writer), str(os.getppid())),
            ".images.npz.staging-elsewhere-1",
            ".images.npz.staging-elsewhere-2",
            ".images.npz.staging",
        )
    )
    for file in (living, today, long_ago, other):
        file.touch()
    os.utime(long_ago, (0, 0))
    write_atomic(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert set(tmp_path.iterdir()) == {path, living, today, other}
