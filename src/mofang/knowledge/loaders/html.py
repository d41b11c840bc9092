"""Web pages. The canonical text is written from the page's visible text: a paragraph a block, list items by line.

Scripts, styles, navigation and the page's own header and footer are dropped; `<main>` is all that counts when there is
one. A line break in the source between two Han characters is not a space.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode

from mofang.knowledge.base import Kind, ParsedDocument
from mofang.knowledge.loaders.build import Builder, stem
from mofang.knowledge.loaders.text import encoding_notes
from mofang.text.encodings import decode
from mofang.text.lines import WIDE

_DROPPED = frozenset(
    """
    script style noscript template head nav svg math canvas audio video iframe object button select textarea
    """.split()  # noqa: SIM905
)
_CHROME = frozenset(["header", "footer", "aside"])
"""Dropped where they are children of the body itself: there they frame the page and are not part of it."""
_BLOCKS = frozenset(
    """
    body main header footer aside section article div p blockquote figure figcaption address fieldset details summary
    hr form center caption tr td th
    """.split()  # noqa: SIM905
)
_LISTS = frozenset(["ul", "ol", "dl", "menu"])
_ITEMS = frozenset(["li", "dt", "dd"])
_HEADINGS = frozenset(["h1", "h2", "h3", "h4", "h5", "h6"])
_LAYOUT = "table, h1, h2, h3, h4, h5, h6"

_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([A-Za-z0-9_\-]+)", re.IGNORECASE)
_SOURCE_BREAK = re.compile(rf"(?<=[{WIDE}])[ \t\r\f]*\n\s*(?=[{WIDE}])")
_SPACE = re.compile(r"[ \t\r\n\f\v\u00a0]+")


def load(path: Path, name: str) -> ParsedDocument:
    """Raises Unreadable: text.binary, text.unknown_encoding."""
    data = path.read_bytes()
    declared = _CHARSET.search(data[:4096])
    decoded = decode(data, declared.group(1).decode("ascii") if declared else "")
    builder = Builder()
    title, heading = read(decoded.text, builder)
    return ParsedDocument(builder.text, builder.blocks, title or heading or stem(name), encoding_notes(decoded))


def read(source: str, builder: Builder) -> tuple[str, str]:
    """Write a page's text with `builder`; returns its <title> and its first heading, "" where there is none."""
    tree = LexborHTMLParser(source)
    page = _Page(builder)
    root = tree.css_first("main") or tree.body
    if root is not None:
        page.read(root)
    title = tree.css_first("title")
    return _SPACE.sub(" ", title.text()).strip() if title is not None else "", page.title


class _Page:
    """One walk over the tree, with an explicit stack: pages nest deeper than Python's recursion goes."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.title = ""
        self._line: list[str] = []
        self._list_depth = 0
        self._numbers: list[int | None] = []

    def read(self, root: LexborNode) -> None:
        stack: list[tuple[LexborNode, Iterator[LexborNode]]] = [(root, root.iter(include_text=True))]
        while stack:
            node, children = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                self._leave(node)
            elif child.is_text_node:
                self._text(child.text_content or "")
            elif child.is_element_node and self._enter(child):
                stack.append((child, child.iter(include_text=True)))
        self._flush()

    def _enter(self, node: LexborNode) -> bool:
        """Open an element; False: its children are not to be walked."""
        tag = node.tag or ""
        if tag in _DROPPED or _is_hidden(node) or (tag in _CHROME and _is_in_body(node)):
            return False
        if tag == "br":
            self._line.append("\n")
        elif tag == "pre":
            self._flush()
            self.builder.add("code", node.text().strip("\n"))
            return False
        elif tag in _HEADINGS:
            self._flush()
            self._heading(node)
            return False
        elif tag == "table" and not _is_layout(node):
            self._flush()
            self.builder.table(*_table(node))
            return False
        elif tag in _LISTS:
            self._open_list(tag)
        elif tag in _ITEMS:
            self._open_item(tag)
        elif tag in _BLOCKS:
            self._break()
        return True

    def _leave(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if tag in _LISTS:
            if self._list_depth == 1:
                self._flush()
            self._list_depth -= 1
            self._numbers.pop()
        elif tag in _BLOCKS:
            self._break()

    def _open_list(self, tag: str) -> None:
        if self._list_depth == 0:
            self._flush()
        self._list_depth += 1
        self._numbers.append(0 if tag == "ol" else None)

    def _open_item(self, tag: str) -> None:
        self._line.append("\n")
        if tag != "li" or not self._numbers:
            return
        number = self._numbers[-1]
        if number is not None:
            self._numbers[-1] = number + 1
        # Marked with a control character, so that what follows can join the marker's line.
        marker = "- " if number is None else f"{number + 1}. "
        self._line.append("  " * (self._list_depth - 1) + marker + "\x1f")

    def _heading(self, node: LexborNode) -> None:
        words = _SPACE.sub(" ", node.text()).strip()
        if words:
            self.title = self.title or words
            self.builder.heading(int((node.tag or "h6")[1]), words)

    def _text(self, text: str) -> None:
        self._line.append(_SPACE.sub(" ", _SOURCE_BREAK.sub("", text)))

    def _break(self) -> None:
        if self._list_depth:
            self._line.append("\n")
        else:
            self._flush()

    def _flush(self) -> None:
        kind: Kind = "list" if self._list_depth else "paragraph"
        text = re.sub(r"\x1f\s*", "", "".join(self._line))
        lines = (_tidy(line, keep_indent=kind == "list") for line in text.split("\n"))
        self.builder.add(kind, "\n".join(line for line in lines if line.strip()))
        self._line.clear()


def _tidy(line: str, *, keep_indent: bool) -> str:
    words = _SPACE.sub(" ", line).strip()
    if not keep_indent:
        return words
    return line[: len(line) - len(line.lstrip(" "))] + words if words.startswith(("- ", *"0123456789")) else words


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    return "hidden" in attributes or attributes.get("role") == "navigation"


def _is_in_body(node: LexborNode) -> bool:
    parent = node.parent
    return parent is not None and parent.tag == "body"


def _is_layout(table: LexborNode) -> bool:
    """A table that holds tables or headings places things on the page; it is no table of facts."""
    return any(node.mem_id != table.mem_id for node in table.css(_LAYOUT))


def _table(table: LexborNode) -> tuple[list[str], int]:
    """A row a line, cells joined by " | "; and how many of the lines name the columns, the caption included."""
    rows: list[str] = []
    n_header = 0
    for row in table.css("caption, tr"):
        cells = [row] if row.tag == "caption" else [cell for cell in row.iter() if cell.tag in ("td", "th")]
        texts = [_SPACE.sub(" ", _SOURCE_BREAK.sub("", cell.text(separator=" "))).strip() for cell in cells]
        if not any(texts):
            continue
        rows.append(" | ".join(texts))
        if row.tag == "tr" and not n_header:
            # A first row that begins with a <th> and goes on with <td> names itself, not the columns.
            n_header = len(rows) if len({cell.tag for cell in cells}) == 1 and len(cells) > 1 else -1
    return rows, n_header
