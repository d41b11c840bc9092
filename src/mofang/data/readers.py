"""From paths to rows: files and folders, read one record at a time. A broken row is named, never skipped."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mofang.data import FILES, FORMATS
from mofang.data.files import json
from mofang.data.formats.base import BadField, Format
from mofang.data.rows import Conversation, Document, Pair, Row
from mofang.errors import Invalid, NotFound, Unreadable
from mofang.strings import say

R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Layout:
    """How records are read: the name of a format, or "auto", by each file's first record; and which column of the
    files stands for which of the format's fields.
    """

    format: str = "auto"
    columns: Mapping[str, str] | None = None


def files_of(path: Path) -> tuple[list[Path], list[Path]]:
    """(the files of examples that a path names, those of a folder that are none). Hidden ones are neither.

    Raises NotFound; Unreadable for a folder without any.
    """
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise NotFound("data.no_such_file", path=path)
    found = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each, path))
    ours = [each for each in found if _suffix(each) in FILES.names()]
    if not ours:
        raise Unreadable("data.empty_folder", path=path, known=", ".join(f".{name}" for name in FILES))
    return ours, [each for each in found if _suffix(each) not in FILES.names()]


def rows(path: Path, layout: Layout) -> Iterator[Row]:
    """What the records of one file teach, in order. Raises Unreadable with file, row and field."""
    reads: Format | None = None if layout.format == "auto" else FORMATS.get(layout.format)
    columns = layout.columns or {}
    unseen = set(columns)
    known: list[str] = []
    for row, record in _records(path):
        if not isinstance(record, dict):
            raise Unreadable("data.bad_row", path=path, row=row, field="-", why=say("data.why_not_object"))
        known = known or list(map(str, record))
        unseen -= {field for field in unseen if columns[field] in record or field in record}
        record |= {field: record[column] for field, column in columns.items() if column in record}
        reads = reads or detect(record, path, row)
        try:
            found = reads.read(record)
        except BadField as bad:
            field = f"{bad.field} ({columns[bad.field]})" if bad.field in columns else bad.field
            raise Unreadable("data.bad_row", path=path, row=row, field=field, why=say(bad.why)) from bad
        yield replace(found, file=path, row=row)
    if known and unseen:  # a misspelled column would leave an optional field empty, and nobody would know
        column = columns[min(unseen)]
        near = difflib.get_close_matches(column, known, n=1)
        raise Unreadable(
            "data.no_column", path=path, column=column, known=", ".join(known), near=near[0] if near else "-"
        )


def wanted(found: Iterator[Row], kind: type[R]) -> Iterator[R]:
    """The same rows. Raises Invalid for one that is of another kind than a method learns from."""
    for row in found:
        if not isinstance(row, kind):
            names = {Conversation: "talk", Pair: "pairs", Document: "text"}
            raise Invalid(
                "data.other_kind",
                param="data",
                path=row.file,
                row=row.row,
                found=say(f"data.kind_{names[type(row)]}"),
                wanted=say(f"data.kind_{names[kind]}"),
            )
        yield row


def read(paths: Sequence[Path], format: str = "auto") -> list[Conversation]:
    """Every conversation of the files, in order, all in memory. Raises NotFound; Unreadable with file, row, field."""
    layout = Layout(format)
    found = [row for path in paths for file in files_of(path)[0] for row in wanted(rows(file, layout), Conversation)]
    if not found:
        raise Unreadable("data.empty", path=", ".join(map(str, paths)))
    return found


def detect(record: dict[str, Any], path: Path, row: int) -> Format:
    """The layout that a record has. Raises Unreadable."""
    for name in FORMATS:
        layout: Format = FORMATS.get(name)
        if layout.fields <= record.keys():
            return layout
    raise Unreadable(
        "data.unknown_format", path=path, row=row, fields=", ".join(record) or "-", known=", ".join(FORMATS.names())
    )


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    kind = _suffix(path)
    found: Iterator[tuple[int, Any]]
    if kind in FILES.names():
        found = FILES.get(kind)(path)
    elif _is_json(path):
        found = json.records(path)
    else:
        known = ", ".join(f".{name}" for name in FILES)
        raise Unreadable("data.unknown_suffix", path=path, known=known)
    return found


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _suffix(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
