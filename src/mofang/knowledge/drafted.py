"""The questions that were drafted about a base, and what a person said of each: questions.jsonl in the base's folder.

A row is one of `questions.row`, with the passage as it read then and a state: open, accepted, dropped. A dropped one stays,
so that it is not asked again. The accepted ones are a set for evaluate: each names its passage by its words, not by its
place, so a document that was changed since is told of there, never measured in the wrong place.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mofang.errors import NotFound, Unreadable
from mofang.knowledge.base import Hit
from mofang.knowledge.questions import row as plain_row

FILE = "questions.jsonl"
NEEDED = ("question", "answer", "document", "spans", "passage", "state")

Row = dict[str, Any]


class Drafted:
    """The file in `folder`. Blocks; whoever changes it makes sure that nobody else does meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def rows(self) -> list[Row]:
        """In the order of their drafting. Raises Unreadable for a file that somebody broke."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise Unreadable("evaluate.drafted_broken", path=self.path, why=error) from error
        try:
            found = [json.loads(line) for line in text.split("\n") if line]
            _ = [(int(row["id"].removeprefix("q")), *(row[name] for name in NEEDED)) for row in found]
            return found
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Unreadable("evaluate.drafted_broken", path=self.path, why=error) from error

    def keep(self, passage: Hit, question: str, answer: str) -> Row:
        """One more, open, under a number that none had."""
        rows = self.rows()
        number = max((int(row["id"].removeprefix("q")) for row in rows), default=0)
        made = {**plain_row(passage, question, answer, number), "passage": passage.text, "state": "open"}
        del made["checked"]
        self._write([*rows, made])
        return made

    def change(self, question_id: str, changes: Mapping[str, Any]) -> Row:
        """Raises NotFound."""
        rows = self.rows()
        found = next((row for row in rows if row["id"] == question_id), None)
        if found is None:
            raise NotFound("evaluate.no_such_question", id=question_id)
        found |= changes
        self._write(rows)
        return found

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def _write(self, rows: Sequence[Row]) -> None:
        """All of them, so that the file is never seen half."""
        aside = self.path.with_name(f".{FILE}.part")
        aside.write_text(_lines(rows), encoding="utf-8")
        aside.replace(self.path)


def as_set(rows: Sequence[Row]) -> str:
    """The accepted ones as evalset.load reads them."""
    kept = ("id", "question", "answer", "document")
    return _lines(
        [
            {**{name: row[name] for name in kept}, "spans": [row["passage"]], "checked": True}
            for row in rows
            if row["state"] == "accepted"
        ]
    )


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
