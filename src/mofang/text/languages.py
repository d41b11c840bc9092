"""Which of our two languages a text is in, as far as its letters tell."""

import re

from mofang.text.fold import fold

LANGUAGES = ("zh", "en")
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
_LATIN = re.compile(r"[A-Za-z]")
_WORD = re.compile(r"[A-Za-z]+")
MIXED = 0.3
"""Share of Han characters, a word in Latin letters being one too, from which a paragraph with names and commands in it is
Chinese all the same."""


def language_of(text: str) -> str:
    """ "en" for a text in Latin letters alone, else "zh"."""
    return "en" if _LATIN.search(fold(text)) and not HAN.search(text) else "zh"


def is_in(text: str, language: str) -> bool:
    """Whether a paragraph is written in it, names and commands apart. Without letters of either it goes with both."""
    n_han = sum(map(len, HAN.findall(text)))
    n_words = len(_WORD.findall(text))
    if not n_han and not n_words:
        return True
    return (n_han >= MIXED * (n_han + n_words)) == (language == "zh")
