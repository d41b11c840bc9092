"""Files of examples: JSONL (one object a line) and JSON (a list of objects). A broken row is named, never skipped."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofang.data import FORMATS
from mofang.data.formats.base import BadField, Format
from mofang.errors import NotFound, Unreadable
from mofang.messages import Message
from mofang.strings import say


@dataclass(frozen=True, slots=True)
class Conversation:
    """One example, and where it stands."""

    messages: list[Message]
    file: Path
    row: int
    """From 1: the line of a JSONL file, the element of a JSON list."""


def read(paths: Sequence[Path], format: str = "auto") -> list[Conversation]:
    """Every example of the files, in order. Raises NotFound; Unreadable with file, row and field."""
    found = []
    for path in paths:
        layout: Format | None = None if format == "auto" else FORMATS.get(format)
        for row, record in _records(path):
            layout = layout or detect(record, path, row)
            try:
                found.append(Conversation(layout.read(record), path, row))
            except BadField as bad:
                why = say(bad.why)
                raise Unreadable("data.bad_row", path=path, row=row, field=bad.field, why=why) from bad
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


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NotFound("data.no_such_file", path=path) from error
    except UnicodeDecodeError as error:
        row = path.read_bytes()[: error.start].count(b"\n") + 1
        raise Unreadable("data.not_utf8", path=path, row=row) from error
    rows: Iterator[tuple[int, Any]] = _listed(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    for row, record in rows:
        if not isinstance(record, dict):
            raise Unreadable("data.bad_row", path=path, row=row, field="-", why=say("data.why_not_object"))
        yield row, record


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for row, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield row, json.loads(line)
            except ValueError as error:
                raise Unreadable("data.not_json", path=path, row=row, why=error) from error


def _listed(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads(text), 1)
    except json.JSONDecodeError as error:
        raise Unreadable("data.not_json", path=path, row=error.lineno, why=error) from error
