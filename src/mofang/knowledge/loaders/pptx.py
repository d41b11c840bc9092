"""PowerPoint presentations: a slide's title is the heading of its texts, tables and notes; every block knows its slide.

python-pptx's parser resolves no external entities.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mofang.errors import Unreadable
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders import zipped
from mofang.knowledge.loaders.build import Builder, Outline, good_title, stem
from mofang.knowledge.loaders.pdf import ranges
from mofang.knowledge.loaders.table import line
from mofang.messages import Place
from mofang.strings import say


def load(path: Path, name: str) -> ParsedDocument:
    """Raises what zipped.opened raises, and Unreadable: knowledge.package_damaged."""
    from lxml.etree import LxmlError
    from pptx import Presentation
    from pptx.exc import PythonPptxError

    builder = Builder()
    empty: list[int] = []
    with zipped.opened(path, name):
        try:
            deck = Presentation(str(path))
            slides = list(deck.slides)
            for number, slide in enumerate(slides, start=1):
                before = len(builder.blocks)
                _read(builder, slide, Place(slide=number))
                if len(builder.blocks) == before:
                    empty.append(number)
            title = good_title(deck.core_properties.title)
        except (PythonPptxError, LxmlError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            # A part of the file that is missing or not what it should be.
            raise Unreadable("knowledge.package_damaged", name=name) from error
    first = next((builder.text[b.start : b.end] for b in builder.blocks if b.kind == "heading"), "")
    notes = (say("knowledge.slides_without_text", slides=ranges(empty)),) if empty else ()
    return ParsedDocument(builder.text, builder.blocks, title or first or stem(name), notes, len(slides))


def _read(builder: Builder, slide: Any, place: Place) -> None:
    builder.outline = Outline()
    title = slide.shapes.title
    words = " ".join(title.text_frame.text.split()) if title is not None else ""
    if words:
        builder.heading(1, words, place=place)
    for shape in _shapes(slide.shapes):
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if getattr(shape, "has_table", False):
            rows = [line([cell.text for cell in row.cells if not cell.is_spanned]) for row in shape.table.rows]
            builder.table([row for row in rows if row], place=place)
        elif shape.has_text_frame:
            _text(builder, shape.text_frame, place)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = slide.notes_slide.notes_text_frame.text.replace("\v", "\n").strip()
        if notes:
            builder.add("paragraph", say("knowledge.slide_notes", text=notes), place=place)


def _shapes(shapes: Iterable[Any]) -> Iterator[Any]:
    """Those of groups too, in the order in which they lie."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _shapes(shape.shapes)
        else:
            yield shape


def _text(builder: Builder, frame: Any, place: Place) -> None:
    """One paragraph is one; several are a list, indented by their level."""
    lines = [
        "  " * paragraph.level + words
        for paragraph in frame.paragraphs
        if (words := " ".join(paragraph.text.replace("\v", " ").split()))
    ]
    builder.add("list" if len(lines) > 1 else "paragraph", "\n".join(lines), place=place)
