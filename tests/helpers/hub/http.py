"""HTTP on loopback for the test hub: routes, answers, and what networks and busy servers do to them."""

import json
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

# A status: that answer instead of the action. "reset": the connection is reset in the middle of the request. "lost":
# the action is done and its answer lost. "stall": nothing at all until `release`. "slow": the same for 30 s, and then
# all as if nothing had been. "cut": half of the answer, then the end of the connection. "corrupt": an answer of the
# right length with a byte that is wrong; of a PUT, the same for what is stored. "overtaken": somebody else commits just
# before.
Kind = int | Literal["reset", "lost", "stall", "cut", "corrupt", "overtaken", "slow"]

STORE_TOKEN = "Bearer a-token-of-the-store"  # that the Xet store itself hands out, for itself


@dataclass
class Fault:
    """Happens to the next `times` requests whose "METHOD path" begins with the one and contains the other."""

    method: str
    text: str
    kind: Kind
    times: int
    headers: dict[str, str] = field(default_factory=dict)
    happened: int = 0


class Request(NamedTuple):
    """What a client asked and was answered; `host` tells the hub's port from the storage's.

    Status 0 is no answer at all; `had_token` says whether it showed a token of the Hub's.
    """

    method: str
    path: str
    host: str
    had_token: bool
    status: int


class Refusal(Exception):
    """An error to answer; the clients choose the exception that they raise by `code` before the status."""

    def __init__(
        self, status: int, message: str, code: str = "", commit: str = "", location: str = "", **values: object
    ) -> None:
        super().__init__(message)
        self.status = status
        self.values = values
        named = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit, "Location": location}
        self.headers = {name: value for name, value in named.items() if value}


class Gone(Exception):
    """The connection is no more."""


class Handler(BaseHTTPRequestHandler):
    """Finds the route of a request and sends the answer; what is answered is the subclasses' matter."""

    protocol_version = "HTTP/1.1"
    hub: ClassVar[Any]
    routes: ClassVar[tuple[tuple[str, str, Callable[..., None]], ...]]

    def dispatch(self) -> None:
        """Run the first route whose method and pattern fit; the pattern's named groups are its arguments."""
        target = urlsplit(self.path)
        self.fault = self.hub.next_fault(self.command, self.path)
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.query = parse_qs(target.query)
        method = "GET" if self.command == "HEAD" else self.command
        try:
            self.body = self._read_body()
            if self.fault and isinstance(self.fault.kind, int):
                raise Refusal(self.fault.kind, "Injected failure")
            for route_method, pattern, action in self.routes:
                if route_method == method and (match := re.fullmatch(pattern, target.path)):
                    # Unquoted only now: the clients quote the slashes within a revision or a folder.
                    action(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                    return
            raise Refusal(404, f"No route for {self.command} {target.path}")
        except Refusal as refusal:
            headers = refusal.headers | (self.fault.headers if self.fault else {})
            self.answer_json({"error": str(refusal), **refusal.values}, refusal.status, **headers)
        except (Gone, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch

    def _read_body(self) -> bytes:
        # Read even what will be refused: closing a socket on unread bytes resets the connection.
        length = int(self.headers.get("Content-Length", 0))
        kind = self.fault.kind if self.fault else None
        if kind == "reset":
            self.rfile.read(length // 2)
            self._reset()
        if kind == "stall":
            self.hub.release.wait(60)
            self._reset()
        if kind == "slow":
            self.hub.release.wait(30)
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _reset(self) -> None:
        self._log(0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (self.rfile, self.wfile, self.connection):
            end.close()
        raise Gone

    def _log(self, status: int) -> None:
        host = self.headers.get("Host", "")
        had_token = self.headers.get("Authorization") not in (None, STORE_TOKEN)
        self.hub.requests.append(Request(self.command, self.path, host, had_token, status))

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Log, then send: a client never holds an answer that the log does not."""
        kind = self.fault.kind if self.fault else None
        if kind == "lost":
            self._reset()
        self._log(status)
        self.send_response(status)
        # A connection kept open would still be served after the hub went down.
        for name, value in {"Connection": "close", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if kind == "corrupt" and self.command == "GET":
                body = flipped(body)
            self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

    def answer_json(self, value: object, status: int = 200, **headers: str) -> None:
        """Answer with `value` as JSON."""
        self.answer(status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode())

    def answer_file(self, file: Path, headers: dict[str, str]) -> None:
        """Answer with a file, or with the part of it that a resumed or a streamed download asks for."""
        data = file.read_bytes()
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(part[1]), min(int(part[2] or len(data)) + 1, len(data))
            if start >= stop:
                raise Refusal(416, "The range lies beyond the end of the file")
            content_range = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            self.answer(206, headers | content_range, data[start:stop])
        else:
            self.answer(200, headers, data)

    def do_CONNECT(self) -> None:
        """What a client asks of a proxy before it speaks TLS to another host."""
        self.fault = None
        self.answer_json({"error": "Nothing leaves this machine"}, 403)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: `LoopbackHub.requests` is the log."""


class Server(ThreadingHTTPServer):
    """One port. The usual backlog of 5 drops connections, a second each, of `datasets`' 16 threads."""

    request_queue_size = 64
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, or was sent away, is no error of the server's."""


def flipped(data: bytes) -> bytes:
    """The same data with one byte changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data
