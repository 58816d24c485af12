"""Pipes where files should be are told and not waited for; what killed processes were writing does not stay."""

import ctypes
import importlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import huggingface_hub as hub
import pytest
from helpers.images import dataset_config
from huggingface_hub import constants

from ddpm_train.cli import flags
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.data.loader import open_data
from ddpm_train.data.paths import path_mistakes
from ddpm_train.evaluation.image_folder import open_images
from ddpm_train.hub.access import find_commit
from ddpm_train.system.failures import imported_in_vain
from ddpm_train.system.files import fsync_path, replace_file, replace_folder, write_atomic
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


def test_a_folder_that_cannot_be_flushed(tmp_path: Path) -> None:
    """As on CIFS and vboxsf; a broken disk is told all the same."""
    with pytest.raises(OSError, match="Invalid argument"):
        fsync_path(Path("/proc/self/status"))
    fsync_path(Path("/proc/self"))


def test_a_folder_that_came_with_a_container(tmp_path: Path) -> None:
    """A lower layer of overlayfs, of which folders cannot be renamed."""
    for name in ("lower/pipeline", "upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/pipeline/old").touch()
    layers = ",".join(f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work"))
    mount = ["mount", "-t", "overlay", "-o", f"{layers},redirect_dir=off", "overlay", tmp_path / "merged"]
    if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("mounting an overlay needs root")
    try:
        with replace_folder(tmp_path / "merged/pipeline") as staging:
            (staging / "new").touch()
        assert [str(path.relative_to(tmp_path / "merged")) for path in (tmp_path / "merged").rglob("*")] == [
            "pipeline",
            "pipeline/new",
        ]
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)


def test_certificates_and_tokens_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client opens them without saying which file it was, or who had named it."""
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def problem() -> str | None:
        hub.close_session()
        return find_commit("model", "owner/name", None, key="model.pretrained", revision_key="")[1]

    (tmp_path / "token").write_bytes(b"\xff\xfeh\0")
    assert problem() == f"the token in {tmp_path}/token is no text (hf auth login stores it anew)"
    (tmp_path / "token").unlink()
    with monkeypatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", "/nowhere.pem")
        assert problem() == "SSL_CERT_FILE=/nowhere.pem cannot be used: [Errno 2] No such file or directory"
    monkeypatch.setattr(constants, "ENDPOINT", "hub.example")
    assert problem() == "HF_ENDPOINT=hub.example does not begin with https://"
    hub.close_session()


def test_a_library_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may read the environment, or miss a library of its own; what its functions raise later is something else."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outer_library.py").write_text("import inner_library\n")
    (tmp_path / "inner_library.py").write_text("def fail():\n    int('10s')\nfail()\n")
    with pytest.raises(ValueError, match="10s") as raised:
        importlib.import_module("outer_library")
    line = "inner_library cannot be imported: invalid literal for int() with base 10: '10s'"
    assert imported_in_vain(raised.value) == line
    with pytest.raises(RuntimeError) as later:  # as diffusers does
        raise RuntimeError("Failed to import") from raised.value
    assert imported_in_vain(later.value) == line
    (tmp_path / "inner_library.py").write_text("def fail():\n    int('10s')\n")
    with pytest.raises(ValueError, match="10s") as raised:
        importlib.import_module("outer_library").inner_library.fail()
    assert imported_in_vain(raised.value) is None


def test_a_system_of_odd_names_and_without_proc(tmp_path: Path) -> None:
    """Sandboxes lack /proc, by which living processes are told from dead ones; Linux takes any name of a host."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if ctypes.CDLL(None).unshare(0x20000 | 0x4000000):  # CLONE_NEWNS, CLONE_NEWUTS
                os._exit(77)
            socket.sethostname("rack/7")
            write_atomic(tmp_path / "file", b"whole")
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
            compose_configs(PROGRAM, [])
        except Mistakes as mistakes:
            (tmp_path / "said").write_text(str(mistakes))
            code = 0
        finally:
            os._exit(code)
    if (code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) == 77:
        pytest.skip("needs root")
    assert code == 0 and (tmp_path / "file").read_bytes() == b"whole"
    assert (tmp_path / "said").read_text().startswith("/proc: not mounted")


def test_a_folder_that_cannot_be_removed_is_stepped_round(tmp_path: Path) -> None:
    """NFS keeps what another process has open; here something is mounted there, which the system refuses as well."""
    left, new = tmp_path / ".pipeline.old", tmp_path / "pipeline"
    for folder in (left, new):
        folder.mkdir()
        (folder / "weights").write_text("old")
    child = os.fork()
    if child == 0:
        try:
            libc = ctypes.CDLL(None)
            if libc.unshare(0x20000):  # CLONE_NEWNS
                os._exit(77)
            held = str(left / "weights").encode()
            if libc.mount(None, b"/", None, 0x44000, None) or libc.mount(held, held, None, 0x1000, None):
                os._exit(77)
            for text in ("new", "newer"):
                with replace_folder(new) as staging:
                    (staging / "weights").write_text(text)
            os._exit(0 if (left / "weights").exists() else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    if (code := os.waitstatus_to_exitcode(status)) == 77:
        pytest.skip("needs a mount namespace of its own")
    assert code == 0 and (new / "weights").read_text() == "newer"
    with replace_folder(new):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
