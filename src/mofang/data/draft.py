"""Instructions with answers, drafted by a model for a person to check: rows in alpaca's layout.

From seed tasks, as self-instruct does (Wang et al., arXiv 2212.10560): a few tasks are shown, one more is asked for.
From passages of documents: a question that stands alone, and an answer made of the passage's words. What nearly repeats
an earlier row is dropped; each row names its source and says "checked": false. Knows nothing of engines and HTTP.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofang.data.rows import Conversation
from mofang.errors import Invalid
from mofang.messages import Message
from mofang.strings import say
from mofang.text import drafts
from mofang.text.languages import language_of

NAMES = ("instruction", "output")
SCHEMA = drafts.schema(NAMES)
SHOWN = 3
"""Seed tasks that are shown at a time; a small model copies the form of what it sees."""
MIN_INSTRUCTION, MIN_PASSAGE = 4, 40
"""Characters."""


@dataclass(frozen=True, slots=True)
class Seed:
    """A task of the user's, and where it stands."""

    instruction: str
    output: str
    name: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document: text is its characters from start to end."""

    document: str
    headings: tuple[str, ...]
    text: str
    start: int
    end: int


def seed(row: Conversation) -> Seed:
    """The last question of a conversation and its answer."""
    asked = next((message.text for message in reversed(row.messages) if message.role == "user"), "")
    return Seed(asked, row.messages[-1].text, f"{row.file.name}:{row.row}")


def shown(seeds: Sequence[Seed], attempt: int, number: int) -> list[Seed]:
    """The seed tasks of that attempt: others each time, the same in every run with the same number."""
    return random.Random(f"{number}:{attempt}").sample(list(seeds), min(SHOWN, len(seeds)))


def ask_for_another(tasks: Sequence[Seed]) -> list[Message]:
    """A conversation in which the seed tasks were the answers so far."""
    lang = language_of("".join(task.instruction for task in tasks))
    messages = [Message("system", say("data.draft_task_rules", lang=lang))]
    for task in tasks:
        reply = json.dumps({"instruction": task.instruction, "output": task.output}, ensure_ascii=False)
        messages += [Message("user", say("data.draft_task", lang=lang)), Message("assistant", reply)]
    return [*messages, Message("user", say("data.draft_task", lang=lang))]


def ask_about(passage: Passage) -> list[Message]:
    """What to ask a model about a passage."""
    lang = language_of(passage.text)
    title = " > ".join((passage.document, *passage.headings))
    return [
        Message("system", say("data.draft_rules", lang=lang)),
        Message("user", say("data.draft_example", lang=lang)),  # a small model needs to be shown
        Message("assistant", say("data.draft_example_reply", lang=lang)),
        Message("user", say("data.draft_passage", title=title, text=passage.text.strip(), lang=lang)),
    ]


def fault(row: dict[str, str], passage: Passage | None, others: Iterable[str]) -> str:
    """Why a draft is dropped: short, points, repeated, echo, unsupported; "" when it is kept."""
    instruction, output = row["instruction"], row["output"]
    if len(instruction) < MIN_INSTRUCTION:
        return "short"
    if passage and drafts.points(instruction):
        return "points"
    if drafts.is_repeated(instruction, others):
        return "repeated"
    if drafts.is_repeated(output, [instruction]):
        return "echo"
    return "" if passage is None or drafts.is_supported(output, passage.text) else "unsupported"


def made(row: dict[str, str], source: dict[str, Any]) -> dict[str, Any]:
    """A line of the file."""
    return {"instruction": row["instruction"], "input": "", "output": row["output"], "source": source, "checked": False}


def from_tasks(tasks: Sequence[Seed], attempt: int) -> dict[str, Any]:
    """The source of a row that was drafted after seed tasks."""
    return {"tasks": [task.name for task in tasks], "attempt": attempt}


def from_passage(passage: Passage) -> dict[str, Any]:
    """The source of a row that was drafted from a document."""
    return {"document": passage.document, "span": [passage.start, passage.end]}


def drafted(path: Path, raw: bytes) -> tuple[list[dict[str, Any]], int]:
    """The rows of an earlier run, and how many bytes of the file they are. Raises Invalid for a file that is
    something else."""
    rows = []
    whole = 0
    for number, line in drafts.whole_lines(raw):
        try:
            row = json.loads(line)
            _ = row["instruction"], row["output"], row["source"].items(), row["checked"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Invalid("data.not_drafted", path=path, row=number) from error
        rows.append(row)
        whole += len(line)
    return rows, whole


def next_attempt(rows: Iterable[dict[str, Any]]) -> int:
    """The number of the first attempt that no row came of yet; what was dropped behind the last row is tried again."""
    return 1 + max((row["source"].get("attempt", -1) for row in rows), default=-1)


def remaining(passages: Sequence[Passage], rows: Iterable[dict[str, Any]]) -> list[Passage]:
    """What was not looked at yet: all behind the last passage that has a row, but for those too short to ask about."""
    done = {(row["source"]["document"], *row["source"]["span"]) for row in rows if "span" in row["source"]}
    last = max((n for n, one in enumerate(passages) if (one.document, one.start, one.end) in done), default=-1)
    return [one for one in passages[last + 1 :] if len(one.text.strip()) >= MIN_PASSAGE]
