"""The script that measures a GPU, on a machine without one: what it asks, and what it makes of the answers."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import ROOT, Cli
from helpers.forked import TESTS

BENCHMARKS = ROOT / "benchmarks"
H200 = {"gpu": "NVIDIA H200"}


def run_gpu(folder: Path, *parts: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(BENCHMARKS / "run_gpu.sh"), str(folder), *parts]
    kept = {key: value for key, value in os.environ.items() if key != "REHEARSE"}
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=300)


def every_part() -> list[str]:
    budgets = (BENCHMARKS / "run_gpu.sh").read_text().split('budgets="\n')[1].split('"')[0]
    return [line.split()[0] for line in budgets.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("rehearse", ["", "1"])
def test_every_part_asks_what_its_benchmark_understands(cli: Cli, rehearse: str) -> None:
    asked = cli.folder / "asked"
    python = cli.folder / "python"
    python.write_text(f"#!/bin/bash\n(IFS=$'\\x1f'; printf '%s\\n' \"$*\" >>{asked})\n")
    python.chmod(0o755)
    done = run_gpu(cli.folder / "results", *every_part(), PYTHON=str(python), REHEARSE=rehearse)
    assert done.returncode == 0 and "failed: none" in done.stdout, done.stdout + done.stderr
    commands = [line.split("\x1f") for line in asked.read_text().splitlines()]
    assert len(commands) == len(every_part()) + 1 and commands[-1][0] == "benchmarks/goals.py"
    for first, *arguments in commands:
        if first == "-m" and rehearse:
            continue  # it is the same there
        if first == "-m":
            assert "4/" in Cli(ROOT).python(first, *arguments, "--collect-only")
        else:
            cli.python(str(TESTS / "helpers/parsed_only.py"), str(ROOT / first), *arguments)


@pytest.mark.slow
def test_a_part_is_rehearsed_and_counts_as_nothing(tmp_path: Path) -> None:
    done = run_gpu(tmp_path, "checkpoint", "no_such_part", PYTHON=sys.executable, REHEARSE="1")
    assert done.returncode == 1 and "failed: no_such_part" in done.stdout, done.stdout + done.stderr
    assert "no such part: no_such_part" in done.stderr
    assert "not measured  longest stall of a save: rehearsed: 0." in done.stdout
    assert json.loads((tmp_path / "checkpoint/checkpoint.json").read_text())["circumstances"]["rehearsal"] is True


def write(folder: Path, file: str, figures: dict[str, Any], circumstances: dict[str, Any]) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps({"circumstances": circumstances, "figures": figures}))


def test_the_goals_say_what_is_met_short_or_not_measured(tmp_path: Path) -> None:
    def said(expect: int) -> list[str]:
        command = [sys.executable, str(BENCHMARKS / "goals.py"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == expect, done.stderr
        return done.stdout.splitlines()

    assert all(line.startswith("not measured") for line in said(1)) and len(said(1)) == 7
    ours = {"images_per_second": [4000.0, 4600.0, 5000.0], "flops_utilisation": 0.499}
    write(tmp_path, "unet_128_64px/throughput.json", {"ours": ours, "tuned": {"ours_is_faster_by": 2.5}}, H200)
    write(tmp_path, "flowers_64/throughput.json", {"ours": ours}, H200)
    write(tmp_path, "unet_32_32px/throughput.json", {"ours": {"images_per_second": [10_600.0]}}, H200)
    stalls = {"first_stall_seconds": 0.51, "stall_seconds": [0.1, 0.2]}
    write(tmp_path, "checkpoint/checkpoint.json", stalls, H200)
    equal = {"deterministic": {"equal": {"unet": True, "ema": True, "optimizer": True}}}
    write(tmp_path, "deterministic/deterministic.json", equal, H200)
    write(tmp_path, "deterministic_compiled/deterministic.json", equal, {"gpu": None})
    short = said(1)
    assert [line.split("  ")[0] for line in short] == ["met", "SHORT", "met", "met", "SHORT", "met", "not measured"]
    assert "49.9 % on NVIDIA H200 (goal: at least 50.0 %)" in short[1]
    assert "2.97 minutes on NVIDIA H200 (goal: at most 3.00 minutes)" in short[3]
    assert "rehearsed: 3 of 3 on a CPU" in short[-1]
    # With all of them met it leaves with 0; without the peer there is nothing to compare with.
    write(tmp_path, "deterministic_compiled/deterministic.json", equal, H200)
    write(tmp_path, "checkpoint/checkpoint.json", {**stalls, "first_stall_seconds": 0.5}, H200)
    better = {"ours": {**ours, "flops_utilisation": 0.5}}
    write(tmp_path, "unet_128_64px/throughput.json", {**better, "tuned": {"ours_is_faster_by": 2.5}}, H200)
    assert all(line.startswith("met ") for line in said(0))
    write(tmp_path, "unet_128_64px/throughput.json", better, H200)
    assert "no 'tuned' in unet_128_64px/throughput.json" in said(1)[0]


def test_the_idle_share_is_the_time_that_no_kernel_covers() -> None:
    summary = runpy.run_path(str(BENCHMARKS / "profiling.py"))["summary"]
    # Two streams overlap for 10 us, one kernel lies within another, and nothing runs for 20 of 100 us.
    starts = {"conv": [(0, 30), (20, 30)], "norm": [(25, 5), (70, 30)]}
    work = [{"name": name, "ts": ts, "dur": dur} for name, times in starts.items() for ts, dur in times]
    found = summary(work, steps=2)
    assert found["idle_share"] == pytest.approx(0.2) and found["step_milliseconds"] == pytest.approx(0.05)
    assert found["launches_a_step"] == 2
    assert [kernel["name"] for kernel in found["top"]] == ["conv", "norm"]
    assert found["top"][0] == pytest.approx({"name": "conv", "milliseconds_a_step": 0.03, "share": 60 / 95})
