"""Cutting text into words for keyword search; documents and queries go through the same cutter, so they meet.

Han runs are cut by rjieba in search mode: long words and the shorter words inside them. Where its dictionary knows
nothing it returns single characters; a run of those also gives its bigrams, so that names and new words are found.
Latin words keep inner dots and dashes ("utf-8", "config.yaml") and also give their parts; kana and hangul give bigrams.
Everything is folded first (mofang.text.fold).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import rjieba

from mofang.text.fold import fold

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3007"
_KANA = "\u3040-\u30ff\uac00-\ud7af"
_LATIN = rf"[^\W{_HAN}{_KANA}]"
_RUN = re.compile(rf"(?P<han>[{_HAN}]+)|(?P<kana>[{_KANA}]+)|(?P<latin>{_LATIN}+(?:[.\-'@]{_LATIN}+)*(?:\+\+|\#)?)")
_HAN_CHARACTER = re.compile(rf"[{_HAN}]")
_LATIN_LETTER = re.compile(_LATIN)
_PART = re.compile(r"[.\-'@_]+")

INNER = ".-'@_+#"
"""The characters besides letters, digits and marks that a word may contain; an index must not cut at them."""


def words(text: str) -> list[str]:
    """Every word to index, in the order of the text; a word inside a longer one comes as well."""
    return list(_cut(fold(text)))


def query_words(text: str) -> list[str]:
    """The words of a query that carry meaning, each once. All words when every one is a stop word."""
    every = list(dict.fromkeys(_cut(fold(text))))
    return [word for word in every if word not in stop_words()] or every


def marks(text: str, query: str) -> list[tuple[int, int]]:
    """Where in `text` words of `query` stand: spans in order, none touching the next. For eyes: a single Han character
    counts only where the query has no longer word, and traditional characters are what they are."""
    wanted = query_words(query)
    longer = [word for word in wanted if len(word) > 1 or not _HAN_CHARACTER.fullmatch(word)] or wanted
    # Folded letter by letter, since what is shown must be found again: `at` leads from the folded text back.
    pieces = [fold(letter) for letter in text]
    at = [i for i, piece in enumerate(pieces) for _ in piece]
    folded = "".join(pieces)
    found = sorted(
        (at[one.start()], at[one.end() - 1] + 1) for word in longer for one in re.finditer(_as_word(word), folded)
    )
    spans: list[tuple[int, int]] = []
    for start, end in found:
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


def _as_word(word: str) -> str:
    """A pattern for it: Latin letters and digits on either side would make it a part of another word."""
    before = rf"(?<!{_LATIN})" if _LATIN_LETTER.match(word[0]) else ""
    after = rf"(?!{_LATIN})" if _LATIN_LETTER.match(word[-1]) else ""
    return before + re.escape(word) + after


@cache
def stop_words() -> frozenset[str]:
    """The words of stop_words.txt beside this file, Chinese and English."""
    lines = (Path(__file__).parent / "stop_words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def _cut(folded: str) -> Iterator[str]:
    for match in _RUN.finditer(folded):
        yield from _CUTTERS[match.lastgroup or "latin"](match.group())


def _han(run: str) -> Iterator[str]:
    unknown = ""
    # Without its guesses at unknown words: they depend on the neighbours, and a query would not meet the document.
    for word in rjieba.cut_for_search(run, False):
        if len(word) == 1:
            unknown += word
            continue
        yield from _unknown(unknown)
        unknown = ""
        yield word
    yield from _unknown(unknown)


def _unknown(run: str) -> Iterator[str]:
    yield from run
    yield from bigrams(run)


def _kana(run: str) -> Iterable[str]:
    return bigrams(run) if len(run) > 1 else [run]


def _latin(word: str) -> Iterator[str]:
    yield word
    parts = [part for part in _PART.split(word) if part]
    if len(parts) > 1:
        yield from parts


_CUTTERS = {"han": _han, "kana": _kana, "latin": _latin}


def bigrams(run: Sequence[str]) -> list[str]:
    """Each two neighbouring characters of `run`."""
    return [run[i] + run[i + 1] for i in range(len(run) - 1)]
