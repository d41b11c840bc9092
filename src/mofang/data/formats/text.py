"""Running text: {"text"}; what text files are read as."""

from typing import Any

from mofang.data.formats.base import Format, text
from mofang.data.rows import Document


def _read(record: dict[str, Any]) -> Document:
    return Document(text(record, "text"), more=record.get("more") is True)


FORMAT = Format(frozenset({"text"}), _read)
