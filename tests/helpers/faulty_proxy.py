"""An HTTP proxy on loopback that does to requests what networks and busy servers do to them."""

import threading
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal, Self

# "busy": 503, as S3 says it. "cut": the connection ends in the middle of the body. "stall": no answer until
# `release` (or a minute has passed), and then a cut.
Fault = Literal["busy", "cut", "stall"] | None

BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


class FaultyProxy:
    """Passes requests on to a server, but for those that `fault(method, path)` names a fault for.

    Attributes:
        seen: method, path and fault of each request, in the order of arrival.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.seen: list[tuple[str, str, Fault]] = []
        self.release = threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def faults(self, kind: Fault) -> int:
        return sum(fault == kind for _, _, fault in self.seen)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[FaultyProxy]

    def _serve(self) -> None:
        fault = self.proxy.fault(self.command, self.path)
        self.proxy.seen.append((self.command, self.path, fault))
        length = int(self.headers.get("Content-Length", 0))
        if fault == "stall":
            self.proxy.release.wait(60)
        if fault == "stall" or (fault == "cut" and length):
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault == "busy":
            self._answer(503, [("Content-Type", "application/xml")], BUSY)
            return
        connection = HTTPConnection(*self.proxy.target, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        answer = response.read()
        headers = [(k, v) for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        self._answer(response.status, headers, answer, cut=fault == "cut")
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for key, value in headers:
            if key.lower() != "content-length" or self.command == "HEAD":
                self.send_header(key, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
