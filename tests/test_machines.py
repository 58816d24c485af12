"""Machines that share no disk: two folders with a home, a cache and a working directory each, and a process in each."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.cli import FORK_CHILDREN, ROOT, TINY, Cli, Process, ended, ranks
from helpers.forked import free_port
from helpers.runs import same_end

RUN = (
    *("evaluation=none", "tracker=none", "lr_scheduler=constant"),
    *("dataset.random_flip=true", "checkpoint.every_steps=3"),
)


class Machines:
    """Two of them. The first has the main process."""

    def __init__(self, folder: Path) -> None:
        self.each = [Cli(folder / name) for name in ("first", "second")]
        for machine in self.each:
            machine.folder.mkdir()
            machine.environment["HOME"] = str(machine.folder)
        self.first, self.second = self.each

    def train(self, *overrides: str, expect: int = 0, second: Sequence[str] = ()) -> str:
        """`ddpm-train OVERRIDES` on both, with further ones on the second; returns what they said.

        Both must end with that exit code.
        """
        return self.run("-m", "ddpm_train.cli.train", *TINY, *RUN, *overrides, expect=expect, second=second)

    def run(self, *python: str, expect: int = 0, second: Sequence[str] = ()) -> str:
        """The same for `python ARGUMENTS`."""
        alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        commands = (python, (*python, *second))
        started = zip(self.each, commands, ranks(2), strict=True)
        return _ends([cli.fork(*command, **{**rank, **alone}) for cli, command, rank in started], expect)

    def torchrun(self, *overrides: str) -> str:
        """The same for `ddpm-train OVERRIDES`, by a launcher on each."""
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--master-addr=127.0.0.1"]
        program = [f"--master-port={free_port()}", str(ROOT / "train.py"), *TINY, *RUN, *overrides]
        environment = {"ACCELERATE_USE_CPU": "True", "OMP_NUM_THREADS": "1", **FORK_CHILDREN}
        commands = [[*torchrun, f"--node-rank={rank}", *program] for rank in range(2)]
        started = zip(self.each, commands, strict=True)
        return _ends([cli.fork(*command, **environment) for cli, command in started], 0)


def _ends(processes: Sequence[Process], expect: int) -> str:
    with ThreadPoolExecutor(len(processes)) as pool:
        return "".join(pool.map(lambda process: ended(process, expect), processes))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    both = Machines(tmp_path)
    yield both
    for machine in both.each:
        machine.close()


@pytest.mark.slow
def test_a_run_goes_on_where_only_the_first_machine_has_its_checkpoint(machines: Machines, cli: Cli) -> None:
    """From a mirror, on new machines, of which the second has a stale folder of the same name."""
    mirror = f"checkpoint.mirror={machines.first.folder / 'mirror'}"
    machines.train(mirror, "train.max_steps=3")
    assert not (machines.second.folder / "outputs").exists()
    shutil.rmtree(machines.first.output())
    machines.second.train(*RUN, "train.max_steps=3", "seed=1")
    stale = machines.second.output()
    before = {path: path.read_bytes() for path in stale.rglob("*") if path.is_file()}
    assert "resumes at step 3" in machines.torchrun(mirror)
    assert before == {path: path.read_bytes() for path in stale.rglob("*") if path.is_file()}
    cli.together(*RUN, "name=whole", num_processes=2)
    same_end(machines.first.output(), cli.output("whole"), 6)
    assert "finished at step 6" in machines.train(mirror)


def test_what_the_second_machine_lacks_ends_both_in_a_line(
    machines: Machines, write_images: Callable[[Path, int], Path]
) -> None:
    for machine in machines.each:
        write_images(machine.folder / "photographs", 32)
    folder = ("dataset=imagefolder", "dataset.path=photographs", "dataset.channels=1")
    for picture in sorted((machines.second.folder / "photographs").iterdir())[:2]:
        picture.unlink()
    said = machines.train(*folder, expect=2)
    assert "error: dataset.path=photographs: not the same on process 1 on " in said
    assert "30 images, not 32; every machine needs the same dataset" in said and said.count("error: ") == 1
    shutil.rmtree(machines.second.folder / "photographs")
    write_images(machines.second.folder / "photographs", 33)
    next(iter(sorted((machines.second.folder / "photographs").iterdir()))).unlink()
    said = machines.train(*folder, expect=2)
    assert (
        "the same number of images, but other ones; every machine needs the same dataset" in said
        and said.count("error: ") == 1
    )
    shutil.rmtree(machines.second.folder / "photographs")
    (line,) = machines.train(*folder, expect=2).splitlines()
    assert line.startswith("error: dataset.path=photographs: ") and "(process 1 on " in line


def test_a_mistake_that_all_have_is_told_once_and_names_nobody(machines: Machines) -> None:
    (line,) = machines.train("train.batch_size=17", expect=2).splitlines()
    assert line.startswith("error: train.batch_size=17: ") and "process 0 on" not in line


def test_another_command_on_one_machine_ends_both(machines: Machines) -> None:
    (line,) = machines.train(expect=2, second=["optimizer.lr=1e-4"]).splitlines()
    assert line.startswith("error: the config: not the same on process 1 on ")
    assert line.endswith("optimizer.lr=0.0001, not 0.001; give every process the same command")


# A bit that flips on the way, or in the memory, of one machine.
FLIPPED = """
import os
from ddpm_train.cli.train import main
from ddpm_train.training import resume

def receive(tensor, exchange=resume.broadcast):
    exchange(tensor)
    if os.environ["RANK"] == "1" and tensor.is_floating_point():
        tensor *= 1.0001

resume.broadcast = receive
main()
"""


def test_a_state_that_differs_ends_the_run_before_it_trains(machines: Machines) -> None:
    said = machines.run("-c", FLIPPED, *TINY, *RUN, expect=1)
    assert "error: the state at step 0 is not the same on process 1 on " in said
    assert not (machines.first.output() / "checkpoints").exists()


# The device's exchange gives up after a second, which on GPUs are ten minutes.
SLOWLY = """
import datetime, os, time
import torch.distributed as dist
from ddpm_train.system import ranks

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=1))
main = os.environ["RANK"] == "0"

def slowly():
    time.sleep(1.5)
    return os.getpid()

assert len(set(ranks.gather(ranks.on_main(slowly)))) == 1
ranks.everywhere(lambda: slowly() if main else None)
print("patient")
ranks.leave()
"""


def test_processes_wait_longer_for_each_other_than_devices_do(machines: Machines) -> None:
    assert machines.run("-c", SLOWLY).count("patient") == 2


# Errors that another process cannot be sent, and one that it does not share.
FAILING = """
import os
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.system import ranks
from ddpm_train.system.signals import Stopped

main = os.environ["RANK"] == "0"

class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

def raises(error):
    raise error

def told(call):
    try:
        call()
    except (Exception, Stopped) as error:
        return f"{type(error).__name__}: {error}"

assert told(lambda: ranks.on_main(lambda: raises(Odd("this", "that")))) == "RuntimeError: Odd: this and that"
alone = told(lambda: ranks.everywhere(lambda: None if main else raises(ValueError("broken"))))
assert alone.startswith("FailedElsewhere: process 1 on ") if main else alone == "ValueError: broken", alone
assert alone.endswith("ValueError: broken")
mistakes = told(lambda: ranks.everywhere(lambda: raises(Mistakes("all have it", *([] if main else ["one has it"])))))
assert mistakes.startswith("Mistakes: all have it\\none has it (process 1 on "), mistakes
stopped = told(lambda: ranks.everywhere(lambda: None if main else raises(Stopped("SIGTERM"))))
assert stopped == ("Stopped: another process was asked to" if main else "Stopped: SIGTERM"), stopped
assert told(lambda: ranks.on_main(lambda: raises(Stopped("SIGUSR1")))) == "Stopped: SIGUSR1"
print("told")
ranks.leave()
"""


def test_every_process_knows_what_happened_on_one(machines: Machines) -> None:
    assert machines.run("-c", FAILING).count("told") == 2
