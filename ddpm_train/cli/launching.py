"""What is wrong with how the processes of a run were started, as far as one of them can see."""

import os
import socket
from collections.abc import Iterator

from ddpm_train.cli import cpu_processes


def launch_mistakes() -> Iterator[str]:
    """A line for each. Imports torch only in one of several processes that may use GPUs."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # which is also behind `accelerate launch`
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if by_torchrun and local_processes > 1 and os.environ.get("ACCELERATE_USE_CPU") != "True":
        yield from _device_mistakes(local_processes)
    # torchrun listens at the port itself, before it starts processes.
    if not by_torchrun and os.environ.get("RANK", "0") == "0" and cpu_processes.num_processes() > 1:
        yield from _port_mistakes(os.environ.get("MASTER_PORT", "29500"))


def _device_mistakes(local_processes: int) -> Iterator[str]:
    import torch

    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < local_processes:
        gpus = "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
        yield f"{local_processes} processes: this machine has {gpus}; start one process for each"


def _port_mistakes(port: str) -> Iterator[str]:
    if not port.isdigit():
        return
    with socket.socket() as probe:
        # As torch listens: a port whose last connection has just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            yield (
                f"MASTER_PORT={port}: {os.strerror(error.errno or 0).lower()}; choose another port "
                "(accelerate launch --main_process_port 0 takes any that is free)"
            )
