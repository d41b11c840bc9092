"""Mofang's own documentation as conversations: text in both languages, with code, that is wherever Mofang is."""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from mofang.data.rows import Conversation, Document
from mofang.messages import Message

ENGLISH_SHARE = 3
"""One of so many English sections is taken: their letters would be most of all letters otherwise."""
CODE_SHARE = 6
"""One of so many files of our own code is taken, for the same reason."""
_NOT_PROSE = "log.md"
"""Mostly numbers."""
_HEADING = re.compile(r"^##* +(.+)$", re.MULTILINE)


def folder() -> Path:
    """Where the pages lie: in the installed package, or in the source tree that it is run from."""
    packaged = Path(str(files("mofang"))) / "handbook"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "docs"


def sections() -> Iterator[Conversation]:
    """Sections of the pages, mostly Chinese: a heading is asked, its text is the answer."""
    for page in sorted(folder().rglob("*.md")):
        if page.name == _NOT_PROSE:
            continue
        _, *parts = _HEADING.split(page.read_text(encoding="utf-8"))
        for row, (heading, text) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1):
            if text.strip() and not (page.name.endswith(".en.md") and row % ENGLISH_SHARE):
                yield Conversation([Message("user", heading), Message("assistant", text.strip())], page, row)


def code() -> Iterator[Document]:
    """Files of Mofang's own Python."""
    package = Path(str(files("mofang")))
    for path in sorted(package.rglob("*.py"))[::CODE_SHARE]:
        yield Document(path.read_text(encoding="utf-8"), path, 1)
