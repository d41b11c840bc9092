"""Rows of cells → blocks: tables whose lines know their rows, words that stand alone, and questions with answers.

A row that stands alone and has one cell (the first one, or after an empty row) is words above a table. The first row
with more is the table's header. An empty row ends nothing: what follows belongs to the same header until words or
another sheet begin. A header that names a question and an answer column makes every row a block of kind "qa".
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mofang.knowledge.base import Span
from mofang.knowledge.loaders.build import Builder
from mofang.messages import Place

ROWS = 200
"""Of a table in one block; the next block has the same header."""

_QUESTION = re.compile(r"(?:标准|用户)?(?:问题|提问|问)|q|question|query|instruction|prompt", re.IGNORECASE)
_ANSWER = re.compile(
    r"(?:标准|参考)?(?:答案|回答|答复|回复|答)\d*|a|answers?\d*|responses?|outputs?|completion", re.IGNORECASE
)
_MORE = re.compile(r"input|补充|输入", re.IGNORECASE)
"""What an instruction is about (Alpaca's "input"): part of the question."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Of a table of questions and answers, by place."""

    names: tuple[str, ...]
    question: tuple[int, ...]
    answers: tuple[int, ...]

    @classmethod
    def find(cls, header: Sequence[str]) -> "Columns | None":
        """None when no column is named like a question, or none like its answer."""
        names = tuple(" ".join(name.split()) for name in header)
        asked = [i for i, name in enumerate(names) if _QUESTION.fullmatch(name)][:1]
        answers = tuple(i for i, name in enumerate(names) if _ANSWER.fullmatch(name))
        if not asked or not answers:
            return None
        more = [i for i, name in enumerate(names) if _MORE.fullmatch(name)]
        return cls(names, (*asked, *more), answers)

    def add(self, builder: Builder, cells: Sequence[str], place: Place) -> bool:
        """A row as a block; False when it lacks the question or the answer. Other columns stay as "name：value"."""
        found = dict(enumerate(cells))
        question = "\n".join(words for i in self.question if (words := found.get(i, "").strip()))
        answers = [words for i in self.answers if (words := found.get(i, "").strip())]
        if not found.get(self.question[0], "").strip() or not answers:
            return False
        rest = [i for i in found if i not in (*self.question, *self.answers) and found[i].strip()]
        named = [f"{self.names[i]}：{found[i].strip()}" if i < len(self.names) else found[i].strip() for i in rest]
        builder.question(question, [*answers, *named], place=place)
        return True


class Rows:
    """Writes one sheet, row by row; `finish` writes what is left. `incomplete` rows lacked a question or an answer."""

    def __init__(self, builder: Builder, sheet: str = "") -> None:
        self._builder = builder
        self._sheet = sheet
        self._lines: list[str] = []
        self._first_row = 0
        self._lead: Span | None = None
        self._columns: Columns | None = None
        self._in_table = False
        self._after_gap = True
        self.incomplete: list[int] = []

    def add_all(self, rows: Iterable[tuple[int, Sequence[str]]]) -> None:
        """(number from 1, cells) of each row; empty ones included or left out."""
        last = 0
        for number, cells in rows:
            filled = [words for cell in cells if (words := " ".join(cell.split()))]
            if not filled:
                continue
            self._after_gap = self._after_gap or number > last + 1
            self._add(number, cells, len(filled))
            self._after_gap, last = False, number
        self.finish()

    def finish(self) -> None:
        if not self._lines:
            return
        place = Place(sheet=self._sheet, row=self._first_row)
        text = "\n".join(self._lines)
        if self._lead is None:
            block = self._builder.table(self._lines, place=place)
            self._lead = block.lead if block else None
        else:
            self._builder.add("table", text, place=place, lead=self._lead)
        self._lines = []

    def _add(self, number: int, cells: Sequence[str], n_filled: int) -> None:
        if n_filled == 1 and (self._after_gap or not self._in_table) and self._columns is None:
            self.finish()
            self._in_table, self._lead = False, None
            words = "".join(cell.strip() for cell in cells)
            self._builder.add("paragraph", words, place=Place(sheet=self._sheet, row=number))
            return
        if not self._in_table:
            self._in_table = True
            self._columns = Columns.find(cells)
            if self._columns is not None:
                return  # the names of question and answer say nothing by themselves
        if self._columns is not None:
            if not self._columns.add(self._builder, cells, Place(sheet=self._sheet, row=number)):
                self.incomplete.append(number)
                words = " | ".join(words for cell in cells if (words := " ".join(cell.split())))
                self._builder.add("paragraph", words, place=Place(sheet=self._sheet, row=number))
            return
        if self._lines and (self._after_gap or len(self._lines) >= ROWS):
            self.finish()
        if not self._lines:
            self._first_row = number
        self._lines.append(line(cells))


def line(cells: Sequence[str]) -> str:
    """A row on one line, cells joined by " | ", without the empty ones at its end."""
    words = [" ".join(cell.split()) for cell in cells]
    while words and not words[-1]:
        words.pop()
    return " | ".join(words)
