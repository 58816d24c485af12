"""`train.py` with an instrument built in: python watched_train.py INSTRUMENT[=VALUE] OVERRIDES…

syncs         from its second step on training may not ask the device for a value: counts on a CPU, raises on a GPU
exchanges     how often gradients are exchanged in each step
room=MB       no more memory than this, from the moment that the network is built
room_at_3=MB  the same, but from the third step on
room_in_evaluation=MB  the same, but from the first evaluation on

Memory can be limited only in the environment `LEAN`.
"""

import ctypes
import gc
import resource
import sys
from collections import Counter
from typing import Any

import psutil
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_train.cli import train
from ddpm_train.training import run
from ddpm_train.training.evaluation import Evaluation
from ddpm_train.training.loop import Trainer

# What makes the host wait for a device: .item(), a mask as an index, a comparison of whole tensors.
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h
counted: Counter[str] = Counter()
train_step = Trainer.train_step
evaluate = Evaluation.run


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        counted["operations"] += 1
        counted["waiting"] += name in WAITING
        return operator(*arguments, **(options or {}))


def watched_step(self: Trainer) -> None:
    if self.state.step == 0:
        return train_step(self)  # the optimizer's state and the loader are made here
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("error")
    try:
        with Watch():
            train_step(self)
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


def give_back_at_once() -> None:
    """Have glibc give large blocks back when they are freed, so that a limit on memory is one on what is in use."""
    libc = ctypes.CDLL(None)
    assert libc.mallopt(M_MMAP_THRESHOLD, 65536) == libc.mallopt(M_ARENA_MAX, 1) == 1


def limit(megabytes: int) -> None:
    gc.collect()
    at_most = psutil.Process().memory_info().vms + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (at_most, resource.RLIM_INFINITY))


def step_in_little_room(self: Trainer) -> None:
    if self.state.step == 2:
        limit(room)
    train_step(self)


def evaluate_in_little_room(self: Evaluation) -> bool:
    limit(room)
    return evaluate(self)


def counting_hook(state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    counted["exchanges"] += 1
    exchanged = torch.distributed.all_reduce(bucket.buffer() / 2, async_op=True).get_future()
    return exchanged.then(lambda done: done.value()[0])


def main() -> None:
    global room
    give_back_at_once()
    instrument, _, value = sys.argv[1].partition("=")
    if instrument == "syncs":
        Trainer.train_step = watched_step  # type: ignore[method-assign]
    elif instrument == "exchanges":
        start = DistributedDataParallel.__init__

        def start_and_register(self: Any, *arguments: Any, **options: Any) -> None:
            start(self, *arguments, **options)
            self.register_comm_hook(None, counting_hook)

        DistributedDataParallel.__init__ = start_and_register  # type: ignore[method-assign]
    elif instrument == "room":
        build_unet = run.build_unet

        def build_and_limit(model: Any, images: Any, noise: Any, **seed: Any) -> Any:
            unet = build_unet(model, images, noise, **seed)
            unet(torch.zeros(1, images.channels, *images.resolution), 0)  # threads and kernels
            limit(int(value))
            return unet

        run.build_unet = build_and_limit  # type: ignore[assignment]
    elif instrument == "room_at_3":
        room = int(value)
        Trainer.train_step = step_in_little_room  # type: ignore[method-assign]
    elif instrument == "room_in_evaluation":
        room = int(value)
        Evaluation.run = evaluate_in_little_room  # type: ignore[method-assign]
    arguments = sys.argv
    sys.argv = [arguments[0], *arguments[2:]]
    train.main()
    print("counted", dict(counted))


room = 0
if __name__ == "__main__":
    main()
