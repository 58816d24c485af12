"""A value on the command line is what was written, whatever a shell or Hydra's grammar would see in it."""

import shlex
import sys
from dataclasses import replace
from typing import Any

import pytest
import yaml
from helpers.cli import ROOT, Cli

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import Program, compose_configs
from ddpm_train.config.push import PUSHING
from ddpm_train.evaluation.preflight import PROGRAM as EVALUATE
from ddpm_train.sampling.preflight import PROGRAM as SAMPLE
from ddpm_train.training.preflight import PROGRAM as TRAIN

VALUES = (
    *("/data/my cats (2), new=old", "a,b", " a ", "a\t", "a\nb", "/data/é ü 猫", "a=b", "==", "~nosuch/x", "/a/[b]"),
    *("[raw]", "[a,b],c", "{a:1}", "a(1)", "range(1,3)", "choice(a,b)", "glob(*)", "interval(0,1)", "$HOME", "$"),
    *("it's", 'say "x"', "'a'b", "'it''s'", "'", '"', "\\", "a\\", "a\\,b", "a\\ b", "a\\'b", "a\\\\b", "\\\\'"),
    *("a'\"\\b\\'c\\\"", "a:b", "#a;&!`b`<>^|*?", "@x", "%20", "true", "NaN", "1_000", "[" * 200, "9" * 200),
)
# In a sweep nobody knows whether these are one value.
AMBIGUOUS = ("/data/my cats (2), new=old", "/data/é,b", "it's, \\'x\\", 'a "b", c', "~x,y")
# Each program's keys whose type is any text, and what a command with them needs besides.
KEYS = {
    TRAIN: (
        [
            *("dataset.path", "output_dir", "resume", "dataset.image_column", "dataset.cache_dir", "dataset.split"),
            *("checkpoint.mirror", "model.pretrained", "dataset.validation_split", "evaluation.extractor.weights"),
        ],
        ["dataset=hub", "dataset.path=x"],
    ),
    SAMPLE: (["pipeline", "revision", "output", "from_image", "inpaint"], ["pipeline=x", "from_image=x.png"]),
    EVALUATE: (
        ["pipeline", "revision", "output", "dataset.path", "extractor.weights"],
        ["pipeline=x", "dataset=imagefolder", "dataset.path=x"],
    ),
    Program("ddpm-push", "push", "run", "", PUSHING, lambda config: iter(())): (
        ["run", "repo_id", "revision"],
        ["run=x"],
    ),
}


def composed(program: Program[Any], *texts: str, multirun: bool = False) -> list[dict[str, Any]]:
    """What the program's configs hold, on a machine where everything is there."""
    anywhere = replace(
        program,
        preflight=lambda config: iter(()),
        resolve=lambda values, overrides: (values, []),
        settle=lambda config, values, overrides: values,
        trial=lambda config, values: iter(()),
    )
    return [values for _, values in compose_configs(anywhere, texts, multirun=multirun)]


def held(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize("program", KEYS, ids=lambda program: program.name)
def test_a_text_is_what_was_written(program: Program[Any]) -> None:
    keys, needed = KEYS[program]
    inpainting = ["sampler=ddpm"] if program is SAMPLE else []
    for start in range(0, len(VALUES), len(keys)):
        written = dict(zip(keys, VALUES[start : start + len(keys)], strict=False))
        (values,) = composed(program, *needed, *inpainting, *map("=".join, written.items()))
        assert {key: held(values, key) for key in written} == written


def test_a_reference_null_and_quotes_are_hydras() -> None:
    (values,) = composed(
        TRAIN, "output_dir=runs (${seed})/${name}", "dataset.revision=null", "name='7'", 'dataset.split="a\\"b"'
    )
    assert values["output_dir"] == "runs (0)/7" and values["name"] == "7"
    assert values["dataset"]["revision"] is None and values["dataset"]["split"] == 'a"b'
    assert told("dataset=imagefolder", "dataset.path=/data/${x") == [
        "dataset.path=/data/${x: ${ begins a reference to another key, as ${name} is one; leave it out"
    ]


def told(*texts: str, multirun: bool = False) -> list[str]:
    with pytest.raises(Mistakes) as raised:
        composed(TRAIN, *texts, multirun=multirun)
    return list(raised.value.lines)


def advised(line: str) -> str:
    """The words, quoted for a shell, that a line says to write."""
    return line.rpartition(" write ")[2].removesuffix(" if it is one value")


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_a_sweep_says_how_to_write_one_text_with_commas(text: str) -> None:
    (line,) = told(f"resume={text}", multirun=True)
    assert line.startswith(f"resume={text}: commas separate the values of a sweep; write ")
    (argument,) = shlex.split(advised(line))
    (values,) = composed(TRAIN, argument, multirun=True)
    assert values["resume"] == text


def test_a_sweep_of_which_a_value_is_wrong_may_be_one_text() -> None:
    sweep = f"resume=a,{'x' * 256}"
    line = told(sweep, multirun=True)[0]
    assert line.startswith(f"{sweep}: several values; write ")
    assert shlex.split(advised(line)) == [f'resume="a,{"x" * 256}"']
    assert len(composed(TRAIN, "resume=a,b", "name=${resume}", multirun=True)) == 2


def test_a_list_needs_no_brackets() -> None:
    (values,) = composed(EVALUATE, "pipeline=x", "metrics=kid,fid", "cost.samplers=ddim", "cost.steps=5,10")
    assert (values["metrics"], values["cost"]["samplers"]) == (["kid", "fid"], ["ddim"])
    assert values["cost"]["steps"] == [5, 10]
    (values,) = composed(TRAIN, "allow_change=seed", "tracker=tensorboard,wandb", "model.block_out_channels=64,64,64")
    assert (values["allow_change"], list(values["tracker"])) == (["seed"], ["tensorboard", "wandb"])
    assert values["model"]["block_out_channels"] == [64, 64, 64]
    swept = composed(EVALUATE, "pipeline=x", "metrics=kid,fid", "output=x_${metrics.0}", multirun=True)
    assert [values["metrics"] for values in swept] == [["kid"], ["fid"]]
    # One number is a resolution, too: these may have been meant for a sweep.
    (line,) = told("dataset.resolution=32,64")
    assert advised(line) == "'dataset.resolution=[32,64]'"
    assert line.startswith("dataset.resolution=32,64: several values; add --multirun to try each, or write ")


def test_a_shell_hands_over_what_was_meant(cli: Cli) -> None:
    """As written, and as the advice of a message is pasted."""
    path, mirror = VALUES[0], 'it\'s \\ "$HOME", `x`'
    (line,) = told(f"dataset.path={path}", "dataset=imagefolder", multirun=True)
    train = shlex.join([sys.executable, str(ROOT / "train.py"), "--cfg", "job", "dataset=imagefolder"])
    shown = cli.run(["sh", "-c", f"{train} {advised(line)} {shlex.quote(f'checkpoint.mirror={mirror}')}"])
    config = yaml.safe_load(shown)
    assert (config["dataset"]["path"], config["checkpoint"]["mirror"]) == (path, mirror)
