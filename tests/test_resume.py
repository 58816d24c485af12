"""Killed at any moment, on any machine, a run ends bit for bit where an undisturbed run ends."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.cli import ROOT, TINY, Cli, Once
from helpers.runs import (
    REQUEUE,
    records,
    relative_difference,
    same_checkpoint,
    same_run,
    steps_written,
    wait_for,
    weights,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_train.runs.identity import accept

HARD = (
    "model.dropout=0.1",
    "train.micro_batch_size=4",
    "dataset.crop=random",
    "dataset.random_flip=true",
    "evaluation.every_steps=4",
    "checkpoint.keep_last=null",
    "tracker=none",
    "lr_scheduler=constant",  # another length must not change the steps before it
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("train.mixed_precision=bf16", "dataset.cache=none", "dataset.num_workers=1", "train.deterministic=true"),
    ],
)
def test_n_and_n_steps_are_2n(cli: Cli, write_images: Callable[[Path, int], Path], extra: tuple[str, ...]) -> None:
    """Mid-epoch, with accumulation, dropout, crops, flips, evaluations between; save, load, save, load."""
    images = write_images(cli.folder / "images", 40)
    mine = (*HARD, *extra, "dataset=imagefolder", f"dataset.path={images}", "dataset.channels=1")
    cli.train(*mine, "name=whole", "train.max_steps=10")
    for steps in (3, 4, 10):
        said = cli.train(*mine, "name=parts", f"train.max_steps={steps}")
        assert ("train.max_steps: 3 -> 4" in said) == (steps == 4)
    # The shorter runs also evaluated at their ends, which the undisturbed one did not.
    whole, parts = cli.output("whole"), cli.output("parts")
    extras = ("held_out_loss", "held_out_loss_floor", "learned", "held_out_to_training_loss", "copying_step")
    assert [{k: v for k, v in r.items() if k not in extras} for r in records(parts)] == [
        {k: v for k, v in r.items() if k not in extras} for r in records(whole)
    ]
    assert records(parts)[7] == records(whole)[7] and "held_out_loss" in records(whole)[7]
    same_checkpoint(parts, whole, 10)


LONG = (
    *("train.max_steps=60", "checkpoint.every_steps=10", "evaluation.every_steps=15", "train.log_every_steps=5"),
    *("model.dropout=0.1", "dataset.random_flip=true", "train.micro_batch_size=8"),
)


@pytest.fixture(scope="module")
def undisturbed(once: Once) -> Path:
    cli, _ = once("undisturbed", lambda cli: cli.train(*LONG))
    return cli.output()


@pytest.mark.slow
def test_sigkill_at_random_moments(cli: Cli, undisturbed: Path) -> None:
    """Five kills, each at a seeded number of steps further on; metrics and TensorBoard hold each step once."""
    moments = random.Random(0)
    for _ in range(5):
        process = cli.start_training(*LONG)
        goal = min(55, steps_written(cli.output()) + moments.randrange(1, 15))
        wait_for(lambda goal=goal: steps_written(cli.output()) >= goal, process)  # type: ignore[misc]
        time.sleep(moments.random() * 0.05)
        process.kill()
        process.communicate()
    cli.train(*LONG)
    same_run(cli.output(), undisturbed, 60)
    assert [record["step"] for record in records(cli.output())] == list(range(1, 61))
    events = EventAccumulator(str(cli.output() / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 61))
    assert [event.step for event in events.Images("samples")] == [15, 30, 45, 60]
    assert not list((cli.output() / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_asks_to_be_requeued(cli: Cli, undisturbed: Path, number: signal.Signals) -> None:
    process = cli.start_training(*LONG)
    wait_for(lambda: steps_written(cli.output()) >= 30, process)
    asked = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == REQUEUE and time.monotonic() - asked < 5
    assert f"stopped ({number.name}); the same command continues" in out and "Traceback" not in err
    saved = sorted(path.name for path in (cli.output() / "checkpoints").iterdir())[-1]
    assert steps_written(cli.output()) == int(saved.removeprefix("step_"))
    if number == signal.SIGTERM:  # what is saved does not depend on it
        said = cli.train(*LONG)
        assert f"resumes at step {int(saved.removeprefix('step_'))}" in said
        same_run(cli.output(), undisturbed, 60)


@pytest.mark.slow
def test_a_signal_during_an_evaluation(cli: Cli) -> None:
    """The picture that was under way is made again by the resumed run, and the record is as if nothing had been."""
    slow = ("evaluation.num_inference_steps=100", "evaluation.num_images=8", "evaluation.batch_size=2")
    few = ("dataset.validation_split=null", "dataset.validation_fraction=0.004")  # which batches of two go through
    slow = (*slow, *few, "checkpoint.every_steps=6")
    process = cli.start_training(*slow)
    # The record of the last step is read back before the evaluation and written after it.
    wait_for(lambda: (cli.output() / "samples").exists() or steps_written(cli.output()) >= 4, process)
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == REQUEUE and time.monotonic() - asked < 5
    assert not (cli.output() / "samples/step_00000006.png").exists()
    cli.train(*slow)
    cli.train(*slow, "name=undisturbed")
    assert (cli.output() / "samples/step_00000006.png").exists()
    same_run(cli.output(), cli.output("undisturbed"), 6)


def catches_sigterm(pid: int) -> bool:
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("moment", [0.0, 1.0, 2.0])
def test_a_signal_before_the_first_step(cli: Cli, moment: float) -> None:
    """During the imports or the preparation: nothing to save, nothing to say but that the same command continues."""
    process = cli.start([sys.executable, str(ROOT / "train.py"), *TINY, *LONG])
    wait_for(lambda: catches_sigterm(process.pid), process)  # Python itself takes a while to start
    time.sleep(moment)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == REQUEUE and "Traceback" not in err


def test_finished_extended_elsewhere(cli: Cli) -> None:
    """A finished run says so; a raised max_steps extends it; `resume=PATH` takes a checkpoint from elsewhere."""
    constant = "lr_scheduler=constant"
    cli.train(constant, "evaluation=none")
    before = (cli.output() / "metrics.jsonl").stat().st_mtime_ns
    assert cli.train(constant, "evaluation=none").startswith("default: finished at step 6; nothing to do")
    assert (cli.output() / "metrics.jsonl").stat().st_mtime_ns == before
    elsewhere = cli.folder / "elsewhere"
    shutil.copytree(cli.output() / "checkpoints/step_00000006", elsewhere / "step_00000006")
    longer = (constant, "evaluation=none", "train.max_steps=9")
    said = cli.train(*longer)
    assert "resumes at step 6" in said and "changed    train.max_steps: 6 -> 9" in said
    assert re.search(r"  takes      about .* on this machine, about ", said)  # as long as the steps before
    taken = cli.train(*longer, "name=taken", f"resume={elsewhere}/step_00000006")
    assert "resumes at step 6" in taken
    name = "checkpoints/step_00000009/unet.safetensors"
    assert (cli.output("taken") / name).read_bytes() == (cli.output() / name).read_bytes()
    # Given again, the command goes on where its own run stopped, not where it once began.
    assert "finished at step 9" in cli.train(*longer, "name=taken", f"resume={elsewhere}/step_00000006")


def test_a_longer_run_branches_before_its_rate_decays(cli: Cli) -> None:
    """As a finished run advises: the end is that of a run which was as long from the start."""
    wsd = ("lr_scheduler=wsd", "evaluation=none", "tracker=none", "checkpoint.keep_last=1")
    said = cli.train(*wsd, "train.max_steps=5")
    (advice,) = (line.partition("command with ")[2] for line in said.splitlines() if "longer     " in line)
    where = "resume=outputs/default/checkpoints/step_00000004"
    assert advice == f"name=default_longer {where} train.max_steps=10"
    said = cli.train(*wsd, *advice.split())
    assert "resumes at step 4" in said and "jumps" not in said
    assert "the same command with name=default_longer2 resume=outputs/default_longer/" in said
    cli.train(*wsd, "train.max_steps=10", "name=undisturbed")
    same_checkpoint(cli.output("default_longer"), cli.output("undisturbed"), 10)
    rates = [record["lr"] for record in cli.metrics("default_longer")]
    assert rates == [record["lr"] for record in cli.metrics("undisturbed")][-len(rates) :]
    # In its own place it would go on from the end of the decay.
    said = cli.train(*wsd, "train.max_steps=10")
    assert f"after step 5; the same command with name=default_longer {where} goes on without the jump" in said
    # Nothing makes a shorter one go on as if it had always been so.
    said = cli.train(*wsd, "train.max_steps=9", "name=shorter", "resume=outputs/undisturbed/checkpoints/step_00000008")
    assert "the learning rate jumps from 1.00e-03 to " in said and "without" not in said


def test_changes_that_only_keep_the_books_are_not_told() -> None:
    there, now = ({"dataset.chosen": chosen, "train.max_steps": steps} for chosen, steps in ((["name"], 5), ([], 10)))
    assert accept(there, now, allowed=(), where="there") == (["train.max_steps: 5 -> 10"], [])


def test_nothing_usable_is_an_error(cli: Cli) -> None:
    cli.train("evaluation=none")
    state = cli.output() / "checkpoints/step_00000006/state.json"
    state.write_text("{}")
    message = "error: resume=auto: no checkpoint in outputs/default/checkpoints can be used; give another name=…"
    for _ in range(2):
        assert message in cli.train("evaluation=none", expect=2)
    assert "set aside" not in cli.train("name=other", "evaluation=none")
    bad = cli.output() / "checkpoints/step_00000006.bad"
    said = cli.train("name=third", f"resume={bad}", expect=2)
    assert f"error: resume={bad}: not a whole checkpoint: state.json has 2 bytes" in said
    said = cli.train("name=other", "resume=never", expect=2)
    assert "error: resume=never: outputs/other/checkpoints holds checkpoints" in said


def test_a_torn_checkpoint_falls_back_to_the_one_before(cli: Cli) -> None:
    saves = ("checkpoint.every_steps=3", "evaluation=none")
    cli.train(*saves, "train.max_steps=6", "name=undisturbed")
    cli.train(*saves)
    torn = cli.output() / "checkpoints/step_00000006/optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    said = cli.train(*saves)
    assert "warning: checkpoint step_00000006 is set aside as step_00000006.bad: optimizer.safetensors has" in said
    assert "resumes at step 3" in said
    same_checkpoint(cli.output(), cli.output("undisturbed"), 6)


def test_a_changed_config_is_another_run(cli: Cli) -> None:
    cli.python("-m", "ddpm_train", *TINY, "evaluation=none", "train.max_steps=4")
    changed = ("evaluation=none", "optimizer.lr=2e-3", "train.batch_size=8", "noise_scheduler=linear", "seed=1")
    said = cli.train(*changed, "checkpoint.keep_last=5", expect=2)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0] == (
        "error: this config would make another run than the one in outputs/default/checkpoints/step_00000004 (step 4):"
    )
    assert lines[1] == "key there now"
    assert sorted(lines[2:-1]) == [
        "noise_scheduler.beta_schedule squaredcos_cap_v2 linear",
        "noise_scheduler.prediction_type v_prediction epsilon",
        "optimizer.lr 0.001 0.002",
        "seed 0 1",
        "train.batch_size 16 8",
    ]
    assert lines[-1].startswith("give it another name=…, or accept the change") and "optimizer.lr,seed" in lines[-1]
    # It is told before torch is imported, which takes seconds.
    again = (sys.executable, "-X", "importtime", "-m", "ddpm_train", *TINY, "evaluation=none", "seed=1")
    said = cli.run(again, expect=2)
    assert "this config would make another run" in said and "ddpm_train.config.train" in said
    assert not re.search(r"\| +(torch|diffusers)$", said, re.MULTILINE)
    accepted = cli.train("evaluation=none", "optimizer.lr=2e-3", "allow_change=[optimizer.lr]")
    assert "changed    optimizer.lr: 0.001 -> 0.002 (accepted, recorded)" in accepted
    state = json.loads((cli.output() / "checkpoints/step_00000006/state.json").read_text())
    assert state["changes"] == [
        {"step": 4, "key": "train.max_steps", "from": 4, "to": 6},
        {"step": 4, "key": "optimizer.lr", "from": 0.001, "to": 0.002},
    ]


def test_no_change_is_offered_that_can_never_load(cli: Cli) -> None:
    cli.train("evaluation=none", "train.max_steps=1")
    said = cli.train("evaluation=none", "model.block_out_channels=[8,24]", "model.dropout=0.5", expect=2)
    assert "model.dropout" in said and "allow_change" not in said
    remedy = "with another model.block_out_channels its checkpoints do not fit the network"
    assert said.endswith(f"  give it another name=…: {remedy}\n")
    assert "'allow_change=[model.dropout]'" in cli.train("evaluation=none", "model.dropout=0.5", expect=2)


def test_changed_images_are_another_run(cli: Cli, write_images: Callable[[Path, int], Path]) -> None:
    images = write_images(cli.folder / "images", 30)
    mine = ("dataset=imagefolder", "dataset.channels=1", "evaluation=none", "train.max_steps=4")
    mine = (*mine, "dataset.validation_fraction=0.02", "name=default")
    cli.train(*mine, f"dataset.path={images}")
    moved = cli.folder / "moved"
    images.rename(moved)
    assert "finished at step 4" in cli.train(*mine, f"dataset.path={moved}")
    # A column of paths holds no pixels, and they are its own all the same.
    names = sorted(str(path.relative_to(moved)) for path in moved.rglob("*.png"))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": name} for name in names], kind)
    pq.write_table(pa.table({"image": cells}), moved / "rows.parquet")
    rows = ("dataset=hub", f"dataset.path={moved / 'rows.parquet'}", "dataset.image_column=image", *mine[1:])
    assert "finished at step 4" in cli.train(*rows)
    shutil.copy(moved / names[0], moved / names[1])
    said = cli.train(*rows, expect=2)
    assert "dataset content" in said and "another run" in said


def test_saves_by_the_clock_and_keeps_what_it_is_told(cli: Cli) -> None:
    saves = ("checkpoint.every_steps=null", "checkpoint.every_minutes=1e-6", "evaluation=none")
    cli.train(*saves, "checkpoint.keep_last=1", "checkpoint.keep_every_steps=2")
    assert [path.name for path in sorted((cli.output() / "checkpoints").iterdir())] == [
        *("step_00000002", "step_00000004", "step_00000006")
    ]


def test_one_run_at_a_time(cli: Cli) -> None:
    process = cli.start_training("train.max_steps=100000", "evaluation=none", "checkpoint.every_steps=50")
    wait_for(lambda: steps_written(cli.output()) >= 50, process)
    said = cli.train("train.max_steps=100000", "evaluation=none", expect=2)
    assert f"error: output_dir=outputs/default: process {process.pid} on " in said and "is training this run" in said
    process.kill()
    process.communicate()
    # The dead one's lock went with it.
    assert "resumes at step" in cli.train("train.max_steps=100000", "evaluation=none", "train.max_steps=60")


def test_a_full_disk_does_not_end_the_run(cli: Cli) -> None:
    """A small tmpfs holds the first checkpoints, then fills up; room is made, and the next save succeeds."""
    disk = cli.folder / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk]).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        filler = disk / "filler"
        saves = ("checkpoint.every_steps=20", "checkpoint.max_failures=100", "checkpoint.keep_last=1")
        run = disk / "run"
        process = cli.start_training(*saves, "train.max_steps=100000", "evaluation=none", f"output_dir={run}")
        wait_for(lambda: (run / "checkpoints/step_00000040").exists(), process)
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"\0" * 4096)
                except OSError:
                    break
        assert process.stderr is not None
        line = next(line for line in process.stderr if "NOT saved" in line)
        assert "was NOT saved: [Errno 28] No space left on device" in line and "The last good one stays" in line
        good = {path.name for path in (run / "checkpoints").glob("step_*")}
        assert good
        filler.unlink()
        wait_for(lambda: not good & {path.name for path in (run / "checkpoints").glob("step_*")}, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == REQUEUE
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_too_many_failing_saves_stop_the_run(cli: Cli) -> None:
    """A file stands where the checkpoints should go."""
    cli.output().mkdir(parents=True)
    (cli.output() / "checkpoints").write_text("")
    saves = ("checkpoint.every_steps=1", "checkpoint.max_failures=2", "evaluation=none")
    said = cli.train(*saves, expect=4)
    assert said.count("was NOT saved") == 2
    assert "error: checkpoint.max_failures=2: that many saves in a row failed" in said


@pytest.mark.slow
def test_sigkill_of_one_of_two_processes(cli: Cli) -> None:
    """The other one ends within seconds; one process, then two again, go on from there."""
    long = ("train.max_steps=3000", "checkpoint.every_steps=20", "evaluation=none", "lr_scheduler=constant")
    survivor, victim = cli.start_training_together(*long, num_processes=2)
    wait_for(lambda: steps_written(cli.output()) >= 40, survivor, victim)
    victim.kill()
    asked = time.monotonic()
    survivor.communicate(timeout=60)
    assert survivor.returncode != 0 and time.monotonic() - asked < 20
    at = steps_written(cli.output())
    said = cli.train(*long, f"train.max_steps={at + 5}")
    assert "resumes at step" in said
    said = cli.together(*long, f"train.max_steps={at + 10}", num_processes=2)
    assert "2 processes" in said and f"step {at + 10}/{at + 10}" in said
    assert [record["step"] for record in records(cli.output())] == list(range(1, at + 11))


@pytest.mark.slow
def test_gradients_of_several_processes_add_up_in_the_same_order(cli: Cli) -> None:
    """Of more than two: which sum rounds how would depend on the buckets, which torch cuts anew after a first step."""
    same = ("train.deterministic=true", "train.batch_size=18", "lr_scheduler=constant", "evaluation=none")
    cli.together(*same, "name=whole", "train.max_steps=4", num_processes=3)
    for steps in (2, 4):
        cli.together(*same, "name=parts", f"train.max_steps={steps}", num_processes=3)
    same_checkpoint(cli.output("parts"), cli.output("whole"), 4)


CONSUMED = """
import hashlib, json, os
from ddpm_train.cli.train import main
from ddpm_train.training import run
made = run.micro_batches
def note(batches, objective, positions, **where):
    asked = []
    def asking():
        for each in positions:
            asked.append(each)
            yield each
    for batch in made(batches, objective, asking(), **where):
        with open(os.environ["CONSUMED"] + os.environ.get("RANK", "0"), "a") as file:
            for position, *parts in zip(asked.pop(0), *batch, strict=True):
                digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
                file.write(json.dumps([int(position), digest]) + "\\n")
        yield batch
run.micro_batches = note
main()
"""


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_samples(cli: Cli) -> None:
    """1 -> 2 -> 1 processes: every step consumes the same images, noise and timesteps; the weights agree."""
    (cli.folder / "consumed.py").write_text(CONSUMED)
    options = ("dataset.crop=random", "dataset.random_flip=true", "evaluation=none", "lr_scheduler=constant")

    def run(name: str, max_steps: int, num_processes: int, *extra: str) -> None:
        command = ("consumed.py", *TINY, *options, f"name={name}", f"train.max_steps={max_steps}", *extra)
        where = {"CONSUMED": str(cli.folder / f"{name}-")}
        if num_processes == 1:
            cli.python(*command, **where)
        else:
            cli.python_together(*command, count=num_processes, **where)

    def consumed(name: str) -> list[Any]:
        return sorted(json.loads(line) for file in cli.folder.glob(f"{name}-*") for line in file.open())

    run("one", 9, 1)
    run("changing", 3, 1)
    run("changing", 6, 2, "train.micro_batch_size=4")
    run("changing", 9, 1)
    assert consumed("one") == consumed("changing")
    assert [position for position, _ in consumed("one")] == list(range(9 * 16))
    assert relative_difference(*(weights(cli.output(name), step=9) for name in ("one", "changing"))) <= 1e-5


FAILING = """
import os
from ddpm_train.diffusion.objective import Objective
from ddpm_train.cli.train import main
draw = Objective.draw
def fail(self, shape, positions, **others):
    if os.environ["RANK"] == "1" and positions[0] >= 16 * 4:
        raise RuntimeError("this process has had enough")
    return draw(self, shape, positions, **others)
Objective.draw = fail
main()
"""


@pytest.mark.slow
def test_an_error_on_one_process_ends_all_of_them(cli: Cli) -> None:
    """With that error, within seconds, without a launcher that ends them, and with what was saved before it."""
    (cli.folder / "failing.py").write_text(FAILING)
    saves = ("train.max_steps=100000", "checkpoint.every_steps=2", "evaluation=none")
    survivor, failing = cli.start_together("failing.py", *TINY, *saves, count=2)
    wait_for(lambda: (cli.output() / "checkpoints/step_00000004").exists(), survivor)
    asked = time.monotonic()
    _, err = failing.communicate(timeout=60)
    survivor.communicate(timeout=60)
    assert failing.returncode == 1 and survivor.returncode != 0 and time.monotonic() - asked < 20
    assert "RuntimeError: this process has had enough" in err


HOLDER = """
import json, sys, time, pathlib
heartbeat = pathlib.Path(sys.argv[1])
for beat in range(600):
    written = heartbeat.with_name("written")
    written.write_text(json.dumps({"host": "elsewhere", "pid": 7, "beat": beat}))
    written.replace(heartbeat)
    time.sleep(0.5)
"""


@pytest.mark.slow
def test_a_run_on_another_host(cli: Cli) -> None:
    """Refused while its heartbeat goes on; taken over when it has stopped. The heartbeat is all that hosts share."""
    cli.output().mkdir(parents=True)
    heartbeat = cli.output() / ".heartbeat"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(heartbeat)])
    try:
        wait_for_file = time.monotonic() + 30
        while not heartbeat.exists() and time.monotonic() < wait_for_file:
            time.sleep(0.01)
        said = cli.train("evaluation=none", expect=2)
        assert "error: output_dir=outputs/default: process 7 on elsewhere is training this run" in said
    finally:
        holder.kill()
        holder.wait()
    asked = time.monotonic()
    assert "done: step 6" in cli.train("evaluation=none")
    assert time.monotonic() - asked > 15


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(cli: Cli) -> None:
    """They agree on the step, save it once, and the same command goes on from there."""
    long = ("train.max_steps=100000", "evaluation=none", "lr_scheduler=constant", "train.log_every_steps=1")
    first, second = cli.start_training_together(*long, num_processes=2)
    wait_for(lambda: steps_written(cli.output()) >= 10, first, second)
    second.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (REQUEUE, REQUEUE)
    assert "stopped (another process was asked to); the same command continues" in out
    at = steps_written(cli.output())
    assert (cli.output() / f"checkpoints/step_{at:08d}/manifest.json").exists()
    assert f"resumes at step {at:,}" in cli.train(*long, f"train.max_steps={at + 1}")
