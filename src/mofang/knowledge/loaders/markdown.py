"""Markdown (CommonMark with tables). The canonical text is the source itself, so that spans stay true to the file.

Headings lose their markup in paths and titles. A YAML front matter is not a block; its `title:` is the title.
"""

import re
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from mofang.knowledge.base import Block, Kind, ParsedDocument
from mofang.knowledge.loaders.build import Outline, stem
from mofang.knowledge.loaders.text import encoding_notes
from mofang.text.encodings import decode

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<fields>.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*(['\"]?)(?P<title>.+?)\1[ \t]*$", re.MULTILINE)

_KINDS: dict[str, Kind] = {
    "paragraph_open": "paragraph",
    "blockquote_open": "paragraph",
    "html_block": "paragraph",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "table_open": "table",
    "fence": "code",
    "code_block": "code",
}


def load(path: Path, name: str) -> ParsedDocument:
    """Raises Unreadable: text.binary, text.unknown_encoding."""
    decoded = decode(path.read_bytes())
    text = decoded.text
    front = _FRONT_MATTER.match(text)
    skipped = front.end() if front else 0
    blocks, first_heading = _blocks(text, skipped)
    named = _TITLE.search(front.group("fields")) if front else None
    title = named.group("title") if named else first_heading or stem(name)
    return ParsedDocument(text, blocks, title, encoding_notes(decoded))


def _blocks(text: str, skipped: int) -> tuple[list[Block], str]:
    body = text[skipped:]
    lines = _line_starts(body)
    outline = Outline()
    blocks: list[Block] = []
    title = ""
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    for i, token in enumerate(tokens):
        if token.level != 0 or token.map is None:
            continue
        start, end = lines[token.map[0]] + skipped, lines[token.map[1]] + skipped
        end -= len(text[start:end]) - len(text[start:end].rstrip())
        if token.type == "heading_open":
            words = _plain(tokens[i + 1])
            title = title or words
            blocks.append(Block("heading", start, end, outline.enter(int(token.tag[1]), words)))
        elif token.type in _KINDS:
            header = text.find("\n", start, end) if token.type == "table_open" else -1
            lead = (start, header) if header > 0 else None
            blocks.append(Block(_KINDS[token.type], start, end, outline.path, lead=lead))
    return blocks, title


def _line_starts(text: str) -> list[int]:
    """Offset of each line, and of the end."""
    starts = [0]
    starts.extend(match.end() for match in re.finditer(r"\n", text))
    if starts[-1] != len(text):
        starts.append(len(text))
    return starts


def _plain(inline: Token) -> str:
    """The words of a heading without its markup."""
    return "".join(" " if child.type.endswith("break") else child.content for child in inline.children or []).strip()
