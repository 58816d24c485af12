"""Processes that load batches ahead of training, each at the other end of a socket.

Shared memory is none of it: containers have 64 MB, and a queue in it has locks, which a process that is killed keeps.
"""

import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.data.decode_all import starting_workers
from ddpm_train.system.exit_codes import CannotGoOn
from ddpm_train.system.launch import num_cores

# By default no process has more workers than this, each of which takes memory and seconds to start. Prepared images
# are only gathered, which few can do for any GPU; without a cache they are decoded.
_MOST_WORKERS = {"disk": 8, "none": 32}
# For each worker, also while training does something else.
_BATCHES_AHEAD = 4
_LOOKS_EVERY_SECONDS = 1.0
# Workers import torch, and disks of a network come back; what has not come after that is not awaited.
_PATIENCE_SECONDS = 600.0
_END_SECONDS = 5.0

Load = Callable[[Tensor], Tensor]


class LoadingFailed(CannotGoOn):
    """A worker has died, or no batch has come for a long time."""

    everywhere = False


def num_workers(config: Dataset) -> int:
    """Workers for each training process: by default they share the machine's cores, up to a number."""
    if config.num_workers is not None:
        return config.num_workers
    cores = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores, _MOST_WORKERS[config.cache]))


class Workers:
    """Iterates over the batches at the given positions, in order, as workers load them.

    Args:
        load: int64 [B] positions -> their images, [B, C, H, W]; it is pickled.
        positions: taken in other threads, as far ahead as there is room.
        device: where the images will go: for a GPU they lie in pinned memory.
        waiting: called about once a second while training waits, with the seconds so far; it may raise to end that.

    Raises:
        Mistakes: by `load`.
        LoadingFailed: a worker has died, or nothing has come for ten minutes.
    """

    def __init__(
        self,
        load: Load,
        positions: Iterator[Tensor],
        *,
        num_workers: int,
        device: torch.device,
        waiting: Callable[[float], None],
    ) -> None:
        self._work = pickle.dumps(load)
        self._positions = enumerate(itertools.chain(positions, itertools.repeat(None)))
        self._device = device
        self._waiting = waiting
        self._turn = threading.Lock()
        self._room = threading.Semaphore(_BATCHES_AHEAD * num_workers)
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()  # see `_attend`
        self._early: dict[int, Any] = {}
        self._closed = False
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._channels: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        try:
            with starting_workers():
                for _ in range(num_workers):
                    self._start()
        except BaseException:
            self.close()
            raise
        # One waits for each worker: to start them one after the other would take as many times the imports.
        self._threads = [threading.Thread(target=self._attend, args=(each,), daemon=True) for each in self._channels]
        for thread in self._threads:
            thread.start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._channels.append(ours)
        with theirs:
            # Forking a process that runs torch's threads can deadlock.
            process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
        self._processes.append(process)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in itertools.count():
            positions, images = self._take(number)
            if positions is None:
                return
            self._room.release()
            if isinstance(images, Exception):
                raise images
            yield positions, images

    def close(self) -> None:
        """End the workers now, whatever they do: they have nothing to lose."""
        self._closed = True
        for process in self._processes:
            process.kill()
        for channel in self._channels:
            with suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)  # also where a dead disk holds the worker
            self._room.release()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.join(_END_SECONDS)
        for channel in self._channels:
            channel.close()

    def _attend(self, channel: socket.socket) -> None:
        """One worker's batches, as (number, (positions, images)); the positions are None after the last. Or an error,
        which is that of the connection if the worker has ended."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # whose memory is pinned
        try:
            _send(channel, self._work)
            while self._room.acquire() and not self._closed:
                with self._turn:
                    number, positions = next(self._positions)
                if positions is None:
                    self._arrived.put((number, (None, None)))
                    return
                _send(channel, pickle.dumps(positions.numpy()))
                self._arrived.put((number, (positions, self._receive_images(channel))))
        except Exception as error:
            self._arrived.put(error)

    def _receive_images(self, channel: socket.socket) -> Tensor | Exception:
        header: tuple[torch.Size, torch.dtype] | Exception = pickle.loads(_receive(channel))
        if isinstance(header, Exception):
            return header
        shape, dtype = header
        images = torch.empty(shape, dtype=dtype, pin_memory=self._device.type == "cuda")
        _fill(channel, _bytes(images))
        return images

    def _take(self, number: int) -> tuple[Tensor | None, Tensor | Exception]:
        """The batch of this number, once it is there."""
        started = time.monotonic()
        # All that has arrived: a worker that died is told before the others' batches are used up.
        while number not in self._early or not self._arrived.empty():
            try:
                arrived = self._arrived.get(timeout=_LOOKS_EVERY_SECONDS)
            except queue.Empty:
                waited = time.monotonic() - started
                self._waiting(waited)
                if waited > _PATIENCE_SECONDS:
                    raise self._failed(f"no worker has loaded a batch for {_PATIENCE_SECONDS:.0f} s") from None
                continue
            if isinstance(arrived, OSError | EOFError):
                raise self._failed(self._why_ended()) from None
            if isinstance(arrived, Exception):
                raise arrived
            self._early[arrived[0]] = arrived[1]
        return self._early.pop(number)

    def _failed(self, why: str) -> LoadingFailed:
        return LoadingFailed(
            f"dataset.num_workers={len(self._processes)}: {why}. The same command continues, also with fewer workers"
        )

    def _why_ended(self) -> str:
        wait([process.sentinel for process in self._processes], _END_SECONDS)
        code = next((process.exitcode for process in self._processes if process.exitcode is not None), None)
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"a worker was killed ({name}) while it loaded images, perhaps because memory ran out"
        return f"a worker has ended{'' if code is None else f' with code {code}'} while it loaded images"


def _serve(channel: socket.socket) -> None:
    """A worker's life, which ends when the other side is gone."""
    torch.set_num_threads(1)
    try:
        load: Load = pickle.loads(_receive(channel))
        while True:
            positions = torch.from_numpy(pickle.loads(_receive(channel)))
            try:
                images = load(positions)
            except Mistakes as mistakes:
                _send(channel, pickle.dumps(mistakes))
            except Exception:
                _send(channel, pickle.dumps(RuntimeError(f"in a worker that loads images:\n{traceback.format_exc()}")))
            else:
                _send(channel, pickle.dumps((images.shape, images.dtype)))
                channel.sendall(_bytes(images))
    except (EOFError, ConnectionError):
        pass


def _bytes(images: Tensor) -> memoryview:
    return memoryview(images.view(-1).numpy()).cast("B")


def _send(channel: socket.socket, message: bytes) -> None:
    channel.sendall(len(message).to_bytes(8))
    channel.sendall(message)


def _receive(channel: socket.socket) -> bytearray:
    length = bytearray(8)
    _fill(channel, memoryview(length))
    message = bytearray(int.from_bytes(length))
    _fill(channel, memoryview(message))
    return message


def _fill(channel: socket.socket, buffer: memoryview) -> None:
    """Read as much as fits; raises EOFError where the other side has ended."""
    while buffer:
        count = channel.recv_into(buffer, flags=socket.MSG_WAITALL)
        if not count:
            raise EOFError
        buffer = buffer[count:]
