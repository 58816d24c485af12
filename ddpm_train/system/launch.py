"""The programs that launch this one: what they were asked for, and that nothing trains on when they have died.

Accelerate 1.15 leaves CPU processes to mpirun: without a hostfile its `simple_launcher` silently starts one process,
however many `accelerate launch --cpu --num_processes N` asked for. That process hands over to torchrun.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from ddpm_train.system.exit_codes import is_first_process
from ddpm_train.system.failures import first_line

# What Accelerate reads from its environment, and `accelerate launch` writes there for a config file or its flags. Of
# these, runs take over the precision and the CPU; the rest would change gradients, or wait for what never comes.
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "its parallelism",
}
PRECISION = "ACCELERATE_MIXED_PRECISION"
_OFF = ("", "0", "false", "no", "off", "n", "f")
_FLAGS = ("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY", "FORK_LAUNCHED")
_BOTH_WAYS = ("y", "yes", "t", "true", "on", "1", "n", "no", "f", "false", "off", "0")
_STARTED_BY_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# Words of their command lines, or the ends of such: `accelerate launch`, `python -m torch.distributed.run`, …
_LAUNCHERS = (
    *("/accelerate-launch", "accelerate.commands.launch", "accelerate/commands/launch.py"),
    *("/torchrun", "torch.distributed.run", "torch/distributed/run.py", "torch.distributed.launch"),
)
_LOOKS_EVERY_SECONDS = 1.0
# What launchers tell a process of its place among several: the least value of each number, which a process alone has,
# and what Accelerate and torch do not do without.
_LEAST = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
_TOGETHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def num_processes() -> int:
    """How many processes this run has, or will have after `spread`."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # The launcher sets MASTER_ADDR only when it was asked for more than one process.
    alone = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    if not alone or any(name in os.environ for name in _STARTED_BY_MPI):
        return 1
    return int(_launcher_arguments().num_processes or 1)


def precision() -> str:
    """The number format that `accelerate launch` was asked for, by its flag or a config file; "no": float32."""
    return os.environ.get(PRECISION, "no").lower()


def is_one_of_several() -> bool:
    """Whether a launcher has started other processes beside this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hands_over() -> bool:
    """Whether `spread` will replace this process."""
    return "WORLD_SIZE" not in os.environ and num_processes() > 1


def spread() -> None:
    """Replace this process by torchrun with as many processes as the launcher was asked for."""
    if not hands_over():
        return
    port = os.environ.get("MASTER_PORT", "29500")
    # Port 0, any that is free, is not for torchrun's plain rendezvous: each process would take another.
    meeting = ["--standalone"] if port == "0" else ["--master-port", port]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes()), *meeting]
    module = getattr(sys.modules["__main__"], "__spec__", None)  # if this program was started by `-m`
    program = ["-m", module.name] if module is not None else [sys.argv[0]]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup: torchrun would take it for the end
        os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    os.execv(sys.executable, [sys.executable, *torchrun, *program, *sys.argv[1:]])


def _launcher_arguments() -> Any:
    """The parsed command line of the `accelerate launch` that started this process."""
    import psutil
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    command = psutil.Process(os.getppid()).cmdline()
    # `accelerate launch`, `accelerate-launch`, or `python -m accelerate.commands.launch`
    launchers = ("launch", "accelerate-launch", "launch.py", "accelerate.commands.launch")
    launcher = next(place for place, word in enumerate(command) if os.path.basename(word) in launchers)
    arguments = launch_command_parser().parse_args(command[launcher + 1 :])
    return _validate_launch_command(arguments)[0]


def follow_launchers() -> None:
    """Take the death of a program that launched this one for SIGTERM: it would go on unseen, and hold its run.

    `accelerate launch` and torchrun hand on the signals that ask them to stop, if at all, only while they live.
    """
    import psutil

    def is_launcher(process: psutil.Process) -> bool:
        try:
            words = process.cmdline()
        except psutil.Error:  # gone, or another user's
            return False
        accelerate = any(os.path.basename(word) == "accelerate" for word in words)
        return (accelerate and "launch" in words) or any(f"/{word}".endswith(_LAUNCHERS) for word in words)

    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def follow() -> None:
        while all(map(lives, launchers)):
            time.sleep(_LOOKS_EVERY_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    launchers = [parent for parent in psutil.Process().parents() if is_launcher(parent)]
    if launchers:
        threading.Thread(target=follow, name="launchers", daemon=True).start()


def variable_mistakes() -> Iterator[str]:
    """A line for each of the launchers' variables that does not fit the others: left over, or set by hand.

    By these no process knows whether it is the first: whoever finds a mistake must say so.
    """
    remedy = "unset it, or start with accelerate launch or torchrun, which set all of them"
    numbers = {}
    for name, least in _LEAST.items():
        text = os.environ.get(name, str(least))
        if not (text.isascii() and text.isdecimal() and int(text) >= least):
            yield f"{name}={text}: not a whole number from {least} on; {remedy}"
            return
        numbers[name] = int(text)
    # A process alone may have been told that it is the first of one.
    several = [name for name, least in _LEAST.items() if numbers[name] > least]
    several += ["LOCAL_RANK"] if "LOCAL_RANK" in os.environ else []  # by which Accelerate goes on a GPU
    missing = [name for name in _TOGETHER if name not in os.environ]
    if several and missing:
        yield f"{several[0]}={os.environ[several[0]]}: set without {', '.join(missing)}; {remedy}"
        return
    for name, others in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if others in os.environ and numbers[name] >= numbers[others]:
            yield f"{name}={numbers[name]}: too much for {others}={numbers[others]}, as ranks count from 0; {remedy}"
    if (here := numbers["LOCAL_WORLD_SIZE"]) > (all_of_them := numbers["WORLD_SIZE"]):
        yield f"LOCAL_WORLD_SIZE={here}: more processes on this machine than WORLD_SIZE={all_of_them}; {remedy}"


def launch_mistakes() -> Iterator[str]:
    """A line for each. Imports torch only in one of several processes that may use GPUs."""
    if unfit := list(variable_mistakes()):
        yield from unfit
        return
    yield from _accelerate_mistakes()
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # which is also behind `accelerate launch`
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if by_torchrun and local_processes > 1 and os.environ.get("ACCELERATE_USE_CPU") != "True":
        import torch

        num_gpus = torch.cuda.device_count()
        if 0 < num_gpus < local_processes:
            gpus = "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
            yield f"{local_processes} processes: this machine has {gpus}; start one process for each"
    port = os.environ.get("MASTER_PORT", "29500")
    # torchrun listens at the port itself, before it starts processes.
    listens = not by_torchrun and is_first_process() and num_processes() > 1
    if listens and port.isdigit() and (reason := port_error(int(port))):
        yield (
            f"MASTER_PORT={port}: {reason}; choose another port "
            "(accelerate launch --main_process_port 0 takes any that is free)"
        )


def _accelerate_mistakes() -> Iterator[str]:
    """What an Accelerate config says that no run can do, or does by keys of its own."""

    def value(name: str, default: str = "") -> str:
        return os.environ.get(name, default).lower()

    for name in _FLAGS:
        if name in os.environ and value(name) not in _BOTH_WAYS:
            yield f"{name}={os.environ[name]}: neither true nor false; unset it"
    if device := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        import torch

        try:
            torch.empty(1, device=device)
        except Exception as error:  # by the kind of device
            yield f"ACCELERATE_TORCH_DEVICE={device}: {first_line(error)}; unset it, or give cpu or cuda:0"
    for name, what in _SHARDED.items():
        if value(name) not in _OFF:
            yield (
                f"{name}={os.environ[name]}: {what} splits the model, and runs keep a whole one on each device; launch "
                "with --multi_gpu, or a config of distributed_type: MULTI_GPU"
            )
    if (kind := value("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "no")) != "no":
        yield f"ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE={kind}: runs use torch's own processes; launch with torchrun"
    if (steps := value("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        yield (
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps}: would divide the gradients by it once more; unset it, "
            "and set train.batch_size and train.micro_batch_size, from which accumulation follows"
        )
    if (backend := value("ACCELERATE_DYNAMO_BACKEND", "no")) not in _OFF:
        yield (
            f"ACCELERATE_DYNAMO_BACKEND={backend}: compiles beside the run, which would not know it; launch with "
            "--dynamo_backend no, and say train.compile=true"
        )
    if precision() not in ("no", "bf16", "fp16"):
        yield f"{PRECISION}={precision()}: runs compute in no, bf16 or fp16; launch with one of them"
    if (downcast := value("ACCELERATE_DOWNCAST_BF16")) not in _OFF:
        yield f"ACCELERATE_DOWNCAST_BF16={downcast}: changes the precision on TPUs, where no run computes; unset it"


def port_error(port: int) -> str | None:
    """Why no process can listen at a port; None: it can."""
    with socket.socket() as probe:
        # As torch listens: a port whose last connection has just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return os.strerror(error.errno or 0).lower()
    return None
