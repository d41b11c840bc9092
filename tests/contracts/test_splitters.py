"""Every splitter of the table: chunks in order, none too long, and nothing of the text is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.knowledge import SPLITTERS
from mofang.knowledge.base import Block, ParsedDocument

KINDS = ["heading", "paragraph", "list", "table", "code", "qa"]


@st.composite
def documents(draw: st.DrawFn) -> ParsedDocument:
    """Blocks of any kind with white space between them, under headings that change."""
    text, blocks, path = "", [], ()
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(KINDS))
        body = draw(st.text(alphabet="中文句子。！？，；“”ab1. \n|e\u0301😀👍🏽", min_size=1, max_size=300))
        start = len(text)
        text += body
        if body.strip():
            if kind == "heading":
                path = draw(st.sampled_from([(), ("甲",), ("甲", "乙"), ("丙",)]))
            blocks.append(Block(kind, start, len(text), path, lead=_lead(draw, kind, blocks, start, text)))
        text += draw(st.sampled_from(["\n\n", "\n", " "]))
    return ParsedDocument(text, blocks)


def _lead(draw: st.DrawFn, kind: str, blocks: list[Block], start: int, text: str) -> tuple[int, int] | None:
    """A table's first line, or the header of the table before it; a question's first character."""
    if kind == "qa":
        return start, start + 1
    if kind != "table":
        return None
    if blocks and blocks[-1].kind == "table" and draw(st.booleans()):
        return blocks[-1].lead
    line = text.find("\n", start)
    return (start, line) if line > start else None


@pytest.mark.parametrize("name", SPLITTERS.names())
@given(document=documents(), limit=st.integers(10, 400))
def test_chunks_cover_the_text_in_order_within_the_limit(name: str, document: ParsedDocument, limit: int) -> None:
    end = 0
    for chunk in SPLITTERS.get(name)(document, limit):
        assert end <= chunk.start < chunk.end
        questions = [
            block for block in document.blocks if block.kind == "qa" and block.start <= chunk.start < block.end
        ]
        assert chunk.end - chunk.start <= (2 * limit if questions else limit)
        assert chunk.lead is None or chunk.lead[1] <= chunk.start, "a lead that the chunk holds itself is not repeated"
        assert document.text[end : chunk.start].strip() == "", "lost between chunks"
        assert document.text[chunk.start : chunk.end].strip()
        end = chunk.end
    assert document.text[end:].strip() == "", "lost at the end"


@pytest.mark.parametrize("name", SPLITTERS.names())
def test_an_empty_document_has_no_chunks(name: str) -> None:
    assert SPLITTERS.get(name)(ParsedDocument("", []), 350) == []
