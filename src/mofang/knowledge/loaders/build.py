"""Assembling a ParsedDocument piece by piece: the text grows, blocks are spans over it, headings form a path."""

import re
from collections.abc import Sequence
from dataclasses import replace

from mofang.knowledge.base import Block, Kind, Span
from mofang.messages import Box, Place

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

    def heading(
        self, rank: int, title: str, *, page: int | None = None, box: Box | None = None, place: Place | None = None
    ) -> None:
        outer = self.outline.enter(rank, title)
        self._append(Block("heading", 0, 0, outer, page, box, place), title, "\n\n")

    def add(
        self,
        kind: Kind,
        text: str,
        *,
        page: int | None = None,
        box: Box | None = None,
        place: Place | None = None,
        lead: Span | None = None,
        separator: str = "\n\n",
    ) -> Block | None:
        """A block under the current headings; None when the text is empty. `separator` stands between it and the one
        before."""
        return self._append(Block(kind, 0, 0, self.outline.path, page, box, place, lead), text, separator)

    def table(self, rows: Sequence[str], n_header: int = 1, *, place: Place | None = None) -> Block | None:
        """Rows, one a line, the first `n_header` of which name the columns."""
        header = len("\n".join(rows[:n_header])) if 0 < n_header < len(rows) else 0
        return self._append(Block("table", 0, 0, self.outline.path, place=place), "\n".join(rows), "\n\n", header)

    def question(self, question: str, answers: Sequence[str], *, place: Place | None = None) -> Block | None:
        """A question on its own line or lines, then what answers it."""
        text = "\n".join((question, *answers))
        return self._append(Block("qa", 0, 0, self.outline.path, place=place), text, "\n\n", len(question))

    def _append(self, block: Block, text: str, separator: str, n_lead: int = 0) -> Block | None:
        """`n_lead`: characters at its beginning that are the block's lead."""
        if not text.strip():
            return None
        if self._parts and separator:
            self._parts.append(separator)
            self._length += len(separator)
        start, end = self._length, self._length + len(text)
        lead = (start, start + n_lead) if n_lead else block.lead
        self.blocks.append(replace(block, start=start, end=end, lead=lead))
        self._parts.append(text)
        self._length = end
        return self.blocks[-1]


def chapter_rank(line: str) -> int | None:
    """1–3 for a line that is the title of a part, chapter or section in Chinese ("第三章 报销"); None for others."""
    line = line.strip()
    match = _CHAPTER.match(line)
    if match is None or len(line) > 40 or line.endswith(("。", "；", "，")) or _CONTENTS_LINE.search(line):
        return None
    return _RANK[match.group("unit")]


_NO_TITLE = re.compile(
    r"^(?:Microsoft (?:Word|PowerPoint|Excel) - )?.+\.(?:docx?|wps|xlsx?|pptx?|indd|tex|pdf|html?)$"
    r"|^(?:untitled|无标题|word document|powerpoint (?:presentation|演示文稿)|slide \d+|幻灯片 ?\d+)\b",
    re.IGNORECASE,
)
"""What programs write as a title when nobody gave one: the file's old name, their own words."""


def good_title(title: str | None) -> str:
    """A title of a file's properties on one line; "" for one that says nothing."""
    words = " ".join((title or "").split())
    return "" if _NO_TITLE.match(words) else words


def stem(name: str) -> str:
    """The title of a document that has none: its file name without folders and suffix."""
    base = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[0] or base
