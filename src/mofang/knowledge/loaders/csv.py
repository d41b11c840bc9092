"""CSV and TSV in any encoding; what parts the cells is found by trying. Rows are numbered as a spreadsheet does."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mofang.errors import Unreadable
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders.build import Builder, stem
from mofang.knowledge.loaders.table import Rows
from mofang.knowledge.loaders.text import encoding_notes
from mofang.strings import say
from mofang.text.encodings import decode

_DELIMITERS = ",\t;|，"
"""Of equals the first wins."""
_TRIED = 100
"""Records that decide."""


def load(path: Path, name: str) -> ParsedDocument:
    """Raises Unreadable: text.binary, text.unknown_encoding, knowledge.csv_damaged."""
    decoded = decode(path.read_bytes())
    builder = Builder()
    rows = Rows(builder)
    rows.add_all(enumerate(_records(decoded.text, _delimiter(decoded.text), name), start=1))
    notes = (*encoding_notes(decoded), *incomplete_note(rows))
    return ParsedDocument(builder.text, builder.blocks, stem(name), notes)


def incomplete_note(rows: Rows, sheet: str = "") -> tuple[str, ...]:
    """Which rows of a table of questions lacked one half."""
    if not rows.incomplete:
        return ()
    shown = "、".join(f"{sheet}!{row}" if sheet else str(row) for row in rows.incomplete[:5])
    return (say("knowledge.qa_incomplete", n=len(rows.incomplete), rows=shown),)


def _records(text: str, delimiter: str, name: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        yield from reader
    except csv.Error as error:
        raise Unreadable("knowledge.csv_damaged", name=name, line=reader.line_num, why=error) from error


def _delimiter(text: str) -> str:
    """The one by which most records have the same number of cells, more than one."""

    def agreement(delimiter: str) -> int:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            widths = Counter(len(record) for record in islice(reader, _TRIED) if record)
        except csv.Error:
            return 0
        return max((n for width, n in widths.items() if width > 1), default=0)

    return max(_DELIMITERS, key=agreement)
