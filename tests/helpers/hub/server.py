"""A Hugging Face Hub on loopback, so that tests meet the real clients and not stand-ins for them.

It speaks the protocol that `huggingface_hub` and `datasets` use. Repositories are plain folders,
`ROOT/datasets/OWNER/NAME` and `ROOT/models/OWNER/NAME`: a test makes one by writing files, or a client does by
pushing. Every hash that the Hub would announce is computed from the files.
"""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

from helpers.hub.http import Fault, Handler, Kind, Refusal, Request, Server
from helpers.hub.writing import StorageWriting, Writing
from helpers.hub.xet import Cas, XetStub

LFS_SUFFIXES = {".bin", ".parquet", ".safetensors"}
LFS_THRESHOLD_BYTES = 10 * 2**20
COMMIT_DATE = "2024-01-01T00:00:00.000Z"


def git_oid(kind: str, data: bytes) -> str:
    """The name that git gives to an object."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def is_lfs(path: Path, size: int) -> bool:
    return path.suffix in LFS_SUFFIXES or size > LFS_THRESHOLD_BYTES


@cache
def describe_file(file: Path, size: int, modified_ns: int) -> dict[str, Any]:
    """A file as the Hub lists it. The other arguments make the cache forget a file that changed."""
    data = file.read_bytes()
    stub = XetStub.read(data)
    if not is_lfs(file, size) and stub is None:
        return {"type": "file", "size": size, "oid": git_oid("blob", data)}
    sha256, size = (stub.sha256, stub.size) if stub else (hashlib.sha256(data).hexdigest(), size)
    # Git itself holds only this text of a large file; its "oid" is the text's, its "lfs" the file's.
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    lfs = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
    xet = {"xetHash": stub.xet_hash} if stub else {}
    return {"type": "file", "size": size, "oid": git_oid("blob", pointer), "lfs": lfs, **xet}


class Commit:
    """What a folder holds. The id follows from the content and the history alone, so that runs repeat."""

    def __init__(self, folder: Path, title: str = "Add files", parent: "Commit | None" = None) -> None:
        self.folder, self.title, self.parent = folder, title, parent
        self.entries: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.rglob("*")):
            name, status = path.relative_to(folder).as_posix(), path.stat()
            if path.is_file():
                entry = describe_file(path, status.st_size, status.st_mtime_ns)
            else:
                entry = {"type": "directory", "size": 0, "oid": git_oid("tree", name.encode())}
            self.entries[name] = entry | {"path": name}
        history = f"{parent.id} {title}" if parent else ""
        self.id = git_oid("commit", (json.dumps(self.entries, sort_keys=True) + history).encode())

    def history(self) -> list["Commit"]:
        """This commit and those before it."""
        return [self, *(self.parent.history() if self.parent else [])]

    def describe(self, names: Iterable[str], expand: bool) -> list[dict[str, Any]]:
        """The named files and folders, as the tree and paths-info endpoints list them."""
        extra = {"lastCommit": {"id": self.id, "title": self.title, "date": COMMIT_DATE}} if expand else {}
        return [self.entries[name] | extra for name in names]


class HubHandler(Writing, Handler):
    """The hub proper: who asks, what a repository holds, and where a file is."""

    def commit(self, kind: str, repo: str, revision: str = "main") -> Commit:
        """The commit asked for. A private repository is refused as a missing one: nothing is told of it."""
        if self.token and self.token != self.hub.token:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if repo in self.hub.renamed:
            to = self.path.replace(repo, self.hub.renamed[repo], 1)
            raise Refusal(307, "Moved", location=to)
        folder = self.hub.root / kind / repo
        if not folder.is_dir() or (repo in self.hub.private and not self.token):
            raise Refusal(404 if self.token else 401, "Repository not found", "RepoNotFound")
        for head in (branches := self.hub.branches(kind, repo)).values():
            for commit in head.history():
                if commit.id == revision:
                    return commit
        if revision not in branches:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return branches[revision]

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        commit = self.commit(kind, repo, revision)
        files = [{"rfilename": name} for name, entry in commit.entries.items() if entry["type"] == "file"]
        described = {"id": repo, "sha": commit.id, "private": repo in self.hub.private, "siblings": files}
        card = {"cardData": {"license": licence}} if (licence := self.hub.licences.get(repo)) else {}
        self.answer_json(described | card | {"tags": [], "lastModified": COMMIT_DATE})

    def tree(self, kind: str, repo: str, revision: str, folder: str) -> None:
        commit = self.commit(kind, repo, revision)
        if folder and commit.entries.get(folder, {"type": "none"})["type"] != "directory":
            raise Refusal(404, "Entry not found", "EntryNotFound", commit.id)
        prefix = f"{folder}/" if folder else ""
        names = [name for name in commit.entries if name.startswith(prefix)]
        if self.query.get("recursive") not in (["true"], ["True"]):
            names = [name for name in names if "/" not in name.removeprefix(prefix)]
        self.answer_json(commit.describe(names, self.query.get("expand") == ["true"]))

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        commit = self.commit(kind, repo, revision)
        form = parse_qs(self.body.decode())
        names = [name for name in form.get("paths", []) if name in commit.entries]
        self.answer_json(commit.describe(names, form.get("expand") == ["true"]))

    def commits(self, kind: str, repo: str, revision: str) -> None:
        history = self.commit(kind, repo, revision).history()
        described = {"authors": [{"user": self.hub.user}], "date": COMMIT_DATE, "message": ""}
        self.answer_json([{"id": commit.id, "title": commit.title, **described} for commit in history])

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        commit = self.commit(kind or "models", repo, revision)
        if repo in self.hub.gated:
            raise Refusal(403 if self.token else 401, f"Access to {repo} is restricted", "GatedRepo")
        entry = commit.entries.get(path, {"type": "none"})
        if entry["type"] != "file":
            raise Refusal(404, "Entry not found", "EntryNotFound", commit.id)
        file, headers = commit.folder / path, {"X-Repo-Commit": commit.id}
        if "lfs" in entry:
            oid = entry["lfs"]["oid"]
            self.hub.stored.setdefault(oid, file)
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry["size"])}
            if "xetHash" in entry:
                route = f"{self.hub.url}/api/{kind or 'models'}/{repo}/xet-read-token/{commit.id}"
                headers |= {"X-Xet-Hash": entry["xetHash"], "X-Xet-Refresh-Route": route}
            self.answer(302, headers | {"Location": f"{self.hub.storage_url}/objects/{oid}"})
        else:
            self.answer_file(file, headers | {"ETag": f'"{entry["oid"]}"'})

    _API = r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)"
    _REVISION = r"/(?P<revision>[^/]+)"
    routes = (
        *Writing.routes,
        ("GET", _API, info),
        ("GET", rf"{_API}/revision{_REVISION}", info),
        ("GET", rf"{_API}/tree{_REVISION}(?:/(?P<folder>.+))?", tree),
        ("POST", rf"{_API}/paths-info{_REVISION}", paths_info),
        ("GET", rf"{_API}/commits{_REVISION}", commits),
        ("GET", rf"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve{_REVISION}/(?P<path>.+)", resolve),
    )


class StorageHandler(StorageWriting, Handler):
    """Where LFS files lie: on the real Hub another party's server, which must never be shown the token."""

    def download(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "Only one auth mechanism allowed")
        if oid not in self.hub.stored:
            raise Refusal(403, "The address of this object was never handed out")
        self.answer_file(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    routes = (("GET", r"/objects/(?P<oid>[0-9a-f]{64})", download), *StorageWriting.routes)


class ProxyHandler(Handler):
    """Stands where clients look for a way to other hosts; there is none, and the log shows who tried."""

    routes = ()


class LoopbackHub:
    """Two ports, served within a `with` block; `url` outlives it, for tests against a hub that is down.

    Attributes:
        user, orgs: who the token belongs to, and where else it may write.
        renamed: the new names of repositories.
        gated: whose files nobody may have who has not asked for them.
        role: of the token: "write", or "read" for one that may not push.
        multipart_bytes: larger LFS files are uploaded in parts of this size.
    """

    def __init__(self, root: Path, token: str | None = None, private: Collection[str] = ()) -> None:
        self.root = root
        self.token = token
        self.private = set(private)
        self.user, self.orgs, self.role = "tester", ["team"], "write"
        self.renamed: dict[str, str] = {}
        self.gated: set[str] = set()
        self.licences: dict[str, str] = {}
        self.multipart_bytes = 5 * 2**20
        self.requests: list[Request] = []
        self.stored: dict[str, Path] = {}
        self.faults: list[Fault] = []
        self.release = threading.Event()
        self.cas = Cas(root / ".cas")
        self.url = self.storage_url = self.proxy_url = ""
        self.lock = threading.RLock()
        self._branches: dict[tuple[str, str], dict[str, Commit]] = {}
        self._servers: list[Server] = []

    def twin(self) -> "LoopbackHub":
        """Another hub, with faults of its own, that has the same repositories."""
        twin = LoopbackHub(self.root, self.token, self.private)
        twin._branches = self._branches
        return twin

    def __enter__(self) -> Self:
        for handler in (HubHandler, StorageHandler, ProxyHandler):
            server = Server(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": self}))
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._servers.append(server)
        self.url, self.storage_url, self.proxy_url = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
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
        kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        # Whatever is meant for another host comes to us: see `check_hosts`.
        kept |= dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), self.proxy_url)
        kept |= {"no_proxy": "127.0.0.1,localhost"}
        return kept | {"HF_TOKEN": token} if token else kept

    def check_hosts(self) -> None:
        """No request was meant for any other host, and the storage's port has seen no token of the Hub's."""
        hosts = {request.host for request in self.requests}
        ports = {url.removeprefix("http://") for url in (self.url, self.storage_url)}
        assert hosts <= ports, hosts - ports
        storage = self.storage_url.removeprefix("http://")
        assert not [request for request in self.requests if request.host == storage and request.had_token]

    def fail(self, path_contains: str, status: int, times: int) -> None:
        """Answer `status` to the next `times` requests, to either port, whose path contains the text."""
        self.faults.append(Fault("", path_contains, status, times))

    def fault(self, wanted: str, kind: Kind, times: int = 1, **headers: str) -> Fault:
        """Have `kind` happen to the next `times` requests like `wanted`: "METHOD" and a part of the path."""
        method, _, text = wanted.partition(" ")
        self.faults.append(Fault(method, text, kind, times, headers))
        return self.faults[-1]

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.happened < fault.times and method.startswith(fault.method) and fault.text in path:
                    fault.happened += 1
                    return fault
        return None

    def branches(self, kind: str, repo: str) -> dict[str, Commit]:
        """The heads of a repository's branches. What nobody has pushed to is what its folder holds now."""
        return {"main": Commit(self.root / kind / repo), **self._branches.get((kind, repo), {})}

    def head(self, repo: str, branch: str = "main", kind: str = "models") -> Commit:
        return self.branches(kind, repo)[branch]

    def commit_files(self, kind: str, repo: str, branch: str, files: dict[str, bytes | None]) -> None:
        """Commit as somebody else: new contents, or None for a file to be removed."""
        head = self.head(repo, branch, kind)
        folder = self.new_folder(head.folder)
        for name, content in files.items():
            (folder / name).unlink(missing_ok=True)
            if content is not None:
                (folder / name).write_bytes(content)
        self.set_head(kind, repo, branch, Commit(folder, "Somebody else's", head))

    def set_head(self, kind: str, repo: str, branch: str, commit: Commit) -> None:
        self._branches.setdefault((kind, repo), {})[branch] = commit

    def new_folder(self, like: Path) -> Path:
        """A copy of a commit's folder, to be changed into the next commit's."""
        with self.lock:
            folder = self.root / ".commits" / f"{len(list(self.root.glob('.commits/*'))):04}"
            shutil.copytree(like, folder, copy_function=os.link)
        return folder
