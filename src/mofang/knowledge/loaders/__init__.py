"""From a file to a ParsedDocument, one file a format. The table is mofang.knowledge.LOADERS, by suffix.

A loader is `load(path: Path, name: str) -> ParsedDocument`: `path` is what to read, `name` what the user calls it (for
errors and as the title when the file has none). It is plain blocking code and runs in a thread. It raises Unreadable
for a file that is not what it should be, and says in `notes` what a person should know.
"""

import logging
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from mofang.errors import MofangError, TooLarge, Unreadable
from mofang.knowledge import LOADERS
from mofang.knowledge.base import ParsedDocument

LATER = frozenset(["doc", "xls", "ppt", "wps", "et", "dps", "odt", "ods", "odp", "rtf", "mobi", "azw3", "rar", "7z"])
"""Formats that people bring and that we cannot read yet: refused with what to do instead."""

_log = logging.getLogger(__name__)


def suffix(name: str) -> str:
    """The suffix of a file name, lower case, without its dot; "" when there is none."""
    return PurePosixPath(name).suffix.removeprefix(".").lower()


def parse(path: Path, name: str, *, limit_bytes: int | None = None) -> ParsedDocument:
    """Read `path` with the loader that the suffix of `name` chooses.

    Raises Unreadable: knowledge.unknown_format, knowledge.format_later, knowledge.empty_file, knowledge.no_text, or
    what the loader says; TooLarge beyond `limit_bytes`.
    """
    kind = suffix(name)
    if kind not in LOADERS.names():
        if kind in LATER:
            raise Unreadable("knowledge.format_later", name=name, suffix=kind)
        raise Unreadable("knowledge.unknown_format", name=name, known=", ".join(LOADERS.names()))
    size = path.stat().st_size
    if size == 0:
        raise Unreadable("knowledge.empty_file", name=name)
    if limit_bytes is not None and size > limit_bytes:
        raise TooLarge(
            "knowledge.file_too_large", name=name, size_mb=size // 1_000_000, limit_mb=limit_bytes // 1_000_000
        )
    document: ParsedDocument = LOADERS.get(kind)(path, name)
    if not document.text.strip():
        raise Unreadable("knowledge.no_text", name=name)
    return document


def explained(name: str, path: Path, error: Exception) -> MofangError:
    """What went wrong with a file in our words, whatever a format's library raised."""
    if isinstance(error, MofangError):
        return error
    if isinstance(error, OSError):
        return Unreadable("knowledge.file_missing", path=path)
    if isinstance(error, zipfile.BadZipFile | zlib.error):
        return Unreadable("knowledge.package_damaged", name=name)
    _log.error("the loader of %s failed", name, exc_info=error)
    return Unreadable("knowledge.loader_failed", name=name, why=f"{type(error).__name__}: {error}")
