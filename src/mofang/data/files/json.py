"""JSONL (one object a line) and JSON (a list of objects), known by the first character; both read piece by piece."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mofang.errors import Unreadable

PIECE = 1 << 20
"""Characters of a list that are read at a time."""
_BOM = b"\xef\xbb\xbf"


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """(row, value) each. Raises Unreadable with file and line."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(_BOM).lstrip()
    return _listed(path) if start.startswith(b"[") else _lines(path)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for row, raw in enumerate(file, 1):
            line = _text(raw.removeprefix(_BOM) if row == 1 else raw, path, row)
            if line.strip():
                try:
                    yield row, json.loads(line)
                except ValueError as error:
                    raise Unreadable("data.not_json", path=path, row=row, why=error) from error


def _text(raw: bytes, path: Path, row: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unreadable("data.not_utf8", path=path, row=row) from error


def _listed(path: Path) -> Iterator[tuple[int, Any]]:
    """A list's elements one after the other, as far as they are read; its length does not matter."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        buffer, at, line, row, wanted = "", 0, 1, 0, "["
        ended = False
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n":
                at += 1
            try:
                if at == len(buffer):
                    raise json.JSONDecodeError("Unexpected end", buffer, at)
                if wanted:  # a mark: "[" at first, then "," or the end after each element
                    mark = buffer[at]
                    if mark == "]" and wanted != "[":
                        break
                    if mark != wanted[0]:
                        raise Unreadable(
                            "data.not_json", path=path, row=line + buffer.count("\n", 0, at), why=f"{mark!r}"
                        )
                    at, wanted = at + 1, ""
                    continue
                if row == 0 and buffer[at] == "]":
                    break
                value, end = decoder.raw_decode(buffer, at)
                if end == len(buffer) and not ended:  # a number may go on
                    raise json.JSONDecodeError("Unexpected end", buffer, end)
            except json.JSONDecodeError as error:
                if ended or not _may_go_on(error, len(buffer)):
                    number = line + buffer.count("\n", 0, error.pos)
                    raise Unreadable("data.not_json", path=path, row=number, why=error.msg) from error
                line += buffer.count("\n", 0, at)
                # Twice what did not suffice: an element of any length is tried a few times only.
                more = _more(file, max(PIECE, len(buffer) - at), path)
                ended = not more
                buffer, at = buffer[at:] + more, 0
                continue
            row += 1
            yield row, value
            at, wanted = end, ",]"
        rest = buffer[at + 1 :] + _more(file, 4096, path)
        if rest.strip():
            number = line + buffer.count("\n", 0, at) + rest[: len(rest) - len(rest.lstrip())].count("\n")
            raise Unreadable("data.not_json", path=path, row=number, why="Extra data")


def _may_go_on(error: json.JSONDecodeError, length: int) -> bool:
    """Whether more text could heal it: the fault is at the end, or in a string that has no end yet."""
    return error.pos > length - 16 or error.msg.startswith("Unterminated string")


def _more(file: Any, size: int, path: Path) -> str:
    try:
        text: str = file.read(size)
    except UnicodeDecodeError as error:
        with path.open("rb") as again:
            for row, raw in enumerate(again, 1):
                _text(raw, path, row)
        raise Unreadable("data.not_utf8", path=path, row=1) from error
    return text
