"""Damaged files of a run, and machines without a home: a line, or the program does without."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.cli import TINY, Cli

from ddpm_train.cli import push, reproduce
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.objective import Criterion
from ddpm_train.config.push import PushConfig
from ddpm_train.evaluation.image_folder import made_by
from ddpm_train.models.load import load_model
from ddpm_train.report.evidence import read_folder
from ddpm_train.runs.best import evaluated
from ddpm_train.runs.folder import CONFIG, cut_records, read_origin, read_records, read_result
from ddpm_train.sampling.output import ImageFolder

BOMB = "a: &a [1, 1]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefghijklmno"))
CONFIGS = {
    "empty": b"",
    "a list": b"- train\n",
    "latin-1": "name: café\n".encode("latin-1"),
    "an alias bomb": BOMB.encode(),
    "binary": bytes(range(256)),
    "of other types": b"name: [a]\noutput_dir: 3\nmodel: 7\ndataset: {resolution: x}\nnoise_scheduler: null\n",
    "a pipe": None,
}
JSON = ("", "[]", "{}", "7", '{"step": "six", "weights": 3, "scores": [{}]}', "[" * 10_000, "\0" * 300)


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, as `outputs/default` of the current folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, Path("outputs/default"))


def line(call: Callable[[], object]) -> str:
    """The one line that a call ends in."""
    with pytest.raises(Mistakes) as told:
        call()
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_that_is_none(
    config: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who needs it says so; `ddpm-push` then goes by its own keys."""
    content = CONFIGS[config]
    (run / CONFIG).unlink()
    if content is None:
        os.mkfifo(run / CONFIG)
    else:
        (run / CONFIG).write_bytes(content)
    with pytest.raises(Mistakes, match=r"config\.yaml|model=7: must be a section"):
        load_model(str(run / "checkpoints/step_00000006"))
    with pytest.raises(Mistakes, match=r"config\.yaml|^objective: missing"):
        load_model(str(run / "checkpoints/best"))
    assert push._wanted(PushConfig(str(run), "a/b", None, None, None, 1.0, 1.0)).repo_id == "a/b"
    if config != "of other types":
        monkeypatch.setattr("sys.argv", ["ddpm-reproduce", str(run)])
        with pytest.raises(SystemExit, match="2"):
            reproduce.main()
        assert "config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("text", JSON)
def test_what_can_be_done_without(text: str, run: Path) -> None:
    """Results, and what says which weights `pipeline/` holds, are as if they were not there."""
    names = ("result.json", "pipeline/training.json", "evaluation/step_00000006.json", "evaluation/scores.json")
    for name in names:
        (run / name).write_text(text)
    assert read_result(run) is None
    assert read_origin(run / "pipeline") == {}
    assert load_model(str(run)).step is None
    unreadable = [said.partition(":")[0] for said in read_folder(run).unreadable]
    assert "step_00000006.json" in unreadable  # in the report
    assert text == "{}" or "scores.json" in unreadable


@pytest.mark.parametrize("text", JSON)
def test_images_of_which_nobody_knows_how_they_were_made(text: str, tmp_path: Path) -> None:
    (tmp_path / "sampling.json").write_text(text)
    assert "sampling.json" in line(lambda: made_by(str(tmp_path)))
    if not text.startswith("{"):
        assert line(lambda: ImageFolder(tmp_path).recorded()).endswith("give another output")
    (tmp_path / "sampling.json").write_text('{"precision": "fp64"}')
    assert "precision" in line(lambda: ImageFolder(tmp_path).recorded())


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"loss": 1.0}\n',
        b'{"step": "3"}\n',
        b'{"step": true}\n',
        b'{"step": -3}\n',
        b'{"step": ' + b"9" * 40 + b"}\n",
        b'{"step": NaN}\n',
        b"[3]\n",
        b"[" * 100_000 + b"\n",
        b"\xff\x00\n",
        b'{"step": 3, "kid": "' + b"x" * 2_000_000 + b'"}\n',
    ],
)
def test_a_damaged_record_ends_the_records(damaged: bytes, tmp_path: Path) -> None:
    records = [b'{"step": 1, "kid": 0.5, "loss": NaN}\n', b'{"step": 2, "kid": "small", "loss": ' + b"9" * 400 + b"}\n"]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join([*records, damaged, b'{"step": 3, "kid": 0.1, "loss": 1}\n']))
    assert [record["step"] for record in read_records(tmp_path)] == [1, 2]
    report = read_folder(tmp_path)
    assert report.series("loss").steps.tolist() == [3] and "metrics.jsonl: " in report.unreadable[0]
    last = cut_records(path, 2)
    assert last is not None and last["step"] == 2
    assert path.read_bytes() == b"".join(records)
    assert evaluated(tmp_path, Criterion("kid", True)) == {1: 0.5}


def test_a_start_does_without_what_is_damaged(cli: Cli) -> None:
    """The run goes on, and what was measured or prepared for another is made anew."""
    measured = ("train.attention=auto", "dataset.cache_dir=prepared")
    cli.train("train.max_steps=2", *measured)
    (compute,) = (cli.folder / "prepared/compute").iterdir()
    images = {meta: meta.read_text() for meta in (cli.folder / "prepared").glob("*/meta.json")}
    for damaged in (compute, *images):
        damaged.write_text('{"seconds": [], "content": 7}')
    cli.train("name=other", "train.max_steps=2", *measured)
    assert json.loads(compute.read_text())["seconds"]
    assert {meta: meta.read_text() for meta in images} == images
    run = cli.output()
    (run / ".heartbeat").write_text("{}")
    (run / "result.json").write_text("[]")
    (run / "pipeline/training.json").write_text("7")
    with open(run / "metrics.jsonl", "a") as records:
        records.write('{"loss": 1.0}\n')
    for scores in (run / "evaluation").glob("*.json"):
        scores.write_text("{}")
    cli.train("train.max_steps=4", *measured)
    assert [record["step"] for record in cli.metrics()] == [1, 2, 3, 4]
    assert json.loads((run / "result.json").read_text())["step"] == 4


def test_a_checkpoint_of_another_shape(run: Path, cli: Cli) -> None:
    """Its manifest verifies, and its state says that it is of this model."""
    checkpoint = run / "checkpoints/step_00000006"
    tensors = safetensors.torch.load_file(checkpoint / "unet.safetensors")
    tensors["conv_in.weight"] = torch.zeros(1)  # which torch would spread over the whole
    data = safetensors.torch.save(tensors)
    (checkpoint / "unet.safetensors").write_bytes(data)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["unet.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert "it cannot be loaded" in line(lambda: load_model(str(checkpoint), weights="unet"))
    said = cli.train("train.max_steps=8", expect=2)
    assert "unet: conv_in.weight has the shape [1], not [8, 1, 3, 3]" in said and "give another name" in said


# A user namespace in which this user is one that no file knows; without the right to make one there is none.
NOBODY = """
import ctypes, os, runpy, sys
user, group, libc = os.getuid(), os.getgid(), ctypes.CDLL(None)
if libc.unshare(0x10000000):
    sys.exit(77)
for name, text in (("setgroups", "deny"), ("uid_map", f"4711 {user} 1"), ("gid_map", f"4711 {group} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
os.environ.pop("HOME")
os.environ.pop("XDG_CACHE_HOME")
module = sys.argv.pop(1)
sys.modules.pop(module)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def test_others_may_read_a_run_as_the_umask_has_it(trained: Path) -> None:
    expected = (trained / CONFIG).stat().st_mode
    assert {path.stat().st_mode for path in trained.rglob("*") if path.is_file()} == {expected}


def test_a_user_without_a_home(trained: Path, cli: Cli) -> None:
    def as_nobody(module: str, *arguments: str) -> tuple[int | None, str]:
        process = cli.fork("-c", NOBODY, f"ddpm_train.cli.{module}", *arguments)
        out, err = process.communicate()
        if process.returncode == 77:
            pytest.skip("needs user namespaces")
        return process.returncode, out + err

    remedy = "error: HOME: not set, and this user has no home folder; set it, or XDG_CACHE_HOME, to a folder\n"
    assert as_nobody("train", *TINY) == (2, remedy)
    code, said = as_nobody("train", *TINY, "dataset.cache_dir=prepared", "train.attention=auto", "train.max_steps=1")
    assert code == 0, said
    code, said = as_nobody("sample", f"pipeline={trained}", "num_images=1", "num_inference_steps=1")
    assert code == 0, said


def test_a_home_that_is_not_there(cli: Cli) -> None:
    said = cli.train(expect=2, HOME="/proc/nowhere", XDG_CACHE_HOME="")
    assert said == (
        "error: dataset.cache_dir=/proc/nowhere/.cache/ddpm-train: No such file or directory; choose another folder\n"
    )
    advised = ("dataset.cache_dir=prepared", "train.attention=auto", "train.max_steps=1")
    cli.train(*advised, HOME="/proc/nowhere", XDG_CACHE_HOME="")
    assert len([*(cli.folder / "prepared/compute").iterdir()]) == 1  # what was measured is kept there, too
