"""Programs in forks of one process that has paid for the imports: the same `main`, seconds sooner.

What is to be killed is started as a real process.
"""

import importlib
import multiprocessing
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "ddpm_train.training.train",
        "ddpm_train.sampling.sample",
        "ddpm_train.evaluation.evaluate",
        "torch.utils.tensorboard",
    ]
)


def run_forked(
    module: str, arguments: Sequence[str], folder: Path, environment: dict[str, str], num_processes: int = 1
) -> tuple[int, str]:
    """The exit code of `module`'s `main` in `folder`, and what it said to stdout and stderr.

    Several processes find each other as those that torchrun starts; the code is then 0 if it is 0 for all of them.
    """
    said = folder / ".said.txt"
    said.write_text("")
    together = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(num_processes):
        ranked = {**together, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "True"}
        own = environment if num_processes == 1 else {**environment, **ranked}
        processes.append(_SERVER.Process(target=become, args=(partial(_main, module, arguments), folder, own, said)))
        processes[-1].start()
    try:
        for process in processes:
            process.join(300)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return max((abs(process.exitcode or 0) for process in processes), default=0), said.read_text()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def settle(environment: dict[str, str]) -> None:
    """Live in that environment, also where this process has read another one while it was importing."""
    os.environ.clear()
    os.environ.update(environment)
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    if "STRAYS" in environment:  # see there
        runpy.run_path(str(Path(__file__).parent / "only_loopback/sitecustomize.py"))


def _main(module: str, arguments: Sequence[str]) -> None:
    sys.argv = [module, *arguments]
    importlib.import_module(module).main()


def become(action: Callable[[], None], folder: Path, environment: dict[str, str], said: Path) -> NoReturn:
    """Be a program that does this and ends, and says what it says to the end of a file."""
    code: object = 1
    try:
        os.chdir(folder)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        settle(environment)
        action()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
