"""Plain text: a file is a document. A long one comes in pieces, cut at line ends, of which only the last one ends."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mofang.errors import Unreadable
from mofang.text.encodings import decode

PIECE = 200_000
"""Characters that are read at a time; a line that is longer than twice that is cut."""
SAMPLE = 1 << 20
"""Bytes that an encoding is judged by."""
_BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARKED = {"utf-8": "utf-8-sig", "utf-16-le": "utf-16", "utf-16-be": "utf-16", "utf-32-le": "utf-32"}
"""The codec that reads over a byte order mark."""


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line where the piece begins, {"text", "more"}). Nothing for a file of white space. Raises Unreadable."""
    row = 1
    with opened(path) as file:
        try:
            piece = _piece(file)
            while piece:
                following = _piece(file)
                if piece.strip():
                    yield row, {"text": piece, "more": bool(following.strip())}
                row += piece.count("\n")
                piece = following
        except UnicodeDecodeError as error:
            raise Unreadable("data.not_utf8", path=path, row=row) from error


def _piece(file: TextIO) -> str:
    text = file.read(PIECE)
    return text + file.readline(PIECE) if len(text) == PIECE else text


def opened(path: Path) -> TextIO:
    """The file as text, in the encoding that its beginning is in. Raises Unreadable for what is no text."""
    with path.open("rb") as file:
        sample = file.read(SAMPLE)
        if len(sample) == SAMPLE:  # never half a character
            sample = sample[: sample.rfind(b"\n") + 1] or sample + file.read()
    try:
        encoding = decode(sample).encoding if sample else "utf-8"
    except Unreadable as error:
        raise Unreadable("data.not_text", path=path) from error
    return path.open(encoding=_MARKED.get(encoding, encoding) if sample.startswith(_BOMS) else encoding)
