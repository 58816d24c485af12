"""Reads a page that a program has written."""

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "input", "br", "hr"}
# What may load something, and from where.
LOADS = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order, nothing is loaded, every id is there once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        assert len(named) == len(attributes), f"{tag}: an attribute twice"
        for name in LOADS & named.keys():
            assert re.match(r"data:|#", named[name] or ""), f"{tag} {name}={named[name]}"
        assert not any(name.startswith("on") for name in named)
        assert tag not in ("script", "iframe", "object", "embed", "base")
        self.tags.append((tag, named))
        self.ids += [value for name, value in attributes if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
