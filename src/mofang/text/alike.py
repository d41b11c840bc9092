"""Whether two questions ask the same, told so that a wrong yes is rare: a stored answer is given on its strength.

`key` takes away what no question is about: width, case, white space, punctuation, polite words. Equal keys are the same
question. `near` lets a question be put in other words as far as alike.toml knows them: a word for another of its group,
light words that come or go, "怎样" for "如何", and the parts before and after the question word the other way round.
Every other word, number, identifier, negation or kind of question that differs makes it another question. Vectors
cannot tell this: "怎样开启" and "怎样关闭" lie as near as "怎样开启" and "如何打开".
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import rjieba

from mofang.text.fold import fold

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\u3007"
_APART = re.compile(r"[，。！？、；：,!?;:\"'“”‘’「」『』《》〈〉()（）…—~～]|\.(?![a-z0-9])")
"""Punctuation of sentences. Other signs may be what is asked about: C++, 50%, a/b, mofang[train], .env"""
_KEPT = re.compile(r"(?<=[0-9])[:,](?=[0-9])|(?<=[a-z])'(?=[a-z])")
_SPACE = re.compile(r"(?<![!-~])\s+|\s+(?![!-~])")
"""Where it stands beside a character that is not ASCII, it parts nothing."""
_PARTICLES = re.compile(r"[呢啊呀哦哈啦]+$")
_NO = re.compile(r"[不没無无非未别勿莫]")
_NO_WORDS = {"not", "no", "never", "without", "cannot", "none"}
_WORDS = frozenset("能会有要")
"""Forms that are part of many words (功能, 会议): only where they stand as one."""
_TOKEN = re.compile(rf"\x00(?P<form>[a-z_]+)\x00|(?P<han>[{_HAN}]+)|(?P<other>[^\s\x00{_HAN}]+)")
_NOUNS = frozenset({"who", "what", "which", "where", "how_many"})
"""Forms whose place says what is asked: "谁管张三", "张三管谁"."""
_IDLE = {
    "how": {"can", "must"},
    "remedy": {"can", "must"},
    "how_many": {"have", "must"},
    "how_long": {"must"},
    "money": {"must"},
}
"""What says nothing besides such a form: "怎么才能退款", "怎么退款"; "有几天年假", "年假几天"."""
_MODAL = frozenset({"can", "must", "will", "have", "support"})
"""With one of these, how yes or no is asked says nothing: "能不能退款", "能退款吗"."""
_OR_NOT = "_or_not"
"""Ends the names of forms that also ask for yes or no."""


def key(question: str) -> str:
    """What is asked, for comparing only; "" when nothing is."""
    folded = _KEPT.sub(_shield, fold(question).replace("’", "'"))
    parts = [_bare(part.strip()) for part in _APART.split(folded)]
    joined = " ".join(part for part in parts if part and part not in _words().greetings)
    return _SPACE.sub("", joined.translate(_UNSHIELD)).strip()


def near(one: str, other: str) -> bool:
    """Whether two keys ask the same in words that may differ."""
    first, second = _asked(one), _asked(other)
    same = (first.forms, first.negations) == (second.forms, second.negations)
    return same and bool(first.words) and _turned(first.words, second.words)


# ---- inside ----

_SHIELD = str.maketrans(":,'", "\ue000\ue001\ue002")
_UNSHIELD = str.maketrans("\ue000\ue001\ue002", ":,'")


def _shield(match: re.Match[str]) -> str:
    return match[0].translate(_SHIELD) if match[0] != "," else ""


@dataclass(frozen=True, slots=True)
class _Words:
    """alike.toml, ready for use."""

    polite: re.Pattern[str]
    greetings: frozenset[str]
    groups: dict[str, str]
    light: frozenset[str]
    forms: re.Pattern[str]
    form_of: dict[str, str]


@cache
def _words() -> _Words:
    told: dict[str, Any] = tomllib.loads((Path(__file__).parent / "alike.toml").read_text(encoding="utf-8"))
    forms = {form: name for name, members in told["forms"].items() for form in members}
    return _Words(
        polite=re.compile(rf"^(?:(?:你好|您好)?(?:{_any(told['polite'])}))+\s*"),
        greetings=frozenset(told["greetings"]),
        groups={word: group[0] for group in told["alike"] for word in group},
        light=frozenset(told["light"]),
        forms=re.compile("|".join(_form(form) for form in sorted(forms, key=len, reverse=True) if form not in _WORDS)),
        form_of={form.removesuffix("$"): name for form, name in forms.items()},
    )


def _any(phrases: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))


def _form(form: str) -> str:
    bare = re.escape(form.removesuffix("$"))
    bare = rf"\b{bare}\b" if form.isascii() else bare
    return f"{bare}$" if form.endswith("$") else bare


def _bare(part: str) -> str:
    """A part of a question without polite words before it and particles after it."""
    return _PARTICLES.sub("", _words().polite.sub("", part)).strip()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question taken apart."""

    words: tuple[str, ...]
    forms: frozenset[str]
    negations: int


@lru_cache(maxsize=1024)
def _asked(text: str) -> _Asked:
    told = _words()
    marked = told.forms.sub(lambda match: f"\0{told.form_of[match[0]]}\0", text)
    forms: set[str] = set()
    words: list[str] = []
    for word, form in _taken_apart(marked):
        if form:
            forms |= {form.removesuffix(_OR_NOT), "whether"} if form.endswith(_OR_NOT) else {form}
        if form in _NOUNS or not (form or word in told.light):
            words.append(form or told.groups.get(word, word))
    for form, idle in _IDLE.items():
        if form in forms:
            forms -= idle
    if forms & _MODAL:
        forms.discard("whether")
    negations = sum(len(_NO.findall(word)) + (word in _NO_WORDS or word.endswith("n't")) for word in words)
    return _Asked(tuple(words), frozenset(forms), negations)


def _taken_apart(marked: str) -> Iterator[tuple[str, str]]:
    """(word, "") and ("", form) in the order of the text."""
    single = _words().form_of
    for match in _TOKEN.finditer(marked):
        if match["form"]:
            yield "", match["form"]
        elif match["other"]:
            yield match["other"], ""
        else:
            for word in rjieba.cut(match["han"], False):
                yield ("", single[word]) if word in single else (word, "")


def _turned(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the words follow each other alike, from whichever of them one begins."""
    return len(one) == len(other) and any(one[at:] + one[:at] == other for at in range(len(one)))
