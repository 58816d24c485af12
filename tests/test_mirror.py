"""Disks vanish, networks fail: what a run has copied to S3 or to a folder brings it back, and never holds it up."""

import itertools
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from helpers.checkpoints import holds, save_step
from helpers.cli import ROOT, TINY, Cli, Once
from helpers.faulty_proxy import Fault, FaultyProxy
from helpers.forked import Fork
from helpers.runs import REQUEUE, same_end, steps_written, wait_for
from moto.server import ThreadedMotoServer

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import compose_configs
from ddpm_train.runs import checkpoint, mirror
from ddpm_train.runs.mirror import Mirror, MirrorThread
from ddpm_train.runs.stores import fetch_newest
from ddpm_train.training.preflight import PROGRAM

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
bucket_numbers = itertools.count()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def proxy(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """S3 behind a network that can fail, for this process and those that it starts."""
    for key, value in CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    with FaultyProxy(*s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield proxy


@pytest.fixture
def bucket(proxy: FaultyProxy) -> str:
    name = f"bucket-{next(bucket_numbers)}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


@pytest.fixture(params=["s3", "folder"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/runs"
    return str(tmp_path / "runs")


def store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return files, root


def whole_steps(url: str, scratch: Path) -> list[int]:
    """The steps at a run's URL, each of which verifies after a plain download."""
    files, root = store(url)
    steps = []
    for folder in files.ls(root, detail=False):
        if (path := Path(folder)).name.startswith("step_"):
            local = scratch / "downloaded" / path.name
            files.get(folder + "/", f"{local}/", recursive=True)
            checkpoint.verify(local)
            steps.append(checkpoint.step_of(local))
    shutil.rmtree(scratch / "downloaded", ignore_errors=True)
    return sorted(steps)


def flip_a_byte(url: str) -> None:
    files, path = store(url)
    content = bytearray(files.cat_file(path))
    content[len(content) // 2] ^= 1
    files.pipe_file(path, bytes(content))


# The command line -----------------------------------------------------------------------------------------------------

SAVES = ("evaluation=none", "lr_scheduler=constant", "checkpoint.every_steps=2", "model.dropout=0.1")
RETAINED = (*SAVES, "checkpoint.keep_last=1", "checkpoint.keep_every_steps=4")


@pytest.fixture(scope="module")
def undisturbed(once: Once) -> Path:
    cli, _ = once("undisturbed_retained", lambda cli: cli.train(*RETAINED, "train.max_steps=10"))
    return cli.output()


def test_a_lost_disk(url: str, cli: Cli, undisturbed: Path) -> None:
    """On an empty disk the same command ends where an undisturbed run ends, bit for bit and with each record once."""
    mirrored = (*RETAINED, f"checkpoint.mirror={url}")
    assert "NOT copied" not in cli.train(*mirrored)
    assert whole_steps(f"{url}/default", cli.folder) == [4, 6]
    shutil.rmtree(cli.folder / "outputs")
    assert "resumes at step 6" in cli.train(*mirrored, "train.max_steps=10")
    same_end(cli.output(), undisturbed, 10)
    assert whole_steps(f"{url}/default", cli.folder) == [4, 8, 10]
    assert not list((cli.output() / "checkpoints").glob(".*"))


def test_the_disk_of_a_machine_that_comes_back_is_behind(cli: Cli) -> None:
    """The run went on elsewhere meanwhile: what the mirror has newer comes first, and the records with it."""
    mirror = f"checkpoint.mirror={cli.folder}/mirror"
    constant = (mirror, "lr_scheduler=constant", "evaluation=none")
    cli.train(*constant, "train.max_steps=2")
    elsewhere = Cli(cli.folder / "elsewhere")
    elsewhere.folder.mkdir()
    assert "resumes at step 2" in elsewhere.train(*constant, "train.max_steps=4")
    assert "resumes at step 4" in cli.train(*constant, "train.max_steps=6")
    assert [record["step"] for record in cli.metrics()] == [1, 2, 3, 4, 5, 6]
    # Without the mirror what is on the disk goes on, and says so.
    shutil.rmtree(cli.folder / "mirror")
    (cli.folder / "mirror").write_text("")
    said = cli.train(*constant, "train.max_steps=8")
    assert "resumes at step 6" in said
    assert f"warning: checkpoint.mirror={cli.folder}/mirror/default: " in said
    assert "goes on from step_00000006 on the disk" in said
    assert "If it has gone further elsewhere, it computes those steps again" in said


def test_runs_do_not_mix(cli: Cli) -> None:
    mirrored = (*SAVES, "checkpoint.mirror=backup/")
    cli.train(*mirrored, "name=one", "train.max_steps=2")
    assert "(new run)" in cli.train(*mirrored, "name=one2", "train.max_steps=3", "seed=1")
    assert whole_steps(str(cli.folder / "backup/one"), cli.folder) == [2]
    assert whole_steps(str(cli.folder / "backup/one2"), cli.folder) == [2, 3]


def test_damage_is_passed_over(cli: Cli) -> None:
    mirrored = (*SAVES, "checkpoint.mirror=backup", "checkpoint.keep_last=3")
    cli.train(*mirrored)
    backup = cli.folder / "backup/default"
    flip_a_byte(f"{backup}/step_00000006/optimizer.safetensors")
    (backup / "step_00000004/manifest.json").unlink()
    shutil.rmtree(cli.folder / "outputs")
    said = cli.train(*mirrored, "train.max_steps=3")
    assert "warning: step_00000006 in backup/default is passed over: optimizer.safetensors has another SHA-256" in said
    assert "warning: step_00000004 in backup/default is passed over: no manifest.json" in said
    assert "resumes at step 2" in said
    # The run has not come to step 6 again: what is there is left alone, and is not its newest.
    assert sorted(path.name for path in backup.iterdir()) == [
        *("metrics.jsonl", "step_00000002", "step_00000003", "step_00000006")
    ]
    flip_a_byte(f"{backup}/step_00000002/unet.safetensors")
    flip_a_byte(f"{backup}/step_00000003/unet.safetensors")
    shutil.rmtree(cli.folder / "outputs")
    said = cli.train(*mirrored, expect=2)
    assert "error: checkpoint.mirror=backup/default: no checkpoint there can be used; give another name=…" in said
    assert not list(cli.folder.glob("outputs/*/checkpoints/step_*"))


# The real program with less patience.
HASTY = """
from ddpm_train.runs import mirror
from ddpm_train.training import train
mirror.RETRY_SECONDS = train.STOP_SECONDS = 2.0
from ddpm_train.cli.train import main
main()
"""


def start_hasty(cli: Cli, *overrides: str) -> Fork:
    (cli.folder / "hasty.py").write_text(HASTY)
    return cli.fork("hasty.py", *TINY, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["busy", "refused"])
def test_a_mirror_that_never_answers_does_not_stop_a_run(
    proxy: FaultyProxy, bucket: str, cli: Cli, failure: str
) -> None:
    """It is told loudly, within a time that our own retries decide and no other layer's multiply."""
    proxy.fault = lambda method, path: "busy"
    if failure == "refused":
        proxy.__exit__()
    started = time.monotonic()
    process = start_hasty(cli, *SAVES, f"checkpoint.mirror={bucket}", "resume=never")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "done: step 6" in out and time.monotonic() - started < 40
    assert f"ERROR: step_00000006 was NOT copied to {bucket}/default: " in err and "Traceback" not in err


@pytest.mark.slow
def test_killed_during_an_upload(proxy: FaultyProxy, bucket: str, cli: Cli) -> None:
    """Training goes on while the upload stands still; what a kill leaves of it is not used, and is cleaned up."""

    def fault(method: str, path: str) -> Fault:
        """The second upload does not come to its end."""
        manifest = any(method == "PUT" and "manifest" in path for method, path, _ in list(proxy.seen))
        return "stall" if manifest and method == "PUT" and "optimizer" in path else None

    proxy.fault = fault
    mirrored = (*SAVES, f"checkpoint.mirror={bucket}", "train.log_every_steps=1")
    process = cli.start_training(*mirrored, "train.max_steps=100000")
    wait_for(lambda: proxy.faults("stall") > 0, process)
    at = steps_written(cli.output())
    wait_for(lambda: steps_written(cli.output()) > at + 50, process)
    process.kill()
    process.communicate()
    proxy.fault = lambda method, path: None
    (whole, _), (torn, torn_is_whole) = Mirror(f"{bucket}/default").steps().items()
    assert not torn_is_whole
    shutil.rmtree(cli.folder / "outputs")
    last = whole + 4
    said = cli.train(*mirrored, f"train.max_steps={last}")
    assert f"warning: step_{torn:08d} in {bucket}/default is passed over: no manifest.json" in said
    assert f"resumes at step {whole}" in said
    assert whole_steps(f"{bucket}/default", cli.folder) == [last - 2, last]


ENDLESS = (*SAVES, "train.max_steps=100000", "train.log_every_steps=1")


def test_a_signal_waits_for_the_mirror(cli: Cli) -> None:
    process = cli.start_training(*ENDLESS, "checkpoint.mirror=backup")
    wait_for(lambda: steps_written(cli.output()) >= 10, process)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == REQUEUE and time.monotonic() - asked < 5
    assert whole_steps(str(cli.folder / "backup/default"), cli.folder)[-1] == steps_written(cli.output())


def test_a_signal_does_not_wait_long_for_the_mirror(proxy: FaultyProxy, bucket: str, cli: Cli) -> None:
    proxy.fault = lambda method, path: "stall" if "step_" in path and method == "PUT" else None
    process = start_hasty(cli, *ENDLESS, f"checkpoint.mirror={bucket}")
    wait_for(lambda: proxy.faults("stall") > 0, process)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == REQUEUE and 2 < time.monotonic() - asked < 8
    newest = checkpoint.published(cli.output() / "checkpoints")[-1].name
    assert f"{newest} was NOT copied to {bucket}/default in 2 s" in err and "Traceback" not in err


def test_mistakes_are_told_before_training(proxy: FaultyProxy, cli: Cli) -> None:
    def said(*overrides: str) -> str:
        error = cli.train(*overrides, expect=2)
        assert error.count("\n") == 1 and not (cli.output() / "metrics.jsonl").exists()
        return error

    assert said("checkpoint.mirror=s3://no-such-bucket") == (
        "error: checkpoint.mirror=s3://no-such-bucket/default: The specified bucket does not exist; "
        "give another one, or resume=never to start without looking there\n"
    )
    assert said("checkpoint.mirror=s4://bucket") == (
        "error: checkpoint.mirror=s4://bucket: Protocol not known: s4; give a URL that can be written to, such as "
        "s3://bucket/runs, or a folder\n"
    )
    # As where the extra is not installed.
    (cli.folder / "s3fs.py").write_text("raise ImportError('No module named s3fs')")
    train = [sys.executable, str(ROOT / "train.py"), "checkpoint.mirror=s3://bucket"]
    said_without = cli.run(train, expect=2, PYTHONPATH=f"{cli.folder}:{ROOT}")
    assert said_without.startswith("error: checkpoint.mirror=s3://bucket")
    assert said_without.endswith(": Install s3fs to access S3; pip install 'ddpm-train[s3]'\n")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("scheme", ["zip", "tar", "github", "ftp", "dir", "generic", "reference", "jupyter", "dbfs"])
@pytest.mark.parametrize("place", ["", "nowhere.invalid/x"])
def test_what_cannot_be_opened_is_told_in_a_line(scheme: str, place: str) -> None:
    with pytest.raises(Mistakes) as raised:
        compose_configs(PROGRAM, [f"checkpoint.mirror='{scheme}://{place}'"])
    (line,) = raised.value.lines
    assert line.startswith(f"checkpoint.mirror={scheme}://{place}: ") and line.endswith("s3://bucket/runs, or a folder")


def test_what_no_retry_helps_is_told_at_once(
    proxy: FaultyProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(Mistakes, match="Unable to locate credentials"):
        fetch_newest(Mirror(f"{bucket}/run"), tmp_path / "back", None, pytest.fail)
    assert time.monotonic() - started < 5


# The wire -------------------------------------------------------------------------------------------------------------


def first(count: int, fault: Fault, *wanted: str) -> Callable[[str, str], Fault]:
    """That fault for the first requests with all of `wanted` in "METHOD path"."""
    left = iter(range(count))

    def decide(method: str, path: str) -> Fault:
        matches = all(part in f"{method} {path}" for part in wanted)
        return fault if matches and next(left, None) is not None else None

    return decide


def copied(mirror: Mirror, path: Path, target: Path) -> Path:
    """A checkpoint sent to the mirror and fetched from it again, into a new folder."""
    mirror.upload(path, path.parent.parent / "metrics.jsonl")
    found = fetch_newest(mirror, target, None, pytest.fail)
    assert found == target / path.name
    return found


@pytest.mark.parametrize(
    ("count", "fault", "wanted"),
    [
        (6, "busy", ()),
        (2, "cut", ("PUT", "unet.safetensors")),
        (1, "cut", ("PUT", "manifest.json")),
        (8, "cut", ("GET", "unet.safetensors")),
        (1, "cut", ("GET", "list-type")),
    ],
)
def test_faults_are_outlived(
    proxy: FaultyProxy, bucket: str, tmp_path: Path, count: int, fault: Fault, wanted: tuple[str, ...]
) -> None:
    path = save_step(tmp_path / "run/checkpoints", 7)
    proxy.fault = first(count, fault, *wanted)
    assert holds(copied(Mirror(f"{bucket}/run"), path, tmp_path / "back/checkpoints"), 7)
    assert proxy.faults(fault) == count


def test_the_manifest_goes_up_last_and_is_removed_first(proxy: FaultyProxy, bucket: str, tmp_path: Path) -> None:
    """Also over a checkpoint of the same step, which otherwise would have the manifest of other files for a while."""
    path = save_step(tmp_path / "checkpoints", 7)
    mirror = Mirror(f"{bucket}/run")
    mirror.upload(path, tmp_path / "none")
    before = len(proxy.seen)
    mirror.upload(path, tmp_path / "none")
    changes = [(method, url) for method, url, _ in proxy.seen[before:] if method in ("PUT", "POST", "DELETE")]
    assert changes[0][0] == "DELETE" and changes[0][1].endswith("step_00000007/manifest.json")
    assert changes[-1][0] == "PUT" and changes[-1][1].endswith("step_00000007/manifest.json")


def test_an_outage_is_not_an_empty_mirror(
    proxy: FaultyProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of listing, of reading: a fresh start, or an older checkpoint, would silently repeat what is there."""
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.0)
    run = Mirror(f"{bucket}/run")
    for step in (1, 2):
        run.upload(save_step(tmp_path / "checkpoints", step), tmp_path / "none")
    for wanted in (("list-type",), ("GET", "step_00000002/unet")):
        proxy.fault = first(1000, "busy", *wanted)
        with pytest.raises(Mistakes, match="reduce your request rate"):
            fetch_newest(run, tmp_path / "back", None, pytest.fail)
        assert not list((tmp_path / "back").glob("*step*"))


def test_retention(url: str, tmp_path: Path) -> None:
    run = Mirror(f"{url}/run")
    for step in (1, 2, 3, 4, 5, 9):
        run.upload(save_step(tmp_path / "checkpoints", step), tmp_path / "none")
    files, root = store(f"{url}/run")
    files.rm_file(f"{root}/step_00000004/manifest.json")
    run.prune(5, checkpoint.Retention(1, 2))
    assert whole_steps(f"{url}/run", tmp_path) == [2, 5, 9]
    run.prune(9, checkpoint.Retention(None, None))
    assert run.steps() == {2: True, 5: True, 9: True}


def test_a_torn_first_upload_is_a_fresh_start(url: str, tmp_path: Path) -> None:
    """There never was a checkpoint; what was damaged later is another matter."""
    run = Mirror(f"{url}/run")
    warnings: list[str] = []
    assert fetch_newest(run, tmp_path / "back", None, warnings.append) is None and not warnings
    run.upload(save_step(tmp_path / "checkpoints", 3), tmp_path / "none")
    files, root = store(f"{url}/run")
    manifest = files.cat_file(f"{root}/step_00000003/manifest.json")
    files.rm_file(f"{root}/step_00000003/manifest.json")
    assert fetch_newest(run, tmp_path / "back", None, warnings.append) is None and len(warnings) == 1
    files.pipe_file(f"{root}/step_00000003/manifest.json", manifest)
    flip_a_byte(f"{url}/run/step_00000003/ema.safetensors")
    with pytest.raises(Mistakes, match="no checkpoint there can be used"):
        fetch_newest(run, tmp_path / "back", None, warnings.append)
    assert len(warnings) == 2 and not list((tmp_path / "back").iterdir())


# The thread -----------------------------------------------------------------------------------------------------------


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_pruned_while_it_is_sent(proxy: FaultyProxy, bucket: str, tmp_path: Path) -> None:
    """Were an upload torn by each pruning, a slow network would never get a whole checkpoint."""
    proxy.fault = first(1, "stall", "PUT", "ema.safetensors")
    thread = MirrorThread(Mirror(f"{bucket}/run"), checkpoint.Retention(2, None), pytest.fail)
    checkpoints = tmp_path / "run/checkpoints"
    thread.submit(save_step(checkpoints, 1))
    until(lambda: proxy.faults("stall") == 1)
    for step in (2, 3, 4):
        path = save_step(checkpoints, step)
        checkpoint.prune(checkpoints, checkpoint.Retention(2, None))
        thread.submit(path)
    proxy.release.set()
    thread.finish(30)
    order = [path.split("/")[-2] for method, path, _ in proxy.seen if method == "PUT" and "manifest" in path]
    assert order == ["step_00000001", "step_00000004", "step_00000003"]
    assert whole_steps(f"{bucket}/run", tmp_path) == [3, 4]


def test_after_an_outage_the_next_save_brings_the_missed_ones(
    proxy: FaultyProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.0)
    warnings: list[str] = []
    thread = MirrorThread(Mirror(f"{bucket}/run"), checkpoint.Retention(None, None), warnings.append)
    proxy.fault = lambda method, path: "busy"
    for step in (1, 2):
        thread.submit(save_step(tmp_path / "run/checkpoints", step))
        thread.finish(30)
    assert [warning.split()[1] for warning in warnings] == ["step_00000001", "step_00000002"]
    proxy.fault = lambda method, path: None
    thread.submit(save_step(tmp_path / "run/checkpoints", 3))
    thread.finish(30)
    assert len(warnings) == 2 and whole_steps(f"{bucket}/run", tmp_path) == [1, 2, 3]
