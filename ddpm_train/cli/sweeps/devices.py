"""The devices and threads of each job, where several run at a time. Imports no torch."""

import itertools
import os
import shutil
import subprocess

from ddpm_train.system.launch import num_cores


def visible_gpus() -> list[str]:
    """The GPUs that a job may be given, by the names that CUDA_VISIBLE_DEVICES takes."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name not in ("", "-1", "NoDevFiles")]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=60)
    return listed.stdout.split() if listed.returncode == 0 else []


def shares(max_parallel: int | None, num_processes: int) -> list[dict[str, str]]:
    """The environment of each place for a job.

    Args:
        max_parallel: how many places; None: one for each `num_processes` GPUs, on a CPU one. More places than the
            GPUs are enough for share them.
        num_processes: of one job, each with a GPU of its own.
    """
    gpus = visible_gpus()
    count = max_parallel or max(1, len(gpus) // num_processes)
    if not gpus:
        threads = max(1, num_cores() // (count * num_processes))
        return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}] * count
    in_turn = itertools.cycle(gpus)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(itertools.islice(in_turn, num_processes))} for _ in range(count)]


def accelerate_launch(num_processes: int, port: int | None = None) -> list[str]:
    """What stands between Python and a program for it to run in so many processes, with a GPU each if there are any.

    Args:
        port: where they meet; None: one that is free.
    """
    several = ["--multi_gpu"] if num_processes > 1 else []
    return [
        *("-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", str(num_processes)),
        *("--main_process_port", str(port or 0), "--mixed_precision", "no", "--dynamo_backend", "no"),
        *(several if visible_gpus() else ["--cpu"]),
    ]
