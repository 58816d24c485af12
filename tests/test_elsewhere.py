"""Configs of somebody else's are values: nothing in them runs, configures Hydra, or asks the machine."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.config.train import Config
from ddpm_train.runs.folder import config_yaml
from ddpm_train.training.preflight import PROGRAM

SECRET = "the-secret-of-this-machine"
CALL = {"_target_": "os.system", "command": "touch called"}
GLOBAL = "# @package _global_\n"


def composed(*overrides: str, **folders: Path) -> tuple[Config, dict[str, Any]]:
    (found,) = compose_configs(PROGRAM, overrides, **folders)
    return found


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    """What the `config.yaml` of a run holds."""
    values: dict[str, Any] = yaml.safe_load(config_yaml(composed()[1]))
    return values


def refused(*overrides: str, **folders: Path) -> str:
    with pytest.raises(Mistakes) as raised:
        composed(*overrides, **folders)
    (line,) = raised.value.lines
    assert SECRET not in line
    return line


@pytest.mark.parametrize(
    ("header", "change", "named"),
    [
        ("", {"hydra": {"callbacks": {"x": CALL}}}, ["hydra.callbacks.x._target_"]),
        ("", {"hydra": {"job_logging": {"handlers": {"h": {"()": "os.getcwd"}}}}}, ["hydra.job_logging.handlers.h.()"]),
        (
            "",
            {
                "hydra": {
                    "job": {"env_set": {"A": "b"}, "chdir": True},
                    "run": {"dir": "/x"},
                    "searchpath": ["file:///"],
                }
            },
            ["hydra.job.env_set.A", "hydra.job.chdir", "hydra.run.dir", "hydra.searchpath"],
        ),
        (
            "",
            {"hydra": {part: dict(CALL) for part in ("launcher", "sweeper")}},
            ["hydra.launcher.command", "hydra.sweeper.command"],
        ),
        ("", {"hydra": 3}, [": hydra: "]),
        ("", {"defaults": ["_self_", {"override hydra/launcher": "submitit_slurm"}]}, ["hydra/launcher"]),
        ("", {"defaults": ["_self_", {"model": "unet_32"}]}, ["model:unet_32"]),
        ("# @package hydra.callbacks\n", {"hydra": {}}, ["configures Hydra (hydra.callbacks)"]),
        ("", {"checkpoint": {"mirror": "s3://x/${oc.env:KEPT}"}}, ["checkpoint.mirror=s3://x/${oc.env:KEPT}"]),
        ("", {"allow_change": ["${oc.decode:'1'}"]}, ["allow_change.0=${oc.decode"]),
        ("", {"name": "${hydra:job.name}"}, ["name=${hydra:job.name}"]),
        ("", {"name": "${hydra.job.name}"}, ["name=${hydra.job.name}"]),
        ("", {"name": "${seed}${oc.create:{}}"}, ["name=${seed}${oc.create"]),
        ("", {"name": "${${seed}}"}, ["name=${${seed}}"]),
        ("", {"model": {"${oc.env:KEPT}": 1}}, ["${oc.env:KEPT}"]),
    ],
)
def test_a_runs_config_is_values(
    header: str,
    change: dict[str, Any],
    named: list[str],
    default: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEPT", SECRET)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(header + yaml.safe_dump({**default, **change}))
    line = refused(path=tmp_path)
    assert line.startswith(f"--config-name=config: {file}: ") and all(name in line for name in named)
    assert "hydra.run.dir" in named or "hydra.run.dir" not in line
    assert not (tmp_path / "called").exists()


def test_what_a_run_writes_is_read_again(default: dict[str, Any], tmp_path: Path) -> None:
    """With what the command adds, which is the user's own."""
    default = {**default, "output_dir": "runs/${name}-${train.batch_size}"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(default))
    own = composed("name=${oc.env:NOWHERE,x}", "hydra.verbose=false", path=tmp_path)[0]
    assert own.output_dir == "runs/x-64" and own.seed == default["seed"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(default | {"extensions": ["a"], "loss": {"_target_": "x"}}))
    with pytest.raises(Mistakes, match="this config names code"):
        composed(path=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "defaults: [override hydra/job_logging: mine]",
        "defaults: [override /hydra/job_logging: mine]",
        "defaults: [/loss@hydra.callbacks: mine]",
        "defaults: ['../../outside']",
        "defaults: ['/{tmp}/outside']",
        "defaults: [override /model: ../../../../../../../../{tmp}/outside]",
        "defaults: [override /model: '${{oc.env:KEPT}}']",
        "hydra: {{sweeper: {{_target_: os.system}}}}",
        "hydra: {{launcher: {{arguments: [--module]}}}}",
        "name: ${{..hydra.job.name}}",
        # Two harmless parts may make up a harmful whole.
        "objective: $\noutput_dir: '${{objective}}{{oc.env:KEPT}}'",
    ],
)
def test_a_choice_is_values(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", SECRET)
    mine = tmp_path / "mine"
    for name, content in {
        "mine/experiment/x": GLOBAL + text.format(tmp=tmp_path),
        "mine/hydra/job_logging/mine": "version: 1",
        "mine/loss/mine": "name: mse",
        "outside": f"{GLOBAL}hydra: {{callbacks: {{x: {{_target_: os.system}}}}}}",
    }.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with pytest.raises(Mistakes) as raised:
        composed("experiment=x", config_dir=mine)
    said = str(raised.value)
    assert SECRET not in said and (f"{mine / 'experiment/x.yaml'}: " in said or "output_dir=${oc.env:KEPT}: " in said)


def test_choices_of_ones_own_build_on_others(tmp_path: Path) -> None:
    """And may describe a search, as `hydra.sweeper.params`."""
    (tmp_path / "experiment").mkdir()
    search = "hydra: {sweeper: {params: {seed: '1,2'}}}\n"
    choice = GLOBAL + "defaults: [override /model: unet_32, override /optimizer: sgd, _self_]\nname: x-${seed}\n"
    (tmp_path / "experiment/mine.yaml").write_text(choice + search)
    config, _ = composed("experiment=mine", "hydra/sweeper=basic", config_dir=tmp_path)
    assert config.name == "x-0" and config.optimizer.name == "sgd" and len(config.model.block_out_channels) == 4


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            GLOBAL + "train:\n",
            "train=null: must be a section of keys; leave it out of the file that names it without any",
        ),
        ("seed: 1\n", "experiment={seed:1}: would go below that key; begin its file with `# @package _global_`"),
        (GLOBAL + "train: {batch_size: 016}\n", "FILE, line 2: 016 is 14 in YAML; write 14 if you mean that"),
        (GLOBAL + "train: {batch_size: 1:04}\n", "FILE, line 2: 1:04 is 64 in YAML; write 64 if you mean that"),
        (GLOBAL + "dataset: {revision: 0012345}\n", "FILE, line 2: 0012345 is 5349 in YAML; write 5349 if you mean"),
        (
            GLOBAL + "train: {mixed_precision: no}\n",
            "train.mixed_precision=false: not one of auto, no, bf16, fp16; in a ",
        ),
        (GLOBAL + "name: a${x}\n", "name: Interpolation key 'x' not found; in a value, ${name} stands for the value"),
        (GLOBAL + "name: !!set {a}\n", "name: Value 'set' is not a supported primitive type"),
    ],
)
def test_what_a_file_says_and_nobody_meant(text: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment/mine.yaml"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(Mistakes) as raised:
        composed("experiment=mine", "train.batch_size=16", "train.max_steps=2", config_dir=tmp_path)
    (said,) = raised.value.lines
    assert said.removeprefix("experiment=mine: ").replace(str(file), "FILE").startswith(line)


def test_numbers_of_a_file_that_are_meant(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    values = "name: '0123'\nseed: 1_000\noptimizer: {lr: 0.01, eps: 1e-8}\ndataset: {random_flip: yes}\n"
    (tmp_path / "experiment/mine.yaml").write_text(GLOBAL + values)
    config, _ = composed("experiment=mine", config_dir=tmp_path)
    assert (config.name, config.seed, config.optimizer.eps, config.dataset.random_flip) == ("0123", 1000, 1e-8, True)


def test_texts_of_a_file_are_what_was_written(tmp_path: Path) -> None:
    """YAML takes them for numbers and truth values."""
    for folder in ("experiment", "dataset"):
        (tmp_path / folder).mkdir()
    for text in ("1.10", "1_000", "1e3", "0x10", "no", "'007'"):
        (tmp_path / "experiment/mine.yaml").write_text(f"{GLOBAL}name: {text}\nseed: 1_0\n")
        config, _ = composed("experiment=mine", config_dir=tmp_path)
        assert (config.name, config.seed) == (text.strip("'"), 10)
    (tmp_path / "images").mkdir()
    (tmp_path / "1.10").symlink_to("images")
    (tmp_path / "dataset/mine.yaml").write_text("defaults: [imagefolder]\nrevision: 1.10\n")
    said = refused("dataset=mine", f"dataset.path={tmp_path}/1.10", config_dir=tmp_path)
    assert said.startswith("dataset.revision=1.10: means nothing")


def test_a_config_that_builds_on_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {batch_size: 8}\n")
    advice = "has few of the keys; begin its file with `defaults: [config, _self_]`"
    assert refused("seed=1", name="mine", config_dir=tmp_path) == f"--config-name=mine: {advice}"
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\ntrain: {batch_size: 8}\n")
    assert composed("seed=1", name="mine", config_dir=tmp_path)[0].train.batch_size == 8
    (tmp_path / "mine.yaml").write_text("defaults: [mine]\n")
    assert refused("seed=1", name="mine", config_dir=tmp_path).startswith("--config-name=mine: leads back to itself")
