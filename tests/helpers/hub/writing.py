"""What the test hub lets a client change: repositories, branches, large files, commits."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from helpers.hub.http import Refusal, flipped
from helpers.hub.xet import XetStorage, XetTokens


class Writing(XetTokens):
    """Routes of the hub's port. Each wants a token that may write to the namespace."""

    hub: Any
    body: bytes
    token: str

    def may_write(self, kind: str, repo: str, revision: str = "main") -> Any:
        """The commit to write upon.

        Raises:
            Refusal: as the Hub says it: nothing there, no such branch, or not yours.
        """
        commit = self.commit(kind, repo, revision)  # type: ignore[attr-defined]
        self._check_namespace(repo)
        return commit

    def _check_namespace(self, repo: str) -> None:
        if self.token != self.hub.token:
            raise Refusal(401, "Invalid username or password.")
        if self.hub.role == "read" or repo.split("/")[0] not in (self.hub.user, *self.hub.orgs):
            raise Refusal(403, "Forbidden: you don't have the rights to write there")

    def whoami(self) -> None:
        if not self.token or self.token != self.hub.token:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"name": name} for name in self.hub.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.hub.role}}
        self.answer_json({"type": "user", "id": "1", "name": self.hub.user, "orgs": orgs, "auth": auth})

    def create_repo(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        self._check_namespace(repo)
        kind = f"{wanted.get('type') or 'model'}s"
        folder, url = self.hub.root / kind / repo, f"{self.hub.url}/{repo}"
        if folder.exists():
            raise Refusal(409, "You already created this model repo", url=url)
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(repo)
        self.answer_json({"url": url, "name": repo, "id": "1"})

    def create_branch(self, kind: str, repo: str, revision: str) -> None:
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        commit = self.may_write(kind, repo, start)
        if revision in self.hub.branches(kind, repo):
            raise Refusal(409, "Reference already exists")
        self.hub.set_head(kind, repo, revision, commit)
        self.answer_json({})

    def validate_yaml(self) -> None:
        """The rules of the Hub's that a card of ours could break."""
        content = json.loads(self.body)["content"]
        block = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        errors = []
        try:
            values = yaml.safe_load(block[1]) if block else {}
            for key in ("tags", "datasets"):
                if not all(isinstance(item, str) for item in values.get(key, [])):
                    errors.append({"message": f'"{key}" must be an array of strings'})
            for model in values.get("model-index", []):
                for result in model["results"]:
                    assert result["task"]["type"] and result["dataset"]["type"] and result["metrics"][0]["type"]
        except (yaml.YAMLError, KeyError, AssertionError) as error:
            errors.append({"message": f"invalid metadata: {error!r}"})
        self.answer_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        from helpers.hub.server import is_lfs

        commit = self.may_write(kind, repo, revision)
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if is_lfs(Path(file["path"]), file["size"]) else "regular"
            entry = commit.entries.get(file["path"])
            oid = entry.get("lfs", entry)["oid"] if entry else None
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer_json({"files": files})

    def lfs_batch(self, kind: str, repo: str) -> None:
        self.may_write(kind or "models", repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            described: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.stored:
                upload: dict[str, Any] = {"href": f"{self.hub.storage_url}/upload/{oid}"}
                if size > self.hub.multipart_bytes:
                    parts = range(1, -(-size // self.hub.multipart_bytes) + 1)
                    urls = {str(part): f"{self.hub.storage_url}/upload/{oid}/{part}" for part in parts}
                    header = {"chunk_size": str(self.hub.multipart_bytes), **urls}
                    upload = {"href": f"{self.hub.storage_url}/complete/{oid}", "header": header}
                prefix = f"{kind}/" if kind else ""
                verify = {"href": f"{self.hub.url}/{prefix}{repo}.git/info/lfs/verify"}
                described["actions"] = {"upload": upload, "verify": verify}
            objects.append(described)
        self.answer_json({"transfer": "basic", "objects": objects})

    def lfs_verify(self, kind: str, repo: str) -> None:
        self.may_write(kind or "models", repo)
        wanted = json.loads(self.body)
        file = self.hub.stored.get(wanted["oid"])
        if file is None or file.stat().st_size != wanted["size"]:
            raise Refusal(422, "The object was not uploaded, or is another")
        self.answer_json({})

    def make_commit(self, kind: str, repo: str, revision: str) -> None:
        from helpers.hub.server import Commit

        with self.hub.lock:
            if self.fault is not None and self.fault.kind == "overtaken":
                self.hub.commit_files(kind, repo, revision, {"theirs.txt": b"somebody else's"})
            head = self.may_write(kind, repo, revision)
            lines = [json.loads(line) for line in self.body.splitlines()]
            header = lines[0]["value"]
            if header.get("parentCommit") not in (None, head.id):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            folder = self.hub.new_folder(head.folder)
            for line in lines[1:]:
                self._apply(folder, line["key"], line["value"])
            commit = Commit(folder, header["summary"], head)
            self.hub.set_head(kind, repo, revision, commit)
        url = f"{self.hub.url}/{repo}/commit/{commit.id}"
        self.answer_json({"success": True, "commitUrl": url, "commitOid": commit.id, "hookOutput": ""})

    def _apply(self, folder: Path, key: str, value: dict[str, Any]) -> None:
        path = folder / value["path"]
        if key == "deletedFolder":
            shutil.rmtree(path)
            return
        if key == "deletedFile" and not path.exists():
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if key == "file":
            path.write_bytes(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            stub = self.hub.cas.files_by_sha256.get(value["oid"])
            if value["oid"] in self.hub.stored:
                path.hardlink_to(self.hub.stored[value["oid"]])
            elif stub is not None:
                stub.write(path)
            else:
                raise Refusal(400, f"LFS pointer to an object that does not exist: {value['path']}")

    _API = r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)"
    _GIT = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)\.git"
    _REVISION = r"/(?P<revision>[^/]+)"
    routes = (
        *XetTokens.routes,
        ("GET", r"/api/whoami-v2", whoami),
        ("POST", r"/api/repos/create", create_repo),
        ("POST", r"/api/validate-yaml", validate_yaml),
        ("POST", rf"{_API}/branch{_REVISION}", create_branch),
        ("POST", rf"{_API}/preupload{_REVISION}", preupload),
        ("POST", rf"{_GIT}/info/lfs/objects/batch", lfs_batch),
        ("POST", rf"{_GIT}/info/lfs/verify", lfs_verify),
        ("POST", rf"{_API}/commit{_REVISION}", make_commit),
    )


class StorageWriting(XetStorage):
    """Routes of the storage's port: whoever knows an address may write there, and nobody shows a token."""

    hub: Any
    body: bytes

    def upload(self, oid: str, part: str = "") -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "Only one auth mechanism allowed")
        folder = self.hub.root / ".lfs"
        folder.mkdir(exist_ok=True)
        corrupt = self.fault is not None and self.fault.kind == "corrupt"
        data = flipped(self.body) if corrupt else self.body
        if part:
            (folder / f"{oid}.{part}").write_bytes(data)
        else:
            self._store(oid, data)
        self.answer(200, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    def complete(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "Only one auth mechanism allowed")
        folder, parts = self.hub.root / ".lfs", json.loads(self.body)["parts"]
        pieces = [(folder / f"{oid}.{part['partNumber']}").read_bytes() for part in parts]
        for piece, part in zip(pieces, parts, strict=True):
            if part["etag"].strip('"') != hashlib.md5(piece).hexdigest():
                raise Refusal(400, "InvalidPart")
        self._store(oid, b"".join(pieces))
        self.answer(200, {})

    def _store(self, oid: str, data: bytes) -> None:
        """Keep an object: at once, since another request may be about to read it."""
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "The content has another SHA-256")
        with self.hub.lock:
            if oid not in self.hub.stored:
                file = self.hub.root / ".lfs" / oid
                file.write_bytes(data)
                self.hub.stored[oid] = file

    routes = (
        *XetStorage.routes,
        ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", upload),
        ("POST", r"/complete/(?P<oid>[0-9a-f]{64})", complete),
    )
