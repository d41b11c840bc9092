"""The numbers that Word shows before paragraphs ("第三条", "1.2", "（一）"): counted, since the text does not hold them.

Source: ECMA-376 part 1, 17.9 (numbering), 17.18.59 (number formats).
"""

from collections.abc import Iterable
from typing import Any

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def child(node: Any, tag: str) -> Any:
    return node.find(f"{W}{tag}") if node is not None else None


def attribute(node: Any, tag: str) -> str | None:
    """The w:val of a child element; None without one."""
    found = child(node, tag)
    value: str | None = found.get(f"{W}val") if found is not None else None
    return value


class Numbering:
    """Counts the paragraphs of each list. `tree` is the document's numbering part, or None."""

    def __init__(self, tree: Any) -> None:
        self._lists: dict[str, str] = {}
        self._levels: dict[tuple[str, int], Any] = {}
        self._starts: dict[tuple[str, int], int] = {}
        """By list and level, where a list does not begin with its template's number."""
        self._counts: dict[str, dict[int, int]] = {}
        if tree is None:
            return
        for template in tree.iter(f"{W}abstractNum"):
            for level in template.iter(f"{W}lvl"):
                self._levels[template.get(f"{W}abstractNumId") or "", int(level.get(f"{W}ilvl") or 0)] = level
        for one in tree.iter(f"{W}num"):
            number = one.get(f"{W}numId") or ""
            self._lists[number] = attribute(one, "abstractNumId") or ""
            for override in one.iter(f"{W}lvlOverride"):
                start = attribute(override, "startOverride")
                if start is not None:
                    self._starts[number, int(override.get(f"{W}ilvl") or 0)] = int(start)

    def next(self, paragraph: Any, styles: Iterable[Any]) -> tuple[str | None, int]:
        """The number of the next paragraph and its level; "" for a bullet, None when it is in no list."""
        about = [child(child(one, "pPr"), "numPr") for one in (paragraph, *styles)]
        found = [one for one in about if one is not None]
        number = next((value for one in found if (value := attribute(one, "numId")) is not None), None)
        if number is None or number == "0" or number not in self._lists:
            return None, 0
        level = int(next((value for one in found if (value := attribute(one, "ilvl")) is not None), 0))
        template = self._lists[number]
        if (template, level) not in self._levels:
            return "", level
        return self._count(number, template, level), level

    def _count(self, number: str, template: str, level: int) -> str:
        counts = self._counts.setdefault(template, {})
        start = self._starts.pop((number, level), None)
        if start is not None:
            counts[level] = start
        elif level in counts:
            counts[level] += 1
        else:
            counts[level] = self._start(template, level)
        for deeper in [one for one in counts if one > level]:
            del counts[deeper]
        about = self._levels[template, level]
        if attribute(about, "numFmt") in ("bullet", "none"):
            return ""
        text = attribute(about, "lvlText") or ""
        for one in range(level + 1):
            shown = counts.get(one, self._start(template, one))
            format_ = attribute(self._levels.get((template, one)), "numFmt") or "decimal"
            text = text.replace(f"%{one + 1}", spelled(shown, format_))
        return text.strip()

    def _start(self, template: str, level: int) -> int:
        return int(attribute(self._levels.get((template, level)), "start") or 1)


def spelled(n: int, format_: str) -> str:
    """A number in one of Word's formats; those that are not known here in digits."""
    if format_ in _CHINESE:
        return chinese(n)
    if format_ in ("upperLetter", "lowerLetter"):
        letters = chr(ord("A") + (n - 1) % 26) * ((n - 1) // 26 + 1)
        return letters if format_ == "upperLetter" else letters.lower()
    if format_ in ("upperRoman", "lowerRoman"):
        return roman(n) if format_ == "upperRoman" else roman(n).lower()
    if format_.startswith("decimalEnclosedCircle") and 1 <= n <= 20:
        return chr(0x2460 + n - 1)
    if format_ == "ideographTraditional" and 1 <= n <= 10:
        return "甲乙丙丁戊己庚辛壬癸"[n - 1]
    return str(n)


_CHINESE = frozenset(
    ["chineseCounting", "chineseCountingThousand", "taiwaneseCounting", "taiwaneseCountingThousand", "japaneseCounting",
     "ideographDigital", "taiwaneseDigital"]
)  # fmt: skip
_DIGITS = "〇一二三四五六七八九"


def chinese(n: int) -> str:
    """1 → 一, 12 → 十二, 105 → 一百〇五; from 10,000 on in digits."""
    if not 0 < n < 10_000:
        return str(n)
    said, gap = "", False
    for unit, word in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = n // unit % 10
        if digit:
            said += ("〇" if gap and said else "") + _DIGITS[digit] + word
        gap = digit == 0
    return said.removeprefix("一") if 10 <= n < 20 else said


def roman(n: int) -> str:
    said = ""
    for value, word in (
        (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"),
        (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
    ):  # fmt: skip
        while n >= value:
            said, n = said + word, n - value
    return said
