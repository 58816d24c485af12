"""Programs forked from a process that has paid for the imports: a real process with the signals and streams of one."""

import array
import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

TESTS = Path(__file__).resolve().parent.parent


@cache
def server() -> socket.socket:
    """A way to the fork server, which all workers of pytest share; it ends with the last of them."""
    name = "\0ddpm-train tests " + os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening, suppress(OSError):  # it is there
            listening.bind(name)
            listening.listen()
            start_server(listening.fileno())
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.connect(name)
        except ConnectionRefusedError:  # another worker has its name, and does not listen yet
            ours.close()
        else:
            atexit.register(ours.close)  # runs before the wait for the server
            return ours


def start_server(listening: int) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "ACCELERATE_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.fork_server", str(listening)],
        env={**kept, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        pass_fds=[listening],
        stdin=subprocess.DEVNULL,
    )
    atexit.register(process.wait)


class Fork:
    """What `subprocess.Popen` is, as far as the tests need it, for `python ARGUMENTS` in a fork.

    Args:
        python: the arguments of Python: `-m`, `-c` or a file first.
        stdin: to be written to; otherwise there is nothing to read.
        session: the process gets a session of its own, and so a process group.
    """

    def __init__(
        self,
        python: Sequence[str],
        folder: Path,
        environment: dict[str, str],
        *,
        stdin: bool = False,
        session: bool = False,
    ) -> None:
        pipes = [os.pipe() for _ in range(4)]
        (status, status_end), (stdin_end, stdin_written), (out, out_end), (err, err_end) = pipes
        request = {"python": list(python), "folder": str(folder), "environment": environment, "session": session}
        theirs = array.array("i", (status_end, stdin_end, out_end, err_end))
        server().sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, theirs)])
        for end in theirs:
            os.close(end)
        self.stdin = os.fdopen(stdin_written, "w")
        if not stdin:
            self.stdin.close()
        self.stdout: IO[str] = os.fdopen(out)
        self.stderr: IO[str] = os.fdopen(err)
        self._status: IO[bytes] = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def communicate(self, timeout: float | None = 300) -> tuple[str, str]:
        """Wait for the end; what was written to stdout and to stderr, as far as it was not read."""
        said = ["", ""]

        def read(place: int, stream: IO[str]) -> None:
            said[place] = stream.read()
            stream.close()

        readers = [threading.Thread(target=read, args=each) for each in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        self.wait(timeout)
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
