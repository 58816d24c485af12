"""What is told of a run's speed and end: one clock, of recent steps alone."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.cli import ROOT

from ddpm_train.system import console as system_console
from ddpm_train.system import pace as system_pace
from ddpm_train.system import threads
from ddpm_train.system.console import Console
from ddpm_train.system.pace import as_clock

Tick = Callable[[float], None]


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Tick:
    """Lets so many seconds pass."""
    now = 1000.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    clock = SimpleNamespace(monotonic=lambda: now, strftime=lambda form: "12:30:00")
    monkeypatch.setattr(system_pace, "time", clock)
    monkeypatch.setattr(system_console, "time", clock)
    return pass_by


def test_step_time_and_rate_agree(tick: Tick, capsys: pytest.CaptureFixture[str]) -> None:
    """From the second step on, before any record was read back; a record's own rate is of other steps."""
    console = Console(enabled=True)
    console.start(0, 100, batch_size=8)
    for step in range(1, 12):
        tick(20.0 if step == 1 else 1.13)  # the first sets things up
        console.step(step)
        if step == 10:
            console.progress({"step": 10, "loss": 0.25, "lr": 1e-4, "images_per_second": 31.0})
    assert capsys.readouterr().out.splitlines() == [
        "12:30:00  step 2/100  ETA 1:51  1.13 s/step  7 img/s",
        "12:30:00  step 11/100  ETA 1:41  loss 0.2500  lr 1.00e-04  1.13 s/step  7 img/s",
    ]


def test_the_end_is_told_from_recent_steps_and_the_evaluations_to_come(
    tick: Tick, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a resume, an evaluation and a change of the machine's speed."""
    console = Console(enabled=True)
    console.start(500, 1000, batch_size=64, seconds_besides=lambda: 120.0)
    for step in range(501, 600):
        tick(1.0)
        console.step(step)
    with console.pace.resting():  # an evaluation
        tick(300.0)
    tick(1.0)
    console.step(600)
    assert capsys.readouterr().out.splitlines()[-1] == "12:30:00  step 600/1000  ETA 8:40  1.00 s/step  64 img/s"
    for step in range(601, 700):
        tick(0.5)
        console.step(step)
    tick(10.0 - 9.5)
    console.step(700)
    assert "ETA 4:30  500 ms/step  128 img/s" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (725, "12:05"), (3599.7, "1:00:00"), (11_400, "3:10:00")]
)
def test_as_clock(seconds: float, text: str) -> None:
    assert as_clock(seconds) == text


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1000"}])
def test_threads_spin_briefly_unless_told_otherwise(chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"HOME": "/", **chosen}
    monkeypatch.setattr(threads, "os", SimpleNamespace(environ=environment))
    threads.wait_briefly()
    assert environment == {"HOME": "/", **(chosen or {"GOMP_SPINCOUNT": "10000"})}


@pytest.mark.parametrize("uv", [False, True])
def test_the_demo_installs_what_training_needs_and_the_tests_the_rest(tmp_path: Path, uv: bool) -> None:
    """As make would do it in a fresh clone."""
    for file in ("Makefile", "pyproject.toml"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"

    def installs(target: str) -> list[str]:
        command = ["make", "--dry-run", target, *([] if uv else ["UV="])]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if " install " in line]

    tool = f"{tmp_path}/uv pip" if uv else ".venv/bin/python -m pip"
    (demo,), (tests,) = installs("demo"), installs("test")
    assert demo.startswith(f"{tool} install") and demo.endswith("--editable .")
    assert tests.startswith(f"{tool} install") and tests.endswith('--editable ".[dev]"')
