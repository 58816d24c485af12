"""What Python imports at its start in the tests' programs.

They find no SciPy and no boto3, which this project does not require: Diffusers and Accelerate would import them, which
takes a second. And where $STRAYS names a file, no connection leaves the machine, and who tries is noted there.
"""

import os
import socket
import sys

_connect = socket.socket.connect


def connect(self: socket.socket, address: object) -> None:
    host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a socket of this machine
    if host not in ("127.0.0.1", "::1", "localhost"):
        with open(os.environ["STRAYS"], "a") as file:
            file.write(f"{address}\n")
        raise OSError(f"{address}: not on this machine")
    _connect(self, address)  # type: ignore[arg-type]


if "STRAYS" in os.environ:
    socket.socket.connect = connect  # type: ignore[method-assign, assignment]
if __name__ == "sitecustomize":  # in a fork, they are there already
    for name in ("boto3", "scipy"):
        sys.modules[name] = None  # type: ignore[assignment]
