"""Xet for the test hub: a content-addressed store that keeps what the client's own library sends, and gives it back.

The formats are those of the Xet protocol: a xorb is a row of chunks, each behind a header of 8 bytes; a shard lists
files as runs of chunks of xorbs, in entries of 48 bytes. Nothing is decompressed: only the client reads the chunks.
"""

import json
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from helpers.hub.http import STORE_TOKEN, Refusal

_MARK = b"xet stub\n"
_HEADER_BYTES = _ENTRY_BYTES = 48
_VERIFICATION, _METADATA = 1 << 31, 1 << 30


@dataclass(frozen=True)
class XetStub:
    """Lies in a commit's folder instead of a file whose content only the store has."""

    xet_hash: str
    sha256: str
    size: int

    def write(self, path: Path) -> None:
        path.write_bytes(_MARK + json.dumps(vars(self)).encode())

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        return cls(**json.loads(data.removeprefix(_MARK))) if data.startswith(_MARK) else None


def _text(digest: bytes) -> str:
    """A hash as the protocol writes it: four 64-bit numbers, each with its highest digit first."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


class Cas:
    """What the store holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.terms: dict[str, list[dict[str, Any]]] = {}  # file -> runs of chunks of xorbs
        self.files_by_sha256: dict[str, XetStub] = {}

    def add_xorb(self, name: str, data: bytes) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(data)

    def add_shard(self, data: bytes) -> None:
        """Note the files that a shard describes; it lacks the footer of shards at rest."""
        place = _HEADER_BYTES
        while data[place : place + 32] != b"\xff" * 32:
            name, flags, count = struct.unpack_from("<32sII", data, place)
            place += _ENTRY_BYTES
            terms = []
            for entry in range(count):
                xorb, _, length, start, end = struct.unpack_from("<32sIIII", data, place + entry * _ENTRY_BYTES)
                terms.append({"hash": _text(xorb), "unpacked_length": length, "range": {"start": start, "end": end}})
            place += count * _ENTRY_BYTES * (2 if flags & _VERIFICATION else 1)
            self.terms[_text(name)] = terms
            if flags & _METADATA:
                sha256 = _text(data[place : place + 32])
                place += _ENTRY_BYTES
                size = sum(term["unpacked_length"] for term in terms)
                self.files_by_sha256[sha256] = XetStub(_text(name), sha256, size)

    def bytes_of(self, xorb: str, start: int, end: int) -> tuple[int, int]:
        """First and last byte of the chunks from `start` until before `end`."""
        data, places, place = (self.folder / xorb).read_bytes(), [], 0
        for _ in range(end):
            places.append(place)
            place += 8 + int.from_bytes(data[place + 1 : place + 4], "little")
        return places[start], place - 1


class XetTokens:
    """Routes of the hub's port: where the store is, and leave to use it."""

    hub: Any

    def xet_token(self, kind: str, repo: str, right: str, revision: str) -> None:
        (self.may_write if right == "write" else self.commit)(kind, repo, revision)  # type: ignore[attr-defined]
        granted = {
            "casUrl": self.hub.storage_url,
            "accessToken": STORE_TOKEN.removeprefix("Bearer "),
            "exp": int(time.time()) + 3600,
        }
        headers = {
            "X-Xet-Cas-Url": granted["casUrl"],
            "X-Xet-Access-Token": granted["accessToken"],
            "X-Xet-Token-Expiration": str(granted["exp"]),
        }
        self.answer_json(granted, **headers)  # type: ignore[attr-defined]

    routes = (
        (
            "GET",
            r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)/xet-(?P<right>read|write)-token/(?P<revision>[^/]+)",
            xet_token,
        ),
    )


class XetStorage:
    """Routes of the storage's port. The store's own token is shown there, the Hub's never."""

    hub: Any
    body: bytes
    headers: Any
    fault: Any
    answer: Any
    answer_json: Any

    def check_store_token(self) -> None:
        if self.headers.get("Authorization") != STORE_TOKEN:
            raise Refusal(401, "Not a token of this store")

    def add_xorb(self, name: str) -> None:
        self.check_store_token()
        self.hub.cas.add_xorb(name, self.body)
        self.answer_json({"was_inserted": True})

    def add_shard(self) -> None:
        self.check_store_token()
        self.hub.cas.add_shard(self.body)
        self.answer_json({"result": 1})

    def reconstruction(self, name: str) -> None:
        self.check_store_token()
        cas, fetch = self.hub.cas, {}
        if name not in cas.terms:
            raise Refusal(404, "No such file")
        for term in cas.terms[name]:
            first, last = cas.bytes_of(term["hash"], term["range"]["start"], term["range"]["end"])
            url = f"{self.hub.storage_url}/xorbs/{term['hash']}"
            piece = {"range": term["range"], "url": url, "url_range": {"start": first, "end": last}}
            fetch.setdefault(term["hash"], []).append(piece)
        self.answer_json({"offset_into_first_range": 0, "terms": cas.terms[name], "fetch_info": fetch})

    def read_xorb(self, name: str) -> None:
        self.answer_file(self.hub.cas.folder / name, {})  # type: ignore[attr-defined]

    _HASH = r"(?P<name>[0-9a-f]{64})"
    routes = (
        ("POST", rf"/v1/xorbs/default/{_HASH}", add_xorb),
        ("POST", r"/v1/shards", add_shard),
        ("GET", rf"/v1/reconstructions/{_HASH}", reconstruction),
        ("GET", rf"/xorbs/{_HASH}", read_xorb),
    )
