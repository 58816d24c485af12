"""A process that has paid for the imports and forks into programs: what `python ARGUMENTS` does, seconds sooner.

`python -m helpers.fork_server FD` accepts connections to that socket and reads requests from them, one message each: a
JSON object and the file descriptors of a status pipe, stdin, stdout and stderr. It writes to the status pipe a line
with the number of the new process and, when that has ended, a line with its exit code. When a connection is closed,
what was forked for it ends, and with the last one the server.

With $FORK_CHILDREN a program also forks what it would start as `python …` with `subprocess`: its own children, with
their own numbers, sessions and signals, as ever.
"""

import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = (
    *("ddpm_train.cli.train", "ddpm_train.cli.sample", "ddpm_train.cli.evaluate", "ddpm_train.cli.push"),
    *("ddpm_train.training.train", "ddpm_train.sampling.sample", "ddpm_train.evaluation.evaluate"),
    *("ddpm_train.hub.push", "diffusers.DDPMPipeline", "diffusers.UNet2DModel", "matplotlib.pyplot"),
    *("torch.utils.tensorboard", "tensorboard.plugins.hparams.api_pb2", "tensorboard.plugins.hparams.metadata"),
    *("torch_fidelity", "torch._inductor.compile_fx", "ddpm_train.system.shutdown"),
    *("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_submitit_launcher.submitit_launcher"),
)
# These have read their settings from the environment of this process.
READ_THE_ENVIRONMENT = ("huggingface_hub.constants", "datasets.config")
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


def serve(listening: socket.socket) -> None:
    """Fork for each request of those who connect, and report the ends, until all of them have left.

    Who leaves ends what was forked for it.
    """
    waiting = selectors.DefaultSelector()
    waiting.register(listening, selectors.EVENT_READ)
    channels: dict[int, socket.socket] = {}
    children: dict[int, tuple[int, int, int]] = {}  # a process's descriptor: its number, status pipe and channel
    while True:
        for key, _ in waiting.select():
            if key.fd == listening.fileno():
                channel, _ = listening.accept()
                channels[channel.fileno()] = channel
                waiting.register(channel, selectors.EVENT_READ)
            elif key.fd in channels:
                if not take_request(channels[key.fd], waiting, children):
                    for pid in (pid for pid, _, asked_by in children.values() if asked_by == key.fd):
                        os.kill(pid, signal.SIGKILL)
                    waiting.unregister(key.fd)
                    channels.pop(key.fd).close()
                    if not channels:
                        return
            else:
                waiting.unregister(key.fd)
                pid, status, _ = children.pop(key.fd)
                report(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(status)
                os.close(key.fd)


def take_request(
    channel: socket.socket, waiting: selectors.BaseSelector, children: dict[int, tuple[int, int, int]]
) -> bool:
    """Fork as the next message asks; False if there is none any more."""
    message, descriptors = received(channel)
    if not message:
        return False
    status, *streams = descriptors
    pid = os.fork()
    if pid == 0:
        become(json.loads(message), streams)
    report(status, pid)
    for stream in streams:
        os.close(stream)
    process = os.pidfd_open(pid)
    children[process] = (pid, status, channel.fileno())
    waiting.register(process, selectors.EVENT_READ)
    return True


def received(channel: socket.socket) -> tuple[bytes, list[int]]:
    """A request and its descriptors; nothing when the other end is closed."""
    message, ancillary, _, _ = channel.recvmsg(2**20, socket.CMSG_SPACE(4 * array.array("i").itemsize))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return message, list(descriptors)


def send(channel: socket.socket, request: dict[str, object], descriptors: list[int]) -> None:
    theirs = array.array("i", descriptors)
    channel.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, theirs)])


def report(pipe: int, number: int) -> None:
    """Write a line, unless nobody reads it any more."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, f"{number}\n".encode())


def become(request: dict[str, object], streams: list[int]) -> NoReturn:
    """Be a Python process with those arguments, folder, environment and streams, and end as one."""
    code: object = 1
    try:
        if request["session"]:
            os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(str(request["folder"]))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, max(streams) + 1000)
        if "FORK_CHILDREN" in request["environment"]:  # type: ignore[operator]
            fork_children()
        sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
        settle(request["environment"])  # type: ignore[arg-type]
        run_python(*request["python"])  # type: ignore[misc]
        code = 0
    except SystemExit as left:
        code = 0 if left.code is None else left.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except KeyboardInterrupt:
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()  # waits for threads, as every Python process does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120  # as Python says it
    finally:
        if code == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code & 255 if isinstance(code, int) else 1)


def fork_children() -> None:
    """Have `subprocess` ask a copy of this process, from before it is anything, for each Python that it shall start."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # their parent, when the one that forked them is gone
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lock, start_really = threading.Lock(), subprocess._fork_exec  # type: ignore[attr-defined]
    if os.fork() == 0:
        ours.close()
        for number in range(3):  # whoever reads this process's streams waits for it alone
            os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), number)
        bear(theirs)
    theirs.close()

    def start(command: list[str], *how: Any) -> int:
        words = [word for word in map(os.fsdecode, command) if word not in ("-u", "-P")]
        _, _, passed, folder, environment, stdin, _, _, stdout, _, stderr, *_ = how
        plain = len(words) > 1 and (words[1] in ("-m", "-c") or words[1].endswith(".py"))
        if words[0] != sys.executable or not plain or len(passed) > 1:  # beside the pipe of `subprocess` itself
            return int(start_really(command, *how))
        pairs = (os.fsdecode(pair).split("=", 1) for pair in environment or ())
        request = {"python": words[1:], "folder": os.fsdecode(folder or os.getcwd()), "session": bool(how[14])}
        request["environment"] = dict(os.environ) if environment is None else dict(pairs)
        streams = [own if given == -1 else given for own, given in enumerate((stdin, stdout, stderr))]
        with lock:
            send(ours, request, streams)
            return int(ours.recv(32))

    subprocess._fork_exec = start  # type: ignore[attr-defined]


def bear(channel: socket.socket) -> NoReturn:
    """Fork for each request, as a child of the process that asks, until that is gone."""
    while True:
        message, streams = received(channel)
        if not message:
            os._exit(0)
        born, born_end = os.pipe()
        between = os.fork()
        if between == 0:
            between_them = os.getpid()
            if os.fork() > 0:
                os._exit(0)
            os.write(born_end, str(os.getpid()).encode())
            os.close(born_end)
            while os.getppid() == between_them:
                os.sched_yield()
            become(json.loads(message), streams)
        os.waitpid(between, 0)
        channel.send(os.read(born, 32))
        for descriptor in (born, born_end, *streams):
            os.close(descriptor)


def settle(environment: dict[str, str]) -> None:
    """Live in that environment, also where this process has read another one while it was importing."""
    os.environ.clear()
    os.environ.update(environment)
    for name in READ_THE_ENVIRONMENT:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    runpy.run_path(str(Path(__file__).parent / "at_start/sitecustomize.py"))


def run_python(first: str, *arguments: str) -> None:
    """`python FIRST ARGUMENTS`, where `first` is -m, -c or a file."""
    if first == "-m":
        sys.path.insert(0, os.getcwd())
        module, *sys.argv[1:] = arguments
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        code, *words = arguments
        sys.argv = ["-c", *words]
        sys.modules["__main__"] = program = types.ModuleType("__main__")
        exec(code, program.__dict__)
    else:
        sys.path.insert(0, str(Path(first).resolve().parent))
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


def preload() -> None:
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:  # a class that its package imports when it is asked for
            package, _, attribute = name.rpartition(".")
            getattr(importlib.import_module(package), attribute)
    from PIL import Image

    Image.init()
    use_once()
    assert threading.active_count() == 1, "a fork has only the thread that forks"
    gc.collect()
    gc.freeze()  # what is here stays, and collecting need not touch it


def use_once() -> None:
    """Do what most programs do, so that fonts, the parser's tables, templates and kernels are there for all."""
    import torch
    from diffusers import DDPMScheduler

    from ddpm_train.config.program import compose_configs
    from ddpm_train.models.unet import build_unet
    from ddpm_train.report.evidence import read_folder
    from ddpm_train.report.page import render
    from ddpm_train.system.compute import PLAIN
    from ddpm_train.training.forecast import activation_bytes
    from ddpm_train.training.preflight import PROGRAM
    from helpers.cli import TINY

    ((config, _),) = compose_configs(PROGRAM, list(TINY))
    activation_bytes(config, PLAIN)
    unet = build_unet(config.model, config.dataset, config.noise_scheduler, seed=0)
    with torch.no_grad():
        for batch in (4, 16, 500, 512):  # sampled, trained on, held out, noised
            unet(torch.zeros(batch, 1, 8, 8), 0)
    assert DDPMScheduler().compatibles  # which diffusers imports for every `from_config`
    render(read_folder(Path(__file__).parents[1] / "data/run_before_rooms"))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening = socket.socket(fileno=int(sys.argv[1]))
    preload()
    serve(listening)
