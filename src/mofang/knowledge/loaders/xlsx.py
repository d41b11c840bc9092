"""Excel workbooks (.xlsx, .xlsm): every row that is not empty, as sheet!row. Values as they were last computed.

openpyxl reads row by row; its reader resolves no external entities. Hidden sheets are read too. A sheet whose name
says something ("差旅标准", not "Sheet1") is the heading of its rows.
"""

import datetime
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mofang.errors import Unreadable
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders import zipped
from mofang.knowledge.loaders.build import Builder, Outline, good_title, stem
from mofang.knowledge.loaders.csv import incomplete_note
from mofang.knowledge.loaders.table import Rows
from mofang.strings import say

_DEFAULT_NAME = re.compile(r"(?:sheet|工作表|表)\s*\d*", re.IGNORECASE)
_NOT_COMPUTED = re.compile(rb"</f>\s*(?:<v\s*/>|<v></v>)?\s*</c>")
_PIECE = 1 << 20


def load(path: Path, name: str) -> ParsedDocument:
    """Raises what zipped.opened raises, and Unreadable: knowledge.package_damaged."""
    import openpyxl

    builder = Builder()
    notes: list[str] = []
    with zipped.opened(path, name) as archive, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # what openpyxl cannot write back (validations, drawings) is nothing to a reader
        not_computed = _count_not_computed(archive)
        try:
            with path.open("rb") as file:
                book = openpyxl.load_workbook(file, read_only=True, data_only=True)
                for sheet in book.worksheets:
                    builder.outline = Outline()
                    if not _DEFAULT_NAME.fullmatch(sheet.title.strip()):
                        builder.outline.enter(1, " ".join(sheet.title.split()))
                    rows = Rows(builder, sheet.title)
                    sheet.reset_dimensions()  # some writers state wrong ones, and cells beyond them would be lost
                    rows.add_all(_cells(sheet.iter_rows()))
                    notes += incomplete_note(rows, sheet.title)
                title = good_title(book.properties.title)
                book.close()
        except (KeyError, ValueError, TypeError, AttributeError, SyntaxError, IndexError) as error:
            # SyntaxError: the XML parser's. The others: a part of the file that is missing or not what it should be.
            raise Unreadable("knowledge.package_damaged", name=name) from error
    if not_computed:
        notes.append(say("knowledge.not_computed", n=not_computed))
    return ParsedDocument(builder.text, builder.blocks, title or stem(name), tuple(notes))


def _cells(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, list[str]]]:
    for number, row in enumerate(rows, start=1):
        if any(cell.value is not None for cell in row):
            yield number, [_words(cell) for cell in row]


def _words(cell: Any) -> str:
    """A value as the sheet shows it, as far as that carries meaning: whole numbers, percentages, dates."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        if "%" in (cell.number_format or ""):
            return f"{value * 100:.10g}%"
        return f"{value:.15g}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ", "seconds")
    return str(value)


def _count_not_computed(archive: zipfile.ZipFile) -> int:
    """Formulas without a value: a program wrote the file and no spreadsheet has opened it since."""
    n = 0
    for member in archive.namelist():
        if not re.fullmatch(r"xl/worksheets/[^/]+\.xml", member):
            continue
        with archive.open(member) as file:
            rest = b""
            while piece := file.read(_PIECE):
                data = rest + piece
                cut = data.rfind(b"</c>") + 4
                cut = cut if cut > 3 else 0
                n += len(_NOT_COMPUTED.findall(data, 0, cut))
                rest = data[cut:][-_PIECE:]
    return n
