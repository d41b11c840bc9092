"""Assembling a ParsedDocument piece by piece: the text grows, blocks are spans over it, headings form a path."""

import re
from typing import Literal

from mofang.knowledge.base import Block

Kind = Literal["heading", "paragraph", "list", "table", "code"]
Box = tuple[float, float, float, float]

_CHAPTER = re.compile(r"^第[〇零一二三四五六七八九十百千0-9０-９]{1,6}(?P<unit>[部卷篇编章回节])(?:[\s　:：、.．]|$)")
_RANK = {"部": 1, "卷": 1, "篇": 1, "编": 1, "章": 2, "回": 2, "节": 3}
_CONTENTS_LINE = re.compile(r"[.．…·\s]{2,}\d+$")


class Outline:
    """The headings that the current place stands under. A rank is any number: smaller is further out."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, str]] = []

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(title for _, title in self._stack)

    def enter(self, rank: int, title: str) -> tuple[str, ...]:
        """Go under a heading; returns the path that the heading itself stands under."""
        while self._stack and self._stack[-1][0] >= rank:
            self._stack.pop()
        outer = self.path
        self._stack.append((rank, title))
        return outer


class Builder:
    """For loaders that write the canonical text themselves."""

    def __init__(self) -> None:
        self.outline = Outline()
        self.blocks: list[Block] = []
        self._parts: list[str] = []
        self._length = 0

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def last(self) -> str:
        """The text of the newest block."""
        return self._parts[-1] if self._parts else ""

    def heading(self, rank: int, title: str, *, page: int | None = None, box: Box | None = None) -> None:
        outer = self.outline.enter(rank, title)
        self._append("heading", title, outer, page, box, "\n\n")

    def add(
        self, kind: Kind, text: str, *, page: int | None = None, box: Box | None = None, separator: str = "\n\n"
    ) -> None:
        """A block under the current headings. `separator` stands between it and the block before."""
        self._append(kind, text, self.outline.path, page, box, separator)

    def _append(
        self, kind: Kind, text: str, headings: tuple[str, ...], page: int | None, box: Box | None, separator: str
    ) -> None:
        if not text.strip():
            return
        if self._parts and separator:
            self._parts.append(separator)
            self._length += len(separator)
        self.blocks.append(Block(kind, self._length, self._length + len(text), headings, page, box))
        self._parts.append(text)
        self._length += len(text)


def chapter_rank(line: str) -> int | None:
    """1–3 for a line that is the title of a part, chapter or section in Chinese ("第三章 报销"); None for others."""
    line = line.strip()
    match = _CHAPTER.match(line)
    if match is None or len(line) > 40 or line.endswith(("。", "；", "，")) or _CONTENTS_LINE.search(line):
        return None
    return _RANK[match.group("unit")]


def stem(name: str) -> str:
    """The title of a document that has none: its file name without folders and suffix."""
    base = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[0] or base
