"""A Hugging Face Hub on loopback, so that tests meet the real clients and not stand-ins for them.

It speaks the read side of the protocol that `huggingface_hub` and `datasets` use. Repositories are plain
folders, `ROOT/datasets/OWNER/NAME` and `ROOT/models/OWNER/NAME`: a test makes one by writing files, and
every hash that the Hub would announce is computed from them. Each has one branch, `main`, of one commit.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = {".bin", ".parquet", ".safetensors"}
LFS_THRESHOLD_BYTES = 10 * 2**20
COMMIT_DATE = "2024-01-01T00:00:00.000Z"


class Request(NamedTuple):
    """What a client asked and was answered; `host` tells the hub's port from the storage's."""

    method: str
    path: str
    host: str
    had_token: bool
    status: int


class Refusal(Exception):
    """An error to answer; the clients choose the exception that they raise by `code` before the status."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        self.status = status
        named = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in named.items() if value}


def git_oid(kind: str, data: bytes) -> str:
    """The name that git gives to an object."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@cache
def describe_file(file: Path, size: int, modified_ns: int) -> dict[str, Any]:
    """A file as the Hub lists it. The other arguments make the cache forget a file that changed."""
    data = file.read_bytes()
    if file.suffix not in LFS_SUFFIXES and size <= LFS_THRESHOLD_BYTES:
        return {"type": "file", "size": size, "oid": git_oid("blob", data)}
    sha256 = hashlib.sha256(data).hexdigest()
    # Git itself holds only this text of a large file; its "oid" is the text's, its "lfs" the file's.
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    lfs = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
    return {"type": "file", "size": size, "oid": git_oid("blob", pointer), "lfs": lfs}


class Commit:
    """What a repository's folder holds now. The id follows from the content alone, so that runs repeat."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.rglob("*")):
            name, status = path.relative_to(folder).as_posix(), path.stat()
            if path.is_file():
                entry = describe_file(path, status.st_size, status.st_mtime_ns)
            else:
                entry = {"type": "directory", "size": 0, "oid": git_oid("tree", name.encode())}
            self.entries[name] = entry | {"path": name}
        self.id = git_oid("commit", json.dumps(self.entries, sort_keys=True).encode())

    def describe(self, names: Iterable[str], expand: bool) -> list[dict[str, Any]]:
        """The named files and folders, as the tree and paths-info endpoints list them."""
        extra = {"lastCommit": {"id": self.id, "title": "Add files", "date": COMMIT_DATE}} if expand else {}
        return [self.entries[name] | extra for name in names]


class Handler(BaseHTTPRequestHandler):
    """Finds the route of a request and sends the answer; what is answered is the subclasses' matter."""

    protocol_version = "HTTP/1.1"
    hub: ClassVar["LoopbackHub"]
    routes: ClassVar[tuple[tuple[str, str, Callable[..., None]], ...]]

    def dispatch(self) -> None:
        """Run the first route whose method and pattern fit; the pattern's named groups are its arguments."""
        # Read even what will be refused: closing a socket on unread bytes resets the connection.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        target = urlsplit(self.path)
        self.query = parse_qs(target.query)
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for text, statuses in self.hub.failures:
                if text in self.path and (status := next(statuses, None)):
                    raise Refusal(status, "Injected failure")
            for route_method, pattern, action in self.routes:
                if route_method == method and (match := re.fullmatch(pattern, target.path)):
                    # Unquoted only now: the clients quote the slashes within a revision or a folder.
                    action(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                    return
            raise Refusal(404, f"No route for {self.command} {target.path}")
        except Refusal as refusal:
            self.answer_json({"error": str(refusal)}, refusal.status, **refusal.headers)

    do_GET = do_HEAD = do_POST = dispatch

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Log, then send: a client never holds an answer that the log does not."""
        host, had_token = self.headers.get("Host", ""), "Authorization" in self.headers
        self.hub.requests.append(Request(self.command, self.path, host, had_token, status))
        self.send_response(status)
        # A connection kept open would still be served after the hub went down.
        for name, value in {"Connection": "close", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

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

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: `LoopbackHub.requests` is the log."""


class HubHandler(Handler):
    """The hub proper: who asks, what a repository holds, and where a file is."""

    def commit(self, kind: str, repo: str, revision: str = "main") -> Commit:
        """The commit asked for. A private repository is refused as a missing one: nothing is told of it."""
        if self.token and self.token != self.hub.token:
            raise Refusal(401, "Invalid credentials in Authorization header")
        folder = self.hub.root / kind / repo
        if not folder.is_dir() or (repo in self.hub.private and not self.token):
            raise Refusal(404 if self.token else 401, "Repository not found", "RepoNotFound")
        commit = Commit(folder)
        if revision not in ("main", commit.id):
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return commit

    def whoami(self) -> None:
        if not self.token or self.token != self.hub.token:
            raise Refusal(401, "Invalid username or password.")
        self.answer_json({"type": "user", "id": "1", "name": "tester", "orgs": [], "auth": {}})

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        commit = self.commit(kind, repo, revision)
        files = [{"rfilename": name} for name, entry in commit.entries.items() if entry["type"] == "file"]
        described = {"id": repo, "sha": commit.id, "private": repo in self.hub.private, "siblings": files}
        self.answer_json(described | {"tags": [], "lastModified": COMMIT_DATE})

    def tree(self, kind: str, repo: str, revision: str, folder: str) -> None:
        commit = self.commit(kind, repo, revision)
        prefix = f"{folder}/" if folder else ""
        names = [name for name in commit.entries if name.startswith(prefix)]
        if folder and not names:
            raise Refusal(404, "No such folder", "EntryNotFound", commit.id)
        if self.query.get("recursive") != ["true"]:
            names = [name for name in names if "/" not in name.removeprefix(prefix)]
        self.answer_json(commit.describe(names, self.query.get("expand") == ["true"]))

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        commit = self.commit(kind, repo, revision)
        form = parse_qs(self.body.decode())
        names = [name for name in form.get("paths", []) if name in commit.entries]
        self.answer_json(commit.describe(names, form.get("expand") == ["true"]))

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        commit = self.commit(kind or "models", repo, revision)
        entry = commit.entries.get(path, {"type": "none"})
        if entry["type"] != "file":
            raise Refusal(404, "Entry not found", "EntryNotFound", commit.id)
        file, headers = commit.folder / path, {"X-Repo-Commit": commit.id}
        if "lfs" in entry:
            oid = entry["lfs"]["oid"]
            self.hub.stored[oid] = file
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry["size"])}
            self.answer(302, headers | {"Location": f"{self.hub.storage_url}/objects/{oid}"})
        else:
            self.answer_file(file, headers | {"ETag": f'"{entry["oid"]}"'})

    _API = r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)"
    _REVISION = r"/(?P<revision>[^/]+)"
    routes = (
        ("GET", r"/api/whoami-v2", whoami),
        ("GET", _API, info),
        ("GET", rf"{_API}/revision{_REVISION}", info),
        ("GET", rf"{_API}/tree{_REVISION}(?:/(?P<folder>.+))?", tree),
        ("POST", rf"{_API}/paths-info{_REVISION}", paths_info),
        ("GET", rf"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve{_REVISION}/(?P<path>.+)", resolve),
    )


class StorageHandler(Handler):
    """Where LFS files lie: on the real Hub another party's server, which must never be shown the token."""

    def download(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "Only one auth mechanism allowed")
        if oid not in self.hub.stored:
            raise Refusal(403, "The address of this object was never handed out")
        self.answer_file(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    routes = (("GET", r"/objects/(?P<oid>[0-9a-f]{64})", download),)


class Server(ThreadingHTTPServer):
    """One port. The usual backlog of 5 drops connections, a second each, of `datasets`' 16 threads."""

    request_queue_size = 64


class LoopbackHub:
    """Two ports, served within a `with` block; `url` outlives it, for tests against a hub that is down."""

    def __init__(self, root: Path, token: str | None = None, private: Collection[str] = ()) -> None:
        self.root = root
        self.token = token
        self.private = frozenset(private)
        self.requests: list[Request] = []
        self.stored: dict[str, Path] = {}
        self.failures: list[tuple[str, Iterator[int]]] = []
        self.url = self.storage_url = ""
        self._servers: list[Server] = []

    def __enter__(self) -> Self:
        for handler in (HubHandler, StorageHandler):
            server = Server(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": self}))
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._servers.append(server)
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        while self._servers:
            server = self._servers.pop()
            server.shutdown()
            server.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The whole environment of a client process that keeps its caches and settings in `home`.

        The clients read it when imported, hence a process of its own. Inherited settings of theirs and
        proxies are left out, so that neither a developer's token nor a developer's cache takes part.
        """
        foreign = re.compile(r"HF_|HUGGING_?FACE|TRANSFORMERS_OFFLINE|.*_PROXY$", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        kept |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        return kept | {"HF_TOKEN": token} if token else kept

    def fail(self, path_contains: str, status: int, times: int) -> None:
        """Answer `status` to the next `times` requests, to either port, whose path contains the text."""
        self.failures.append((path_contains, repeat(status, times)))
