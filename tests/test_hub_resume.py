"""`resume=hf://…`: on an empty machine a run goes on from its newest whole pushed checkpoint, equal to the bit."""

import shutil
import signal
from collections.abc import Callable

import pytest
from helpers.cli import ended
from helpers.forked import Fork
from helpers.hub.client import HubCli
from helpers.hub.http import Kind, flipped
from helpers.hub.server import LoopbackHub
from helpers.runs import same_end, wait_for

from ddpm_train.runs import snapshots

RUN = ("evaluation=none", "lr_scheduler=constant", "checkpoint.every_steps=2", "model.dropout=0.1")
PUSH = ("hub.push=true", "hub.repo_id=tester/cats", "hub.strategy=checkpoint")
RESUME = "resume=hf://tester/cats"


def empty_the_disk(cli: HubCli) -> None:
    shutil.rmtree(cli.output())
    shutil.rmtree(cli.folder / "hf", ignore_errors=True)


# The command line -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_on_an_empty_machine(hub_cli: HubCli, strategy: str) -> None:
    """From the Hub as from the disk; the same command, which pushes there, finds its own checkpoints again."""
    push = (*PUSH, f"hub.strategy={strategy}", "hub.revision=runs", "hub.private=true")
    power = ("ema=power", "ema.snapshots=3")
    hub_cli.train(*RUN, *power, "name=whole", "train.max_steps=10")
    hub_cli.train(*RUN, *power, *push, "train.max_steps=6")
    empty_the_disk(hub_cli)
    said = hub_cli.train(*RUN, *power, f"{RESUME}@runs", "train.max_steps=8")
    assert "(resumes at step 6)" in said and "changed    hub" not in said
    assert list(snapshots.until(hub_cli.output(), 8)) == [2, 4, 6]
    empty_the_disk(hub_cli)
    assert "(resumes at step 6)" in hub_cli.train(*RUN, *power, *push, "train.max_steps=10")
    same_end(hub_cli.output(), hub_cli.output("whole"), 10)
    assert not list((hub_cli.output() / "checkpoints").glob(".*"))
    assert hub_cli.hub.head("tester/cats", "runs").title == "Step 10"
    # First each second step is kept, then each fourth.
    assert list(snapshots.until(hub_cli.output(), 10)) == [2, 4, 6, 8]
    there = hub_cli.hub.head("tester/cats", "runs").folder
    for average in ("step_00000004/ema_2.safetensors", "step_00000008/ema.safetensors"):
        for run in (hub_cli.output(), there):
            kept = (run / "snapshots" / average).read_bytes()
            assert kept == (hub_cli.output("whole") / "snapshots" / average).read_bytes()


@pytest.mark.slow
def test_the_newer_of_disk_and_hub(hub_cli: HubCli) -> None:
    """The same command after a preemption, wherever the run was last."""
    hub_cli.train(*RUN, "name=whole", "train.max_steps=10")
    hub_cli.train(*RUN, "train.max_steps=2")
    shutil.copytree(hub_cli.output(), hub_cli.folder / "here")
    hub_cli.train(*RUN, *PUSH, "train.max_steps=6")
    shutil.rmtree(hub_cli.output())
    (hub_cli.folder / "here").rename(hub_cli.output())
    assert "(resumes at step 6)" in hub_cli.train(*RUN, RESUME, "train.max_steps=8")
    # Now the disk is ahead; nothing but the manifest is asked for.
    before = len(hub_cli.hub.requests)
    assert "(resumes at step 8)" in hub_cli.train(*RUN, RESUME, "train.max_steps=10")
    assert not [request for request in hub_cli.hub.requests[before:] if "safetensors" in request.path]
    same_end(hub_cli.output(), hub_cli.output("whole"), 10)
    # What is on the disk also serves where the Hub cannot be asked.
    hub_cli.hub.__exit__()
    said = hub_cli.train(*RUN, RESUME, "train.max_steps=11")
    assert f"warning: {RESUME}: the Hub cannot be reached" in said and "goes on from step_00000010 on the disk" in said


@pytest.mark.slow
def test_killed_in_the_middle_of_a_push_and_resumed_elsewhere(hub_cli: HubCli) -> None:
    hub = hub_cli.hub
    hub_cli.train(*RUN, "name=whole", "train.max_steps=8")
    endless = (*RUN, *PUSH, "train.max_steps=100000", "train.log_every_steps=1", "hub.stall_seconds=60")
    hub_cli.train(*RUN, *PUSH, "train.max_steps=4")
    stall = hub.fault("POST /commit/", "stall", 1)
    process = hub_cli.start_training(*endless)
    wait_for(lambda: stall.happened == 1, process)
    process.kill()
    ended(process, -signal.SIGKILL)
    hub.release.set()
    assert hub.head("tester/cats").title == "Step 4"
    empty_the_disk(hub_cli)
    assert "(resumes at step 4)" in hub_cli.train(*RUN, *PUSH, "train.max_steps=8")
    same_end(hub_cli.output(), hub_cli.output("whole"), 8)
    assert hub.head("tester/cats").title == "Step 8"


def test_mistakes(hub_cli: HubCli) -> None:
    def told(*overrides: str, **environment: str) -> str:
        said = hub_cli.train(*RUN, *overrides, expect=2, **environment)
        assert not (hub_cli.output() / "metrics.jsonl").exists() and said.count("\n") == 1
        return said.removeprefix("error: ").rstrip()

    assert told(RESUME) == (
        f"{RESUME}: the Hub answers 404: Repository not found; resume=never starts without looking there"
    )
    hub_cli.train(*RUN, "hub.push=true", "hub.repo_id=tester/plain", "name=plain", "train.max_steps=2")
    assert told("resume=hf://tester/plain") == (
        "resume=hf://tester/plain: no checkpoint there; only hub.strategy=checkpoint or all_checkpoints pushes "
        "checkpoints"
    )
    assert "resume=hf://tester/plain@nope: the Hub answers 404: Invalid rev id" in told("resume=hf://tester/plain@nope")
    hub_cli.train(*RUN, *PUSH, "name=other", "seed=1", "train.max_steps=2")
    said = hub_cli.train(*RUN, RESUME, expect=2)
    assert "this config would make another run than the one in " in said and "seed" in said
    # A repository that cannot be asked is no empty one.
    shutil.rmtree(hub_cli.folder / "outputs")
    hub_cli.hub.fault("GET /api/models", 401, 1000)
    assert "the Hub answers 401" in told(RESUME, "name=new")


# The wire -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(hub_cli: HubCli) -> HubCli:
    """A repository with the checkpoints of steps 2 to 4."""
    hub_cli.train(*RUN, *PUSH, "hub.strategy=all_checkpoints", "train.max_steps=4", "checkpoint.keep_last=null")
    return hub_cli


# `fetch_newest` into an empty folder, with less patience; it says the step, or the mistake, after its warnings.
FETCH = """
import json, sys
from pathlib import Path
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.hub import fetch
from ddpm_train.runs import checkpoint
from ddpm_train.runs.stores import fetch_newest
fetch._RETRY_SECONDS, fetch.ASKING_SECONDS = 8.0, 1.0
repo_id, into = sys.argv[1:]
try:
    store = fetch.HubStore(f"resume=hf://{repo_id}", repo_id, None, required=True)
    path = fetch_newest(store, Path(into), None, print)
    assert path is not None
    checkpoint.verify(path, checkpoint.step_of(path))
    steps = [json.loads(line)["step"] for line in (path.parent.parent / "metrics.jsonl").open()]
    assert steps[-1] == 4
    print(path.name)
except Mistakes as mistakes:
    print(*mistakes.lines)
"""


def fetching(cli: HubCli, into: str, repo_id: str = "tester/cats", **environment: str) -> Fork:
    """That, under way."""
    return cli.fork("-c", FETCH, repo_id, into, HF_HUB_DOWNLOAD_TIMEOUT="2", **environment)


def fetched(cli: HubCli, into: str, repo_id: str = "tester/cats") -> str:
    process = fetching(cli, into, repo_id)
    said, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return said


GET_FAULTS: dict[str, tuple[str, Kind, int]] = {
    "info busy": ("GET /api/models", 503, 2),
    "info reset": ("GET /api/models", "reset", 1),
    "info stalls": ("GET /api/models", "stall", 1),
    "head busy": ("HEAD /tester/cats/resolve/", 500, 2),
    "file busy": ("GET /tester/cats/resolve/", 503, 2),
    "file asked to wait": ("GET /tester/cats/resolve/", 429, 1),
    "file reset": ("GET /tester/cats/resolve/", "reset", 1),
    "file cut": ("GET /tester/cats/resolve/", "cut", 1),
    "object busy": ("GET /objects/", 500, 2),
    "object lost": ("GET /objects/", "lost", 1),
    "object cut": ("GET /objects/", "cut", 2),
    "object stalls": ("GET /objects/", "stall", 1),
    "object corrupt": ("GET /objects/", "corrupt", 1),
}


def test_faults_are_outlived(pushed: HubCli) -> None:
    """Of the same length but another content, which the client takes, is fetched once more. All side by side."""
    hubs, forks = {}, {}
    for name, (wanted, kind, times) in GET_FAULTS.items():
        hubs[name] = pushed.hub.twin().__enter__()
        hubs[name].fault(wanted, kind, times, **{"Retry-After": "1"})
        forks[name] = fetching(pushed, f"{name}/checkpoints", HF_ENDPOINT=hubs[name].url)
    for name, fork in forks.items():
        said, complaints = fork.communicate()
        assert said.splitlines() == ["step_00000004"], (name, said, complaints)
        assert [fault.happened for fault in hubs[name].faults] == [GET_FAULTS[name][2]], name
        assert not list((pushed.folder / name / "checkpoints").glob(".*"))
        hubs[name].check_hosts()
        hubs[name].__exit__()


def damage(hub: LoopbackHub, **files: Callable[[bytes], bytes | None]) -> None:
    """Commit changes to files of checkpoints, whose names are written step_file."""
    changes: dict[str, bytes | None] = {}
    for name, change in files.items():
        step, _, part = name.removeprefix("at_").partition("_")
        (found,) = (hub.head("tester/cats").folder / f"checkpoints/step_0000000{step}").glob(f"{part}.*")
        changes[found.relative_to(hub.head("tester/cats").folder).as_posix()] = change(found.read_bytes())
    hub.commit_files("models", "tester/cats", "main", changes)


def test_what_is_torn_or_damaged_is_passed_over(pushed: HubCli) -> None:
    """The newest that verifies is taken; a commit that has none is passed over too."""
    hub = pushed.hub
    whole = hub.head("tester/cats").folder
    damage(hub, at_4_manifest=lambda data: None)
    torn = fetched(pushed, "torn/checkpoints").splitlines()
    assert torn[-1] == "step_00000002" and len(torn) == 2
    assert torn[0].startswith("warning: checkpoints/step_00000004 in tester/cats@") and "no manifest.json" in torn[0]
    damage(hub, at_2_ema=flipped)
    older = fetched(pushed, "older/checkpoints").splitlines()
    assert older[-1] == "step_00000004" and "ema.safetensors has another SHA-256 than its manifest says" in older[1]
    # As `hub.strategy=checkpoint` lays it out, and in a repository that has nothing else.
    for name, change in {
        "good": lambda data: data,
        "ruined": flipped,
        "garbled": lambda data: b'{"step": 1e999}',
    }.items():
        folder = hub.root / "models/tester" / name
        shutil.copytree(whole / "checkpoints/step_00000004", folder / "last-checkpoint")
        shutil.copy(whole / "metrics.jsonl", folder)
        part = folder / "last-checkpoint" / ("manifest.json" if name == "garbled" else "optimizer.safetensors")
        part.write_bytes(change(part.read_bytes()))
    assert fetched(pushed, "good/checkpoints", "tester/good") == "step_00000004\n"
    ruined = fetched(pushed, "ruined/checkpoints", "tester/ruined").splitlines()
    assert ruined[-1] == (
        "resume=hf://tester/ruined: no checkpoint there can be used; resume=never starts without looking there"
    )
    assert "manifest.json cannot be read" in fetched(pushed, "garbled/checkpoints", "tester/garbled")
