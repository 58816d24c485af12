"""A damaged checkpoint is named and set aside, and the one before it is taken, whatever the damage."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers.checkpoints import holds, save_step

from ddpm_train.runs import mirror
from ddpm_train.runs.mirror import Mirror
from ddpm_train.runs.state import read_state
from ddpm_train.runs.stores import fetch_newest, newest_on_disk

STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 10**30, "", "..", "a/../../b", "\x1b[31m\n", [], {}, [[]], {"bytes": {}}, float("nan")),
    *("x" * 100_000, list(range(1000)), {str(number): None for number in range(1000)}),
)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def flip_bits(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 3)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def append(path: Path, random: Random) -> None:
    with path.open("ab") as file:
        file.write(random.randbytes(random.randint(1, 2000)))


def empty(path: Path, random: Random) -> None:
    path.write_bytes(random.choice((b"", b"\0" * path.stat().st_size, b"[" * 100_000, b"\xff\xfe")))


def remove(path: Path, random: Random) -> None:
    path.unlink()


def replace_by_pipe(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def replace_by_unreadable(path: Path, random: Random) -> None:
    """Reading it is an I/O error, as on a dying disk."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def replace_by_a_loop(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def swap(path: Path, random: Random) -> None:
    other = random.choice([each for each in sorted(path.parent.iterdir()) if each != path])
    data, others = path.read_bytes(), other.read_bytes()
    path.write_bytes(others)
    other.write_bytes(data)


def take_from_the_one_before(path: Path, random: Random) -> None:
    shutil.copyfile(path.parent.parent / "step_00000001" / path.name, path)


def add_a_foreign_file(path: Path, random: Random) -> None:
    (path.parent / random.choice(("notes.txt", "\x1b[2J", "x" * 255, ".hidden", "é\n"))).write_text("mine")


def change_json(path: Path, random: Random) -> None:
    """Other values or keys in the manifest, or in the state with a manifest that agrees."""
    name = random.choice(("manifest.json", "state.json"))
    file = path.parent / name
    values = json.loads(file.read_text())
    place: Any = values
    while True:
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and random.random() < 0.7:
            place = place[key]
            continue
        break
    if isinstance(place, dict) and random.random() < 0.3:
        del place[key]
    else:
        place[key] = random.choice(STRANGE)
    file.write_text(json.dumps(values))
    if name == "state.json":
        agree(path.parent, name)


def forge_tensors(path: Path, random: Random) -> None:
    """No safetensors file, with a manifest that agrees."""
    file = path.parent / random.choice(("unet.safetensors", "ema.safetensors"))
    random.choice((truncate, empty))(file, random)
    agree(path.parent, file.name)


def agree(folder: Path, name: str) -> None:
    """Have the manifest say what that file holds now."""
    data = (folder / name).read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES: tuple[Callable[[Path, Random], None], ...] = (
    *(flip_bits, flip_bits, truncate, append, empty, remove, replace_by_pipe, replace_by_folder),
    *(replace_by_unreadable, replace_by_a_loop, swap, take_from_the_one_before, add_a_foreign_file),
    *(change_json, change_json, change_json, change_json, forge_tensors),
)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "checkpoints"
    for step in (1, 2):
        save_step(directory, step)
    return directory


@pytest.mark.fuzz(small=60, large=1000)
def test_damaged_checkpoints(
    seed: int, random: Random, tmp_path: Path, two_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.0)
    directory = tmp_path / "run/checkpoints"
    shutil.copytree(two_checkpoints, directory)
    newest = directory / "step_00000002"
    whole = contents(newest)
    damage = DAMAGES[seed % len(DAMAGES)]
    damage(random.choice(sorted(newest.iterdir())), random)
    said: list[str] = []
    damaged = {path.name for path in newest.iterdir()}
    try:
        if seed % 3:
            found = newest_on_disk(directory, said.append)
        else:
            found = fetch_newest(Mirror(str(directory)), tmp_path / "back/checkpoints", None, said.append)
    except OSError as error:
        # As of a disk that fails: a person decides, and nothing is set aside.
        assert error.errno == errno.EIO and damage is replace_by_unreadable
        assert not said and {path.name for path in newest.iterdir()} == damaged
        return
    assert found is not None
    if found.name == "step_00000002":
        # Its state may hold another value of the right type, with a manifest that agrees; nothing else is accepted.
        now = contents(found)
        assert not said and now.keys() == whole.keys() and read_state(found).step == 2
        assert all(now[name] == whole[name] for name in now if name.endswith(".safetensors"))
    else:
        assert holds(found, 1)
        (line,) = said
        assert line.isprintable() and len(line) < 1000
