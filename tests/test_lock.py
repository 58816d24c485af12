"""A process that was taken for dead finds that out when it wakes, and writes nothing more of the run."""

import json
import signal
import socket
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.cli import TINY, Cli
from helpers.runs import REQUEUE, steps_written, wait_for

from ddpm_train.runs import lock as locks
from ddpm_train.runs.lock import Holder, RunLock, TakenOver, read_holder

# The program as on a host of its own, with hasty beats.
ON_A_HOST = """
import os, socket
socket.gethostname = lambda: os.environ["HOST"]
from ddpm_train.runs import lock
lock.BEAT_SECONDS = 0.2
from ddpm_train.cli.train import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_was_taken_over(cli: Cli, ended: bool) -> None:
    """Stopped, taken over on a host that does not see its lock, continued: the first leaves everything to the second,
    also where that has come to the end already."""
    (cli.folder / "on_a_host.py").write_text(ON_A_HOST)
    saves = ("checkpoint.every_steps=5", "checkpoint.keep_last=1", "evaluation=none", "lr_scheduler=constant")
    command = ("on_a_host.py", *TINY, *saves, f"checkpoint.mirror={cli.folder}/mirror", "train.log_every_steps=1")
    checkpoints, mirror = cli.output() / "checkpoints", cli.folder / "mirror/default"

    first = cli.fork(*command, "train.max_steps=100000", HOST="first")
    wait_for(lambda: any(mirror.glob("step_*/manifest.json")), first)
    first.send_signal(signal.SIGSTOP)
    (cli.output() / ".lock").unlink()  # a second host would not see that it is held
    at = steps_written(cli.output())
    last = at + 20 if ended else 100000
    second = cli.fork(*command, f"train.max_steps={last}", HOST="second")
    if ended:
        out, err = second.communicate()
        assert second.returncode == 0 and f"done: step {last}" in out, (out, err)
    else:
        wait_for(lambda: steps_written(cli.output()) >= at + 20, second)
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 2 and "Traceback" not in err
    error = f"error: output_dir=outputs/default: process {second.pid} on second has taken this run over"
    assert any(line.startswith(error) for line in err.splitlines())
    if not ended:
        wait_for(lambda: steps_written(cli.output()) >= at + 40, second)
        second.send_signal(signal.SIGTERM)
        second.communicate(timeout=60)
        assert second.returncode == REQUEUE
        last = steps_written(cli.output())
    assert [record["step"] for record in cli.metrics()] == list(range(1, last + 1))
    for place in (checkpoints, mirror):
        assert [path.name for path in place.glob("step_*")] == [f"step_{last:08}"]


def heartbeat(folder: Path, holder: Holder) -> None:
    (folder / ".heartbeat").write_text(json.dumps(asdict(holder)))


def test_only_a_successor_takes_over(tmp_path: Path) -> None:
    """A beat that a predecessor had begun before it was held up, or a file that cannot be read, ends nobody's run."""
    lock = RunLock(tmp_path)
    heartbeat(tmp_path, Holder("elsewhere", 7, 3, "theirs", 4, held=False))
    lock.acquire()
    mine = read_holder(tmp_path)
    assert mine is not None and mine.generation == 5
    heartbeat(tmp_path, Holder("elsewhere", 7, 4, "theirs", 4))
    lock.check()
    (tmp_path / ".heartbeat").write_text("{}")
    lock.check()
    (tmp_path / ".heartbeat").unlink()
    lock.check()
    # A container that came back has the host and the number of the one before it.
    successor = replace(mine, token="theirs", generation=6)
    heartbeat(tmp_path, successor)
    with pytest.raises(TakenOver, match="has taken this run over"):
        lock.check()
    lock.release()
    assert lock.is_lost and read_holder(tmp_path) == successor


def test_a_beat_that_was_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen after it looked and before it wrote, it hides nobody: also not one that has come to the end since."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    looked, go_on, looked_again = threading.Event(), threading.Event(), threading.Event()

    class Frozen(RunLock):
        def check(self) -> None:
            if looked.is_set():
                looked_again.set()
            super().check()
            if not looked.is_set():
                looked.set()
                go_on.wait()

    first, second = Frozen(tmp_path), RunLock(tmp_path)
    first.acquire()
    looked.wait()
    (tmp_path / ".lock").unlink()  # a second host would not see that it is held
    second.acquire()
    second.release()
    last = read_holder(tmp_path)
    assert last is not None and last.generation == 2 and not last.held
    go_on.set()
    looked_again.wait()
    with pytest.raises(TakenOver):
        first.check()
    first.release()
    assert first.is_lost and read_holder(tmp_path) == last


# The system answers that the disk has no locks, as NFS does without its daemon: a filter of system calls (seccomp(2)).
# Who takes the run says so, and holds it until it is killed.
WITHOUT_LOCKS = """
import ctypes, errno, platform, signal, struct, sys
flock = {"x86_64": 73, "aarch64": 32}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, flock), (0x06, 0, 0, 0x00050000 | errno.ENOLCK), (0x06, 0, 0, 0x7FFF0000)]
steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(steps))
prctl = ctypes.CDLL(None).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program, 0, 0) == 0

from pathlib import Path
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.content import content_hash
from ddpm_train.runs import lock
lock.BEAT_SECONDS = 0.1
try:
    lock.RunLock(Path("run")).acquire()
except Mistakes as mistakes:
    sys.exit(str(mistakes))
print(content_hash(Path("."), ["image"], Path("cache")), flush=True)
signal.pause()
"""


def test_a_disk_without_locks(cli: Cli) -> None:
    """The living holder is told from the dead one by its beats, on one host, too."""
    (cli.folder / "image").write_bytes(b"")
    first = cli.fork("-c", WITHOUT_LOCKS)
    assert first.stdout.readline()
    refused = f"output_dir=run: process {first.pid} on {socket.gethostname()} is training this run; wait for it"
    assert refused in cli.python("-c", WITHOUT_LOCKS, expect=1)
    first.kill()
    second = cli.fork("-c", WITHOUT_LOCKS)
    assert second.stdout.readline()
    second.kill()
