"""Every sentence that a person reads, in Chinese and English, from data files with the same keys.

`zh/<room>.toml` and `en/<room>.toml` hold one table a message. A key is "<room>.<name>", and the name is the stable
code that programs match ("models.model_not_found" → code "model_not_found"). An error's table has `message` and
`hint`; a plain sentence has `text`. Placeholders are `str.format` fields. tests/test_strings.py holds both languages
to the same keys and the same placeholders.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("zh", "en")


_SPEAKING: ContextVar[str] = ContextVar("language", default="")


@contextmanager
def speaking(lang: str) -> Iterator[None]:
    """What is said in this block, and in the threads and tasks that it starts, is said in `lang`: the asker's, where one
    process works for many."""
    token = _SPEAKING.set(lang)
    try:
        yield
    finally:
        _SPEAKING.reset(token)


def language() -> str:
    """The language of the block at hand (`speaking`), else of this process: `MOFANG_LANG` ("zh" or "en"), Chinese when
    it is not set."""
    if lang := _SPEAKING.get():
        return lang
    value = os.environ.get("MOFANG_LANG", "zh").lower()
    return "en" if value.startswith("en") else "zh"


@cache
def _room(room: str, lang: str) -> dict[str, dict[str, str]]:
    path = Path(__file__).parent / lang / f"{room}.toml"
    with path.open("rb") as file:
        return tomllib.load(file)


def say(key: str, /, *, part: str = "text", lang: str | None = None, **values: Any) -> str:
    """The sentence `key` ("room.name") in `lang`, its placeholders filled from `values`.

    Raises KeyError for an unknown key or a missing value: that is our fault, and a test finds it.
    """
    room, name = key.split(".", 1)
    return _room(room, lang or language())[name][part].format(**values)


def where(source: Mapping[str, Any], lang: str | None = None, *, joint: str = " › ") -> list[str]:
    """Where a hit or source stands in its document, in words: ["第 3 页", "安装 › 离线"], ["报销标准!12"].

    `source` is the JSON of messages.Source or of a hit. A paragraph's number is told only where nothing else tells the
    place; a sheet that is also the outermost heading is named once.
    """
    place = source.get("place") or {}
    numbers = (("page", source.get("page")), ("slide", place.get("slide")))
    said = [say(f"places.{name}", lang=lang, **{name: number}) for name, number in numbers if number]
    sheet, row = place.get("sheet") or "", place.get("row")
    if sheet:
        said.append(f"{sheet}!{row}" if row else sheet)
    elif row:
        said.append(say("places.row", lang=lang, row=row))
    headings = list(source.get("headings") or ())
    if sheet and headings[:1] == [sheet]:
        del headings[0]
    if headings:
        said.append(joint.join(headings))
    if not said and place.get("paragraph"):
        said.append(say("places.paragraph", lang=lang, paragraph=place["paragraph"]))
    return said
