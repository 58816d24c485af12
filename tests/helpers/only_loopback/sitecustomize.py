"""Python imports this at its start: no connection leaves the machine, and who tries is noted in the file $STRAYS."""

import os
import socket

_connect = socket.socket.connect


def connect(self: socket.socket, address: object) -> None:
    host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a socket of this machine
    if host not in ("127.0.0.1", "::1", "localhost"):
        with open(os.environ["STRAYS"], "a") as file:
            file.write(f"{address}\n")
        raise OSError(f"{address}: not on this machine")
    _connect(self, address)  # type: ignore[arg-type]


socket.socket.connect = connect  # type: ignore[method-assign, assignment]
