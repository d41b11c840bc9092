"""JSON Lines: a record a line. Questions with answers become "qa" blocks, texts paragraphs, other records "name：value".

Fields are known by name: question and answer as in tables (mofang.knowledge.loaders.table); text or content, with a
title that is the heading above it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mofang.errors import Unreadable
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders.build import Builder, Outline, stem
from mofang.knowledge.loaders.table import Columns
from mofang.knowledge.loaders.text import encoding_notes
from mofang.messages import Place
from mofang.strings import say
from mofang.text.encodings import decode

_TEXT = ("text", "content", "正文", "内容", "文本")
_TITLE = ("title", "标题")


def load(path: Path, name: str) -> ParsedDocument:
    """Raises Unreadable: text.binary, text.unknown_encoding, knowledge.jsonl_damaged when no line is a JSON object."""
    decoded = decode(path.read_bytes())
    builder = Builder()
    wrong: list[int] = []
    n_records = 0
    for number, line in enumerate(decoded.text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            n_records += 1
            _add(builder, record, Place(row=number))
        else:
            wrong.append(number)
    if not n_records and wrong:
        raise Unreadable("knowledge.jsonl_damaged", name=name, line=wrong[0])
    shown = "、".join(map(str, wrong[:5]))
    notes = (say("knowledge.lines_skipped", n=len(wrong), lines=shown),) if wrong else ()
    return ParsedDocument(builder.text, builder.blocks, stem(name), (*encoding_notes(decoded), *notes))


def _add(builder: Builder, record: Mapping[str, Any], place: Place) -> None:
    builder.outline = Outline()
    fields = {str(key): _words(value) for key, value in record.items()}
    columns = Columns.find(list(fields))
    if columns is not None and columns.add(builder, list(fields.values()), place):
        return
    text = next((fields[key] for key in _TEXT if fields.get(key, "").strip()), "")
    if not text:
        lines = [f"{key}：{value}" for key, value in fields.items() if value.strip()]
        builder.add("paragraph", "\n".join(lines), place=place)
        return
    title = next((" ".join(fields[key].split()) for key in _TITLE if fields.get(key, "").strip()), "")
    if title:
        builder.heading(1, title, place=place)
    builder.add("paragraph", text.strip(), place=place)


def _words(value: Any) -> str:
    """A field for reading: text as it is, a list of texts by line, the rest as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return json.dumps(value, ensure_ascii=False)
