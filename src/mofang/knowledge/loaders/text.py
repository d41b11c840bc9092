"""Plain text. The canonical text is the file's own, decoded, with "\\n" line ends.

Blocks are paragraphs between empty lines, or single lines when the file uses none; "第三章 …" lines are headings.
"""

import re
from pathlib import Path

from mofang.knowledge.base import Block, ParsedDocument
from mofang.knowledge.loaders.build import Outline, chapter_rank, stem
from mofang.strings import say
from mofang.text.encodings import Decoded, decode

_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def load(path: Path, name: str) -> ParsedDocument:
    """Raises Unreadable: text.binary, text.unknown_encoding."""
    decoded = decode(path.read_bytes())
    return ParsedDocument(decoded.text, _blocks(decoded.text), stem(name), encoding_notes(decoded))


def encoding_notes(decoded: Decoded) -> tuple[str, ...]:
    """What a person should know about how the bytes were read."""
    notes = []
    if decoded.guessed:
        notes.append(say("knowledge.encoding_guessed", encoding=decoded.encoding))
    if decoded.replaced:
        notes.append(say("knowledge.encoding_replaced", n=decoded.replaced, encoding=decoded.encoding))
    return tuple(notes)


def _blocks(text: str) -> list[Block]:
    blocks: list[Block] = []
    outline = Outline()
    start: int | None = None
    for found in _LINE.finditer(text):  # one at a time: a large file has millions
        line, position = found.group(), found.start()
        rank = chapter_rank(line)
        if start is not None and (rank is not None or not line.strip()):
            blocks.append(Block("paragraph", start, position, outline.path))
            start = None
        if rank is not None:
            outer = outline.enter(rank, line.strip())
            blocks.append(Block("heading", position, position + len(line.rstrip("\n")), outer))
        elif line.strip() and start is None:
            start = position
    if start is not None:
        blocks.append(Block("paragraph", start, len(text), outline.path))
    return blocks
