"""Any command line works, or is refused in lines: no traceback, no hang, and no nonsense that passes for sense."""

import os
import re
import sys
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers.cli import TINY, Cli

from ddpm_train.cli import data, evaluate, push, reproduce, sample, train
from ddpm_train.cli.sweeps.sweep import Sweep
from ddpm_train.config.compose import compose_job, open_configs, options
from ddpm_train.config.schema import dotted_values

PROGRAMS = {"config": train, "sample": sample, "evaluate": evaluate, "data": data, "push": push, "reproduce": reproduce}
WEIGHTS = (10, 4, 4, 1, 1, 1)  # how often each is drawn
NUMBERS = (
    *("0", "1", "-1", "3", "7", "64", "1.5", "-0.0", "1e-3", "1e3", "1e400", "-1e400", "1e-400", "nan", "inf", "-inf"),
    *("0x10", "1_000", "100000000001", "9223372036854775807", "9223372036854775808", "9" * 40, "9" * 5000),
)
TEXTS = (
    *("", " ", "abc", "a b", "é猫", "e\u0301", "'", '"', "''", '""', "'a", "a'b", "\\", "\\'", "a\nb", "a\tb", "a\rb"),
    *("{", "}", "{}", "{a:b}", "{a:", "[", "]", "[]", "[[]]", "[a,b]", "[1,[2]]", "[1,", "[null]", "(", ")"),
    *("${", "$", "${}", "${seed}", "${nowhere}", "${.seed}", "${hydra:job.num}", "${train}", "${a${b}}"),
    *("null", "true", "false", "None", "auto", "none", "???", "\x1b[31mred", "\udc80", "\u202e", "x" * 5000),
    *("#", "=", "a=b", "==", "*", "&a", "!x", "-", "--", "@", ":", "a:b", "%s", "|", ";", "[" * 90 + "]" * 90),
)
SWEEPS = (
    *("1,2", "a,b", "null,1", "range(3)", "range(0,3)", "range(3,0)", "range(1,1000000000)", "range(0,1,0)"),
    *("range(0,inf)", "shuffle(range(1,1000000000))", "choice(1,2)", "choice()", "interval(0,1)", "glob(*)"),
    *("sort(3,2)", "tag(x)", "tag(x,choice(1,2))", "shuffle(1,2)", "int(a)", "int(1.5,2)", "str([1])"),
)
PATHS = (
    *("/dev/zero", "/dev/null", "/proc/self/mem", "pipe", "file", "folder", "garbage", "run", "run/config.yaml"),
    *("run/checkpoints/best", "run/checkpoints", "run/samples", "owner/name", "hf://", "hf://a/b", "~", "~nosuch/x"),
    *("..", ".", "/", "//", "a/" * 200, "a" * 300, "x" * 300 + "/y", "run/" + "y" * 300, "z/" * 3000, "file/x"),
)
OF_PATHS = (
    *("output_dir", "name", "resume", "dataset.path", "dataset.cache_dir", "dataset.source", "pipeline", "output"),
    *("evaluation.extractor.weights", "extractor.weights", "from_image", "inpaint", "run", "model.pretrained"),
)
# These name hosts to ask, or code to import; and the layout of a network has a fuzzer of its own.
LEFT_OUT = re.compile(r"checkpoint\.mirror|extensions|hub\.(push|repo_id)|model\.(?!pretrained).*")
# More of these is more work, however small the model.
OF_WORK = re.compile(r"num_images|num_samples|frames|repeats|resolution|max_steps|epochs|bins")
GROUPS = (
    *("dataset", "noise_scheduler", "loss", "optimizer", "lr_scheduler", "ema", "evaluation", "sampler", "tracker"),
    *("timestep_distribution", "augmentation", "experiment"),
)


@cache
def keys(config: str) -> dict[str, Any]:
    """The keys of a program, with their values."""
    with open_configs():
        composed = dotted_values(compose_job(config, []).values)
        return {key: value for key, value in composed if not LEFT_OUT.fullmatch(key)}


@cache
def choices(group: str) -> list[str]:
    with open_configs():
        return options(group)


def a_value(random: Random, key: str) -> str:
    kinds = (NUMBERS, TEXTS, PATHS) if key in OF_PATHS else (NUMBERS, TEXTS)
    return random.choice(random.choice(kinds))


def an_override(random: Random, config: str) -> tuple[str, bool]:
    """An override, and whether it is nonsense beyond doubt."""
    known = keys(config)
    key = random.choice([key for key in known if key in OF_PATHS] if random.random() < 0.2 else list(known))
    value = a_value(random, key)
    kind = random.randrange(12)
    if kind == 0:
        at = random.randrange(len(key))
        return f"{key[:at]}{random.choice('qxyz')}{key[at:]}={value}", True
    if kind <= 2 and type(known[key]) in (int, float):
        return f"{key}={random.choice(('abc', '[1]', '{a:b}', chr(39) * 2, '1e', 'é', 'nan', '9' * 5000))}", True
    if kind <= 2 and re.search("num_images|batch_size|_steps$", key):
        return f"{key}={random.choice(('-1', '0', '-9999999999999', '1.5', '9' * 40))}", True
    if kind == 3:
        group = random.choice(GROUPS)
        return f"{group}={random.choice([*choices(group), value])}", False
    if kind == 4:
        return random.choice((f"~{key}", f"+{key}={value}", f"++{key}={value}", f"~{key}={value}", key, value)), False
    if kind == 5:
        return f"{key}.{random.choice(('a', '0', 'name', ''))}={value}", False
    if kind == 6:
        return f"{key.split('.')[0]}={value}", False
    if kind == 7:
        own = ("run.dir", "sweep.dir", "job.num", "verbose", "mode", "x", "job.name")
        return f"hydra.{random.choice(own)}={value}", False
    if kind == 8:
        return f"hydra/{random.choice(('launcher', 'sweeper', 'help', 'job_logging', 'x'))}={value}", False
    return f"{key}={value}", False


def flags(random: Random) -> list[str]:
    text = random.choice(TEXTS + PATHS)
    drawn: list[list[str]] = [
        *(["--cfg", "job"], ["--cfg", text], ["--help"], ["-c"], ["-cn"], ["--version"], ["--x"], [f"-{text}"]),
        *(["--config-name", text], ["--config-dir", text], ["--config-path", text]),
        ["--config-path", "run", "--config-name", "config"],
    ]
    return random.choice(drawn)


def a_command_line(random: Random, config: str) -> tuple[list[str], bool]:
    """Arguments, and whether they must be refused."""
    if config == "reproduce":
        return [random.choice(TEXTS + PATHS)], False
    drawn = [an_override(random, config) for _ in range(random.choice((0, 1, 1, 1, 1, 2, 2, 3, 8)))]
    roots = [re.split("[.=@]", text.lstrip("+~"))[0] for text, _ in drawn]
    nonsense = any(wrong and roots.count(root) == 1 for (_, wrong), root in zip(drawn, roots, strict=True))
    texts = [text for text, _ in drawn]
    if random.random() < 0.2:
        texts += texts[:1]
    if random.random() < 0.2:
        texts = ["-m", *texts]
        texts += [f"{random.choice(list(keys(config)))}={random.choice(SWEEPS)}" for _ in range(random.randint(0, 2))]
    elif random.random() < 0.2:
        texts, nonsense = texts + flags(random), False  # who asks for help is helped
    given = {"sample": "pipeline=run", "evaluate": "pipeline=run", "data": "dataset=fashion_tiny", "push": "run=run"}
    return ([given[config]] if config in given and random.random() < 0.9 else []) + texts, nonsense


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To be in a folder with things of several kinds."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("a")
    (tmp_path / "garbage").write_bytes(Random(0).randbytes(1000))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "run").symlink_to(trained)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("place")
@pytest.mark.fuzz(small=40, large=1000)
def test_what_a_program_makes_of_a_command_line(
    random: Random, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Up to where its work would begin."""
    ((config, program),) = random.choices(list(PROGRAMS.items()), WEIGHTS)
    texts, nonsense = a_command_line(random, config)
    monkeypatch.setattr(sys, "argv", [program.__name__, *texts])
    monkeypatch.setattr(Sweep, "carry_out", lambda *_: None)
    monkeypatch.setattr(program, "job", lambda *_: None, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code: object = 0
    try:
        program.main()
    except SystemExit as left:
        code = left.code
    out, err = capfd.readouterr()
    assert code in (0, None, 2), (texts, err)
    assert "Traceback" not in out + err, texts
    assert not nonsense or code == 2, texts


@pytest.mark.usefixtures("place")
@pytest.mark.fuzz(small=4, large=100)
def test_programs(random: Random, cli: Cli) -> None:
    """Whole: what is accepted also works, or is refused in a line later."""
    given = {
        "config": ("train", *TINY, "train.max_steps=1"),
        "sample": ("sample", "pipeline=run", "num_images=2", "num_inference_steps=2"),
        "evaluate": ("evaluate", "pipeline=run", "num_images=16", "num_inference_steps=2", "metrics=[held_out_loss]"),
    }
    config = random.choice(list(given))
    key = random.choice([key for key in keys(config) if not OF_WORK.search(key)])
    program, *arguments = given[config]
    value = a_value(random, key)
    process = cli.fork("-m", f"ddpm_train.cli.{program}", *arguments, f"{key}={value}", HF_HUB_OFFLINE="1")
    out, err = process.communicate()
    assert process.returncode in (0, 2, 3), (key, value, out, err)
    assert "Traceback" not in out + err, (key, value)
