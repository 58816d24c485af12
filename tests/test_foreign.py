"""Small files and texts from elsewhere."""

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from ddpm_train.config.foreign import BadFile, parse_json, printable, read_json, read_yaml


@dataclass(frozen=True)
class Entry:
    bytes: int
    sha256: str


def test_a_value_has_the_type_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "files.json"
    path.write_text('{"unet": {"bytes": 3, "sha256": "ab", "of tomorrow": null}}')
    assert read_json(path, dict[str, Entry]) == {"unet": Entry(3, "ab")}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"unet": 7}', "unet: "),
        ('{"unet": {"bytes": "3", "sha256": "ab"}}', "unet.bytes: Input should be a valid integer"),
        ('{"unet": {"bytes": 1e999, "sha256": "ab"}}', "unet.bytes: "),
        ('{"unet": {"bytes": %s, "sha256": "ab"}}' % ("9" * 5000), "Invalid JSON"),
        ('{"unet": {"bytes": 3}}', "unet.sha256: Field required"),
        (b"\xff{}", "Invalid JSON"),
        ('{"\x1b[31m\nerror: me": 7}', "Invalid JSON"),
        (r'{"\u001b[31m\nerror: me": 7}', r"\x1b[31m\nerror: me: "),
    ],
)
def test_anything_else_is_one_line(text: str | bytes, why: str) -> None:
    with pytest.raises(BadFile) as error:
        parse_json(text, dict[str, Entry], "manifest.json")
    said = str(error.value)
    assert said.startswith("manifest.json: ") and why in said
    assert said.isprintable() and len(said) < 400


@pytest.mark.parametrize("read", [read_yaml, lambda path: read_json(path, dict[str, int])])
def test_no_file_is_waited_for_or_fills_the_memory(read: object, tmp_path: Path) -> None:
    assert callable(read)
    pipe, huge = tmp_path / "pipe", tmp_path / "huge"
    os.mkfifo(pipe)
    huge.touch()
    os.truncate(huge, 1 << 40)
    for path, why in ((pipe, "no regular file"), (huge, "1,099,511,627,776 bytes"), (tmp_path, "is a folder")):
        with pytest.raises(BadFile, match=why):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_yaml_is_a_mapping_that_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {steps: 3}\n")
    assert read_yaml(path) == {"train": {"steps": 3}}
    bomb = "a: &a [1, 1]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefgh"))
    for content, why in (
        (b"", "not a mapping"),
        (b"- 1\n", "not a mapping"),
        (b"on: 2\n", "takes a key for True, which is no text; put it in quotes"),
        ("name: café".encode("latin-1"), "not UTF-8"),
        (b"a: [", "not YAML"),
        (b"a: " + b"[" * 50_000, "not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "not YAML"),
        (bomb.encode(), "holds an alias"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=why) as error:
            read_yaml(path)
        assert str(error.value).isprintable()


def test_a_text_cannot_leave_its_line() -> None:
    assert printable("café 猫.png") == "café 猫.png"
    assert printable("a\x1b[2Kb\nerror: c\r\u202e\udc80") == r"a\x1b[2Kb\nerror: c\r\u202e\udc80"
    assert printable("x" * 5000) == f"{'x' * 300}… (5,000 characters)"
