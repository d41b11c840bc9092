"""How an answer writes the sources that it cites: [1], 【1】, [1,2], [1][2], [1-3], [资料1], [source 1]."""

import re

_NUMBERS = r"\d{1,3}(?:\s*[,，、;；\-–~]\s*\d{1,3})*"
MARK = re.compile(rf"[\[【［]\s*(?:资料|来源|source)?\s*({_NUMBERS})\s*[\]】］]", re.IGNORECASE)
BEGUN = re.compile(r"[\[【［]\s*(?:资?料?|来?源?|s?o?u?r?c?e?)\s*[\d\s,，、;；\-–~]*", re.IGNORECASE)
"""What may become a mark."""
OPENS = "[【［"
LONGEST = 24
"""Characters; no mark is longer."""
_ONE = re.compile(r"(\d+)(?:\s*[\-–~]\s*(\d+))?")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
MOST = 50
"""Sources that a range may run over; nothing offers more."""


def numbers(inside: str) -> list[int]:
    """What stands between a mark's brackets: "1,3-5" → 1, 3, 4, 5."""
    found: list[int] = []
    for first, last in _ONE.findall(inside):
        until = int(last) if last else int(first)
        found += range(int(first), min(until, int(first) + MOST) + 1)
    return found


def marks(answer: str) -> set[int]:
    """The numbers that an answer cites. Those in code are indices, not marks."""
    return {number for inside in MARK.findall(_CODE.sub(" ", answer)) for number in numbers(inside)}
