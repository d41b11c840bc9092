"""Where sentences end in Chinese and in Latin scripts, as character offsets.

An end is the offset after the mark and after the closing quotes and brackets that belong to it (“他说：‘好。’”), so
that cutting at ends loses nothing. The full stop of Latin text ends a sentence only before white space, and not after
a one-letter or known abbreviation: "3.5", "e.g. this", "www.example.org" stay whole. A line break is an end as well;
whoever has lines that are merely wrapped joins them first (mofang.text.lines).
"""

import re
from collections.abc import Iterator

CLOSERS = "”’」』）)】》〉］]｝}〕〗\"'＂＇"
ABBREVIATIONS = frozenset(
    """
    e.g i.e etc cf vs al fig no vol ch sec eq ref refs mr mrs ms dr prof st jr sr inc ltd co corp dept approx
    jan feb mar apr jun jul aug sep sept oct nov dec
    """.split()  # noqa: SIM905
)

_END = re.compile(
    rf"""
      [。！？；!?;…｡]+ [{re.escape(CLOSERS)}]*   # marks that end a sentence wherever they stand
    | \.+ [{re.escape(CLOSERS)}]* (?=\s|$)       # the Latin full stop, only before white space
    | \n\s*                                      # a line break, with the empty lines after it
    """,
    re.VERBOSE,
)
_CLAUSE = re.compile(r"[，、：,:—]+|\s+")
_LAST_WORD = re.compile(r"([A-Za-z](?:[A-Za-z]|\.(?=[A-Za-z]))*)$")
_HALF_WIDTH = frozenset("!?;")


def sentence_ends(text: str, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Offsets where the sentences of text[start:end] end, ascending; the last one is `end` itself."""
    end = len(text) if end is None else end
    last = start
    for match in _END.finditer(text, start, end):
        if not _is_end(text, match, end):
            continue
        last = match.end()
        yield last
    if last < end:
        yield end


def sentences(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Spans of the sentences of text[start:end] that hold more than white space, without the space around them."""
    for stop in sentence_ends(text, start, end):
        span = trim(text, start, stop)
        if span[0] < span[1]:
            yield span
        start = stop


def clause_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Offsets where a sentence that is too long may be cut with the least harm: after commas, colons, white space."""
    yield from (match.end() for match in _CLAUSE.finditer(text, start, end))


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its borders; empty (end, end) when there is nothing else."""
    piece = text[start:end]
    stripped = piece.lstrip()
    if not stripped:
        return end, end
    start += len(piece) - len(stripped)
    return start, start + len(stripped.rstrip())


def _is_end(text: str, match: re.Match[str], end: int) -> bool:
    mark = match.group()[0]
    if mark == ".":
        return not _is_abbreviation(text, match.start())
    if mark in _HALF_WIDTH:
        # "a;b", "?x=1&y", "!important": in code and addresses these marks stand inside of words.
        after = match.end()
        return after >= end or not (text[after].isascii() and not text[after].isspace())
    return True


def _is_abbreviation(text: str, dot: int) -> bool:
    word = _LAST_WORD.search(text, max(0, dot - 12), dot)
    if word is None:
        # "1." at the start of a line numbers an item: it does not end anything.
        line = text[text.rfind("\n", 0, dot) + 1 : dot].strip()
        return line.isdigit() and len(line) <= 3
    letters = word.group(1)
    return len(letters) == 1 or letters.lower() in ABBREVIATIONS or ("." in letters and len(letters) <= 5)
