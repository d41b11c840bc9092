"""Whether a generated answer is right, by a rule that stands beside its question."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mofang.errors import Unreadable

_MARKS = re.compile(r"[\s\W_]+")


def holds(rule: Mapping[str, Any], answer: str) -> bool:
    """All parts of the rule hold: contains_any, contains_all, excludes (texts), equals (without marks), regex.

    Letters' case does not matter. Raises Unreadable for a rule of an unknown kind, or an empty one.
    """
    if not rule or any(name not in _KINDS for name in rule):
        raise Unreadable("measure.bad_rule", rule=dict(rule), known=", ".join(_KINDS))
    return all(_KINDS[name](value, answer) for name, value in rule.items())


def _texts(value: str | Sequence[str]) -> list[str]:
    return [text.casefold() for text in ([value] if isinstance(value, str) else value)]


def _bare(text: str) -> str:
    return _MARKS.sub("", text).casefold()


_KINDS: dict[str, Any] = {
    "contains_any": lambda value, answer: any(text in answer.casefold() for text in _texts(value)),
    "contains_all": lambda value, answer: all(text in answer.casefold() for text in _texts(value)),
    "excludes": lambda value, answer: not any(text in answer.casefold() for text in _texts(value)),
    "equals": lambda value, answer: _bare(answer) in {_bare(text) for text in _texts(value)},
    "regex": lambda value, answer: re.search(str(value), answer) is not None,
}
