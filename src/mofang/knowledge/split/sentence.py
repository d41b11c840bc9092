"""Cuts a document into chunks at sentence ends: as full as the limit allows.

A section is cut by itself; then neighbours that are short together are joined, so that a page of many small headings
becomes a few passages that say something and not dozens that do not (docs/log.md, 2026-11-25). A heading stays with
the text that follows it. A table or a code block stays whole when it fits, and is cut between its
lines when it does not: each further chunk then names the header row as its lead. A question with its answers is a chunk
of its own, whole up to twice the limit; beyond that its answer is cut, and the question leads each part. A sentence
longer than the limit is cut after a comma or a space, and only then anywhere. What stands under no heading is led by
the document's first sentence, which mostly says what it is about: a chunk from its middle would not tell (docs/log.md,
2026-11-25). Knows nothing of embedders: the limit is in characters, and the caller knows what its model takes.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from mofang.knowledge.base import Block, Chunk, Kind, ParsedDocument, Span
from mofang.knowledge.passage import MAX_LEAD
from mofang.text.sentences import clause_ends, sentence_ends, sentences, trim

LIMIT = 350
"""Characters: about 230 tokens of Chinese, so that with its headings a chunk fits the 512 tokens of BERT embedders."""

OPENING = 60
"""Characters of a document's first sentence that lead what stands under no heading, beyond the limit."""
_WHOLE = ("table", "code")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A span that stays together, and what it is to be read with."""

    start: int
    end: int
    lead: Span | None = None

    def led(self) -> Span | None:
        """The lead, when it stands before the piece and not in it."""
        return self.lead if self.lead is not None and self.lead[1] <= self.start else None

    def cost(self) -> int:
        """Characters that the lead takes of the limit."""
        lead = self.led()
        return min(lead[1] - lead[0], MAX_LEAD) + 1 if lead else 0


def split(document: ParsedDocument, limit: int = LIMIT) -> list[Chunk]:
    """Chunks in order that together cover every character that is not white space.

    None is longer than `limit`, with its lead as far as there is room; but a "qa" block may have twice that.
    """
    chunks: list[Chunk] = []
    opening = _opening(document)
    before: Kind | None = None
    for section in _sections(document):
        headings, kind = section[-1].headings, section[-1].kind
        pieces = [piece for block in section for piece in _pieces(document.text, block, limit)]
        for place, one in enumerate(_pack(pieces, limit)):
            beyond = opening if opening and not headings and opening[1] <= one.start else None
            chunk = Chunk(one.start, one.end, headings, one.led() or beyond)
            opens = place == 0 and chunks and "qa" not in (kind, before)
            if opens and (joint := _joined(document.text, chunks[-1], chunk, limit)):
                chunks[-1] = joint
            else:
                chunks.append(chunk)
        before = kind
    return chunks


def _joined(text: str, one: Chunk, other: Chunk, limit: int) -> Chunk | None:
    """Two neighbours as one, under the headings that they share; None when they are too long together, share none, or
    would lose one: what the shared path does not say must stand in the chunk, on a line of its own."""
    both = takewhile(lambda pair: pair[0] == pair[1], zip(one.headings, other.headings, strict=False))
    shared = tuple(heading for heading, _ in both)
    if other.end - one.start > limit or one.lead or other.lead or not shared:
        return None
    lines = {line.strip() for line in text[one.start : other.end].splitlines()}
    if not lines.issuperset((*one.headings[len(shared) :], *other.headings[len(shared) :])):
        return None
    return replace(one, end=other.end, headings=shared)


def _opening(document: ParsedDocument) -> Span | None:
    """The first sentence, if the document begins with prose; not longer than OPENING."""
    first = document.blocks[0] if document.blocks else None
    if first is None or first.kind != "paragraph":
        return None
    span = next(sentences(document.text, first.start, first.end), None)
    return (span[0], min(span[1], span[0] + OPENING)) if span else None


def _sections(document: ParsedDocument) -> Iterator[list[Block]]:
    """Runs of blocks under one path of headings; a heading without text of its own opens the next run.

    A question with its answers is a run of its own, so that nothing is packed with it.
    """
    run: list[Block] = []
    for block in document.blocks:
        apart = block.kind == "heading" or block.headings != run[-1].headings if run else False
        if run and ((run[-1].kind != "heading" and apart) or "qa" in (block.kind, run[-1].kind)):
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def _pieces(text: str, block: Block, limit: int) -> Iterator[_Piece]:
    """The spans of a block that stay together: the whole block, its lines, its sentences, or parts of those."""
    start, end = trim(text, block.start, block.end)
    if start == end:
        return
    piece = _Piece(start, end, block.lead)
    whole = 2 * limit if block.kind == "qa" else limit - piece.cost()
    if block.kind in (*_WHOLE, "heading", "qa") and end - start <= whole:
        yield piece
        return
    ends = _line_ends(text, start, end) if block.kind in _WHOLE else sentence_ends(text, start, end)
    for span in _spans(text, start, ends):
        room = max(limit // 2, limit - _Piece(span[1], span[1], block.lead).cost())
        for part in _fit(text, span, room):
            yield _Piece(*part, block.lead)


def _line_ends(text: str, start: int, end: int) -> Iterator[int]:
    while (newline := text.find("\n", start, end)) >= 0:
        start = newline + 1
        yield start
    yield end


def _spans(text: str, start: int, ends: Iterable[int]) -> Iterator[tuple[int, int]]:
    for end in ends:
        span = trim(text, start, end)
        if span[0] < span[1]:
            yield span
        start = end


def _fit(text: str, span: tuple[int, int], limit: int) -> Iterator[tuple[int, int]]:
    """A span cut so that no part exceeds the limit, at the last good place before it."""
    start, end = span
    while end - start > limit:
        cut = max(clause_ends(text, start, start + limit), default=0)
        if cut < start + limit // 2:
            cut = _safe_cut(text, start, start + limit)
        part = trim(text, start, cut)
        if part[0] < part[1]:
            yield part
        start = trim(text, cut, end)[0]
    if start < end:
        yield start, end


def _safe_cut(text: str, start: int, cut: int) -> int:
    """`cut`, moved back so that it does not part an emoji or accent from what it belongs to."""
    for place in range(cut, max(start + 1, cut - 16), -1):
        if not _joins(text[place]) and text[place - 1] != "\u200d":
            return place
    return cut


def _joins(character: str) -> bool:
    """Zero-width joiner, variation selector, skin tone, combining accent."""
    return (
        character == "\u200d"
        or "\ufe00" <= character <= "\ufe0f"
        or "\U0001f3fb" <= character <= "\U0001f3ff"
        or unicodedata.combining(character) > 0
    )


def _pack(pieces: list[_Piece], limit: int) -> Iterator[_Piece]:
    """Neighbouring pieces joined as long as they fit, into parts of even length rather than a full one and a rest."""
    if not pieces:
        return
    target = _even(pieces, limit)
    first, last = pieces[0], pieces[0].end
    for piece in pieces[1:]:
        room = max(limit // 2, limit - first.cost())
        if piece.end - first.start > room or last - first.start >= min(target, room):
            yield _Piece(first.start, last, first.lead)
            first = piece
        last = piece.end
    yield _Piece(first.start, last, first.lead)


def _even(pieces: list[_Piece], limit: int) -> int:
    total = pieces[-1].end - pieces[0].start
    room = max(limit // 2, limit - max(piece.cost() for piece in pieces))
    return -(-total // -(-total // room))
