"""Word documents: headings by style and by outline level, lists with the numbers that Word shows, tables, footnotes.

python-docx opens the file (its parser resolves no external entities) and knows its parts; the body is walked here,
since what stands in content controls, tracked insertions and text boxes is text too. Deleted text, headers and footers
are not. Numbers such as "第三条" are not in the text of a document but counted by its numbering: see Numbering.

Source: ECMA-376 part 1, 17.3 (paragraphs), 17.4 (tables), 17.7.4 (styles), 17.9 (numbering), 17.11 (notes).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mofang.errors import Unreadable
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders import zipped
from mofang.knowledge.loaders.build import Builder, chapter_rank, good_title, stem
from mofang.knowledge.loaders.docx_numbering import Numbering, W, attribute, child

_PASSED_OVER = frozenset(
    f"{W}{tag}" for tag in ("del", "moveFrom", "delText", "instrText", "rPr", "pPr", "sectPr", "tblPr")
)
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
"""The same text again, for programs that do not know the first form."""
_FORMULA = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_BREAKS = {f"{W}tab": " ", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
_TITLE_RANK = 0
_CHAPTER_RANK = 100
"""A "第三章" that no style marks stands under the headings that styles mark."""


def load(path: Path, name: str) -> ParsedDocument:
    """Raises what zipped.opened raises, and Unreadable: knowledge.package_damaged."""
    import docx
    from docx.opc.exceptions import OpcError
    from lxml.etree import LxmlError

    with zipped.opened(path, name), path.open("rb") as file:
        try:
            document = docx.Document(file)
            reader = _Reader(document.part)
            reader.read(document.element.body)
            title = good_title(document.core_properties.title)
        except (OpcError, LxmlError, KeyError, ValueError, TypeError, AttributeError) as error:
            # A part of the file that is missing or not what it should be.
            raise Unreadable("knowledge.package_damaged", name=name) from error
    builder = reader.builder
    heading = next((builder.text[b.start : b.end] for b in builder.blocks if b.kind == "heading"), "")
    return ParsedDocument(builder.text, builder.blocks, title or heading or stem(name))


class _Styles:
    """What a paragraph's style says, through the styles that it is based on."""

    def __init__(self, styles: Any) -> None:
        self._by_id = {style.get(f"{W}styleId"): style for style in styles.iter(f"{W}style")}
        default = next((one for one in self._by_id.values() if _is_default(one)), None)
        self._default = default.get(f"{W}styleId") if default is not None else None

    def chain(self, style_id: str | None) -> Iterator[Any]:
        seen: set[str | None] = set()
        style_id = style_id or self._default
        while style_id in self._by_id and style_id not in seen:
            seen.add(style_id)
            style = self._by_id[style_id]
            yield style
            style_id = attribute(style, "basedOn")


def _is_default(style: Any) -> bool:
    return style.get(f"{W}type") == "paragraph" and style.get(f"{W}default") in ("1", "true", "on")


class _Reader:
    def __init__(self, part: Any) -> None:
        self.builder = Builder()
        parts = {relation.reltype.rsplit("/", 1)[-1]: relation for relation in part.rels.values()}

        def tree(kind: str) -> Any:
            return _tree(parts[kind].target_part) if kind in parts and not parts[kind].is_external else None

        styles = tree("styles")
        self._styles = _Styles(styles) if styles is not None else None
        self._numbering = Numbering(tree("numbering"))
        self._notes = {kind: _notes(tree(f"{kind}s"), kind) for kind in ("footnote", "endnote")}
        self._n_notes = 0
        self._list: list[str] = []

    def read(self, body: Any) -> None:
        self._blocks(body)
        self._end_list()

    def _blocks(self, parent: Any) -> None:
        for node in parent:
            if node.tag == f"{W}p":
                self._paragraph(node)
            elif node.tag == f"{W}tbl":
                self._end_list()
                self._table(node)
            elif node.tag not in _PASSED_OVER and node.tag != _FALLBACK:
                self._blocks(node)  # content controls, custom XML, insertions

    def _paragraph(self, node: Any) -> None:
        style_id = attribute(child(node, "pPr"), "pStyle")
        chain = list(self._styles.chain(style_id)) if self._styles else []
        notes: list[str] = []
        text = _tidy(self._text(node, notes))
        rank = self._rank(node, chain)
        if text:
            number, level = self._numbering.next(node, chain)
            self._write(text, rank, number, level)
        if notes:
            self._end_list()
            self.builder.add("paragraph", "\n".join(notes))
        for box in _text_boxes(node):
            self._blocks(box)

    def _write(self, text: str, rank: int | None, number: str | None, level: int) -> None:
        words = f"{number} {text}" if number else text
        if rank is None and len(text) <= 40:
            chapter = chapter_rank(words)
            rank = None if chapter is None else _CHAPTER_RANK + chapter
        if rank is not None and len(words) <= 120:
            self._end_list()
            self.builder.heading(rank, " ".join(words.split()))
        elif number is not None:
            self._list.append("  " * level + (words if number else f"- {text}"))
        else:
            self._end_list()
            self.builder.add("paragraph", text)

    def _end_list(self) -> None:
        if self._list:
            self.builder.add("list", "\n".join(self._list))
            self._list = []

    def _rank(self, node: Any, chain: Sequence[Any]) -> int | None:
        """1–9 for a heading, 0 for the title, None for text. The paragraph's own outline level wins over its style's."""
        own = attribute(child(node, "pPr"), "outlineLvl")
        if own is not None:
            return int(own) + 1 if int(own) < 9 else None
        for style in chain:
            level = attribute(child(style, "pPr"), "outlineLvl")
            if level is not None:
                return int(level) + 1 if int(level) < 9 else None
            name = (attribute(style, "name") or "").lower().replace("标题", "heading").replace(" ", "")
            if name in ("title", "heading"):
                return _TITLE_RANK
            if name.startswith("heading") and name[7:].isdigit():
                return int(name[7:])
        return None

    def _text(self, node: Any, notes: list[str]) -> str:
        """A paragraph's words; what its footnotes say is added to `notes`."""
        parts: list[str] = []
        for one in _walk(node):
            if one.tag in (f"{W}t", _FORMULA):
                parts.append(one.text or "")
            elif one.tag in _BREAKS:
                parts.append(_BREAKS[one.tag])
            elif one.tag in (f"{W}footnoteReference", f"{W}endnoteReference"):
                said = self._notes[one.tag[len(W) :].removesuffix("Reference")].get(one.get(f"{W}id") or "")
                if said:
                    self._n_notes += 1
                    parts.append(f"〔{self._n_notes}〕")
                    notes.append(f"〔{self._n_notes}〕{said}")
        return "".join(parts)

    def _table(self, table: Any) -> None:
        found = list(_descend(table, "tr"))
        cells = [list(_descend(row, "tc")) for row in found]
        if all(len(row) <= 1 for row in cells):
            # A frame around text, not a table of facts.
            for cell in (cell for row in cells for cell in row):
                self._blocks(cell)
            self._end_list()
            return
        n_header = 0
        while n_header < len(found) and child(child(found[n_header], "trPr"), "tblHeader") is not None:
            n_header += 1
        above: dict[int, str] = {}
        notes: list[str] = []
        rows = [self._cells(row, above, notes) for row in cells]
        self.builder.table([" | ".join(row) for row in rows if any(row)], n_header or 1)
        if notes:
            self.builder.add("paragraph", "\n".join(notes))

    def _cells(self, row: Sequence[Any], above: dict[int, str], notes: list[str]) -> list[str]:
        """A cell that spans rows is said in each of them: a row must be understood by itself."""
        cells: list[str] = []
        column = 0
        for cell in row:
            about = child(cell, "tcPr")
            merged = child(about, "vMerge")
            if merged is not None and merged.get(f"{W}val") != "restart":
                words = above.get(column, "")
            else:
                words = " ".join(
                    text for node in _paragraphs(cell) if (text := " ".join(self._text(node, notes).split()))
                )
            above[column] = words
            cells.append(words)
            column += int(attribute(about, "gridSpan") or 1)
        return cells


def _walk(node: Any) -> Iterator[Any]:
    """Everything within a paragraph in order, but for what was deleted and what stands in text boxes."""
    for one in node:
        if one.tag in _PASSED_OVER or one.tag in (_FALLBACK, f"{W}txbxContent"):
            continue
        yield one
        yield from _walk(one)


def _paragraphs(node: Any) -> Iterator[Any]:
    """All paragraphs within a cell, those of tables in it too."""
    return node.iter(f"{W}p")  # type: ignore[no-any-return]


def _descend(node: Any, tag: str) -> Iterator[Any]:
    """Children of that tag, also within content controls and insertions, but not within another table."""
    for one in node:
        if one.tag == f"{W}{tag}":
            yield one
        elif one.tag not in (f"{W}tbl", f"{W}p", *_PASSED_OVER):
            yield from _descend(one, tag)


def _text_boxes(paragraph: Any) -> Iterator[Any]:
    for box in paragraph.iter(f"{W}txbxContent"):
        if not any(one.tag == _FALLBACK for one in box.iterancestors()):
            yield box


def _tree(part: Any) -> Any:
    """A part's XML; python-docx has parsed those that it knows."""
    if hasattr(part, "element"):
        return part.element
    from docx.oxml.parser import parse_xml

    return parse_xml(part.blob)


def _notes(tree: Any, kind: str) -> dict[str, str]:
    """Id → words of each foot- or endnote."""
    if tree is None:
        return {}
    return {
        note.get(f"{W}id"): " ".join("".join(one.text or "" for one in note.iter(f"{W}t")).split())
        for note in tree.iter(f"{W}{kind}")
        if note.get(f"{W}type") in (None, "normal")
    }


def _tidy(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
