"""Which of our two languages a text is in, as far as its letters tell."""

import re

from mofang.text.fold import fold

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
_LATIN = re.compile(r"[A-Za-z]")


def language_of(text: str) -> str:
    """ "en" for a text in Latin letters alone, else "zh"."""
    return "en" if _LATIN.search(fold(text)) and not HAN.search(text) else "zh"
