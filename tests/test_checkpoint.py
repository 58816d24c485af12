"""A checkpoint exists whole or not at all: killed at every line of a save, torn, bit-flipped, missing, foreign."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers.checkpoints import holds, save_step, state

from ddpm_train.runs import checkpoint
from ddpm_train.runs.checkpoint import BadCheckpoint, Retention, prune, published, save, step_name, verify
from ddpm_train.runs.state import read_state
from ddpm_train.runs.stores import newest_on_disk


def test_round_trip(tmp_path: Path) -> None:
    path = save_step(tmp_path, 7)
    assert path == tmp_path / "step_00000007" and holds(path, 7)
    assert {file.name for file in path.iterdir()} == {
        *("unet.safetensors", "ema.safetensors", "state.json", "manifest.json")
    }
    assert newest_on_disk(tmp_path, pytest.fail) == path


def killed_at(line: int, action: Callable[[], Any]) -> bool:
    """Fork a process that SIGKILLs itself at the `line`-th executed line of the saving code; whether it died so."""
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            if not frame.f_code.co_filename.endswith(
                ("ddpm_train/runs/checkpoint.py", "ddpm_train/system/files.py", "shutil.py")
            ):
                return None
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.slow
def test_sigkill_at_every_line_of_a_save(tmp_path: Path) -> None:
    """Whatever the moment, the old checkpoint or the new one is found, whole; the next save needs no help."""
    directory = tmp_path / "checkpoints"
    save_step(directory, 1)

    def save_and_prune() -> None:
        save_step(directory, 2)
        prune(directory, Retention(1, None))

    found = []
    line = 0
    while True:
        line += 1
        died = killed_at(line, save_and_prune)
        path = newest_on_disk(directory, pytest.fail)
        assert path is not None
        step = checkpoint.step_of(path)
        assert holds(path, step)
        found.append(step)
        assert not any(entry.name.startswith(".") for entry in directory.iterdir())
        if not died:
            break
        for leftover in published(directory):
            if leftover.name != step_name(1):
                leftover.rename(tmp_path / f"done_{line}")
        if not (directory / step_name(1)).exists():
            save_step(directory, 1)  # as it was before the save, for the next line
    assert len(found) > 100 and found[0] == 1 and found[-1] == 2
    assert found == sorted(found)


def damage_truncate(path: Path) -> str:
    with (path / "unet.safetensors").open("r+b") as file:
        file.truncate(1000)
    return "unet.safetensors has 1000 bytes, not 16"


def damage_flip(path: Path) -> str:
    data = bytearray((path / "ema.safetensors").read_bytes())
    data[5000] ^= 1
    (path / "ema.safetensors").write_bytes(data)
    return "ema.safetensors has another SHA-256 than its manifest says"


def damage_remove(path: Path) -> str:
    (path / "state.json").unlink()
    return "state.json is missing"


def damage_add(path: Path) -> str:
    (path / "notes.txt").write_text("mine")
    return "notes.txt is foreign"


def damage_manifest(path: Path) -> str:
    (path / "manifest.json").write_text('{"format": 1, "st')
    return "manifest.json cannot be read"


def damage_no_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "no manifest.json"


def damage_swap(path: Path) -> str:
    (path / "manifest.json").write_text((path / "manifest.json").read_text().replace('"step": 2', '"step": 3'))
    return "manifest.json is of step 3"


def damage_empty(path: Path) -> str:
    for file in path.iterdir():
        file.unlink()
    return "no manifest.json"


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    save_step(tmp_path, 1)
    path = save_step(tmp_path, 2)
    what = damage(path)
    with pytest.raises(BadCheckpoint, match=what):
        verify(path, 2)
    warnings: list[str] = []
    assert newest_on_disk(tmp_path, warnings.append) == tmp_path / step_name(1)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: checkpoint step_00000002 is set aside as step_00000002.bad: {what}")
    assert (tmp_path / "step_00000002.bad").is_dir() and not path.exists()
    # The place is free again, and a second bad one does not overwrite the first.
    damage(save_step(tmp_path, 2))
    newest_on_disk(tmp_path, warnings.append)
    assert (tmp_path / "step_00000002.bad-2").is_dir()


def test_a_disk_that_fails_makes_no_checkpoint_a_bad_one(tmp_path: Path) -> None:
    """It is as good as ever once the server of files is back; an older one would compute steps again."""
    save_step(tmp_path, 1)
    path = save_step(tmp_path, 2)
    manifest = (path / "manifest.json").read_bytes()
    (path / "manifest.json").unlink()
    (path / "manifest.json").symlink_to("/proc/self/mem")  # which cannot be read at its beginning
    with pytest.raises(OSError, match="Input/output error"):
        newest_on_disk(tmp_path, print)
    (path / "manifest.json").unlink()
    (path / "manifest.json").write_bytes(manifest)
    assert newest_on_disk(tmp_path, print) == path


def test_retention() -> None:
    steps = [10, 20, 30, 40, 50]
    assert Retention(None, None).to_prune(steps) == []
    assert Retention(1, None).to_prune(steps) == [10, 20, 30, 40]
    assert Retention(2, 20).to_prune(steps) == [10, 30]
    assert Retention(9, None).to_prune(steps) == []


def test_prune_removes_only_what_retention_lets_go(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_step(tmp_path, step)
    prune(tmp_path, Retention(1, 2))
    assert [checkpoint.step_of(path) for path in published(tmp_path)] == [2, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failing_disk_publishes_nothing(tmp_path: Path) -> None:
    """The folder cannot take a file name as a folder: the save fails, and what was there stays."""
    save_step(tmp_path, 1)
    (tmp_path / step_name(2)).write_text("in the way")
    with pytest.raises(OSError):
        save_step(tmp_path, 2)
    assert holds(tmp_path / step_name(1), 1)
    assert not any(entry.name.endswith(".staging") for entry in tmp_path.iterdir())


def test_state_json_keeps_its_keys_and_their_order(tmp_path: Path) -> None:
    values = {
        "step": 7,
        "images_seen": 112,
        "compute": {"mixed_precision": "no", "channels_last": True, "attention": "fused", "compile": False},
        "device": "cpu, 2 threads",
        "micro_batch_size": 16,
        "num_processes": 1,
        "grad_scaler": {},
        "optimizer": {"0.step": 7},
        "identity": {"seed": 0, "dataset content": "abc"},
        "changes": [{"step": 3, "key": "optimizer.lr", "from": 0.1, "to": 0.01}],
        "max_steps": 9,
        "environments": [{"from_step": 0, "device": "cpu, 2 threads"}],
    }
    path = save(tmp_path, 7, state(7), values)
    assert json.dumps(read_state(path).to_json(), indent=1) == (path / "state.json").read_text()
    newer: dict[str, Any] = {"optimizer": {}, "max_steps": None, "environments": []}
    older = {key: value for key, value in values.items() if key not in newer}
    assert read_state(save(tmp_path / "older", 7, state(7), older)).to_json() == {**values, **newer}
