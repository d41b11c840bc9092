"""Joining the lines of a paragraph that some layout has broken: no space between Han characters, hyphens mended."""

import re
from collections.abc import Iterable

# Scripts written without spaces, and their punctuation (CJK symbols, kana, Han, full-width forms).
WIDE = "\u2e80-\u303f\u3040-\u30ff\u31c0-\u31ef\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff01-\uffef"
_WIDE_CHARACTER = re.compile(rf"[{WIDE}\U00020000-\U0003ffff“”‘’…—]")
_SOFT_HYPHENS = "\u00ad\ufffe\x02"
"""The soft hyphen, and the two marks by which PDFium tells a hyphen that the layout inserted."""


def is_wide(character: str) -> bool:
    """Whether no space is written beside this character."""
    return bool(_WIDE_CHARACTER.match(character))


def joint(before: str, after: str) -> str:
    """What stands between two lines that belong together: "" or " "."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    if is_wide(before[-1]) or is_wide(after[0]):
        # A Latin word beside a Han character may or may not have had a space: both are read alike, and found alike.
        return ""
    return " "


def join_lines(lines: Iterable[str]) -> str:
    """One paragraph from its lines; "Erfah-" + "rung" gives "Erfahrung", "GPL-" + "3" keeps its hyphen."""
    text = ""
    for line in (line.strip() for line in lines):
        if not line:
            continue
        if text and (text[-1] in _SOFT_HYPHENS or _is_hyphenated(text, line)):
            text = text[:-1] + line
        else:
            text += joint(text, line) + line
    return text.rstrip(_SOFT_HYPHENS)


def _is_hyphenated(before: str, after: str) -> bool:
    return before[-1:] == "-" and before[-3:-1].isalpha() and before[-2].islower() and after[0].islower()
