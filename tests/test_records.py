"""`metrics.jsonl`: long, cut back on resume, added to by evaluations, and right after a crash at any moment."""

import json
import math
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.cli import Cli
from helpers.runs import records

from ddpm_train.config.objective import Criterion
from ddpm_train.runs.best import evaluated
from ddpm_train.runs.clock import RATIO
from ddpm_train.runs.folder import read_records
from ddpm_train.training.records import Records

FOUND = {"held_out_loss": 0.25, "evaluation_seconds": 1.5}


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def opened(path: Path, accelerator: Accelerator, step: int) -> Records:
    """The records of a run that goes on from `step`."""
    return Records(path, accelerator, step, log=lambda records: None, warn=pytest.fail)


def line(step: int, **values: float) -> str:
    numbers = '"lr": 0.0001, "loss": 0.123456789, "grad_norm": 0.0625, "images_per_second": 812.5'
    more = f", {json.dumps(values)[1:-1]}" if values else ""
    return f'{{"step": {step}, "images_seen": {64 * step}, {numbers}{more}}}\n'


@pytest.mark.slow
def test_a_million_records(tmp_path: Path, accelerator: Accelerator) -> None:
    """A resume with an evaluation takes no more than two seconds and 50 MB, wherever in the file it goes on."""
    path, criterion = tmp_path / "metrics.jsonl", Criterion("held_out_loss", lower_is_better=True)
    with open(path, "w") as file:
        for step in range(1, 1_000_001):
            file.write(line(step, **(FOUND if step % 1000 == 0 else {})))
        file.write('{"step": 1000001, "ima')

    def resume(step: int) -> None:
        resumed = opened(path, accelerator, step)
        assert resumed.last["images_seen"] == 64 * step
        values = evaluated(tmp_path, criterion, step)
        assert len(values) == step // 1000
        resumed.annotate(step, FOUND)
        resumed.write()

    started = time.monotonic()
    resume(999_999)
    assert time.monotonic() - started < 2
    tracemalloc.start()
    resume(500_001)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    with open(path, "rb") as file:
        assert sum(1 for _ in file) == 500_001
        file.seek(-len(line(500_001, **FOUND)), 2)
        assert json.loads(file.read()) == json.loads(line(500_001, **FOUND))


@pytest.mark.parametrize("step", range(8))
def test_what_comes_after_the_step_is_dropped(tmp_path: Path, accelerator: Accelerator, step: int) -> None:
    """Lines of all lengths, and a damaged one at the end."""
    path = tmp_path / "metrics.jsonl"
    lines = [line(number, **{"x" * 3**number: 1.0}) for number in range(1, 8)]
    for torn in ("", "\n", "\0" * 5000, '"held_out_loss": 0.25}\n', lines[6][:-1], "5\n"):
        path.write_text("".join(lines[:6]) + torn)
        resumed = opened(path, accelerator, step)
        assert path.read_text() == "".join(lines[: min(step, 6)])
        assert resumed.last == (json.loads(lines[step - 1]) if 0 < step <= 6 else {"step": step})


def test_a_crash_while_an_evaluation_is_added(tmp_path: Path, accelerator: Accelerator) -> None:
    """After any number of the bytes that are written, each step has one record; the evaluation comes again."""
    path = tmp_path / "metrics.jsonl"
    before, after = line(1) + line(2), line(1) + line(2, **FOUND)
    kept = len(before) - len("}\n")
    # The new bytes follow the old line; then two bytes join them to it.
    for written in range(len(after) - len(before) + 1):
        path.write_text(before + after[len(before) :][:written])
        resumed = opened(path, accelerator, 2)
        assert path.read_text() == before and resumed.last == json.loads(line(2))
        resumed.annotate(2, FOUND)
        assert list(read_records(tmp_path)) == [json.loads(line(1)), json.loads(line(2))]
        resumed.write()
        assert path.read_text() == after
    path.write_text(before[:kept] + after[kept:])
    assert opened(path, accelerator, 2).last == json.loads(line(2, **FOUND))
    assert path.read_text() == after


def test_a_record_that_was_lost_is_made_up_for(tmp_path: Path, accelerator: Accelerator) -> None:
    """A run goes on without its file: what is measured at the step where it stands is written all the same."""
    path = tmp_path / "metrics.jsonl"
    resumed = opened(path, accelerator, 3)
    resumed.annotate(3, FOUND)
    resumed.write()
    assert list(read_records(tmp_path)) == [{"step": 3, **FOUND}]


@pytest.mark.slow
def test_an_evaluation_on_resume_adds_to_the_last_line_alone(cli: Cli) -> None:
    """Of a run that stopped before it: the same records as without a stop, in the same file."""
    constant = ("lr_scheduler=constant", "tracker=none", "train.max_steps=4")
    cli.train(*constant, "evaluation=none")
    stopped = cli.output() / "metrics.jsonl"
    first, inode = stopped.read_bytes(), stopped.stat().st_ino
    longer = ("train.max_steps=6", "evaluation.every_steps=2")
    cli.train(*constant, *longer)
    assert stopped.stat().st_ino == inode and stopped.read_bytes().startswith(first[:-2])
    cli.train(*constant, *longer, "name=undisturbed")
    undisturbed: list[dict[str, Any]] = records(cli.output("undisturbed"))
    found = ("held_out_loss", "held_out_loss_floor", "learned", RATIO, "copying_step")
    for key in found:  # the first command did not ask for that
        undisturbed[1].pop(key, None)
    assert records(cli.output()) == undisturbed
    assert math.isfinite(records(cli.output())[3]["held_out_loss"])


def test_a_line_that_a_disk_refuses_costs_no_record(tmp_path: Path, accelerator: Accelerator) -> None:
    """The file's folder is not there for a while, as on a network disk."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    path, said = folder / "metrics.jsonl", []
    path.write_text(line(1) + line(2))
    resumed = Records(path, accelerator, 2, log=lambda records: None, warn=said.append)
    resumed.annotate(2, FOUND)
    shutil.move(folder, elsewhere)
    resumed.write()
    assert resumed.unwritten is not None and "Its records are kept for the next try" in said[0]
    shutil.move(elsewhere, folder)
    resumed.write()
    assert resumed.unwritten is None and path.read_text() == line(1) + line(2, **FOUND)
