"""Questions about a base's own passages, drafted by a model for a person to check: rows that evalset.load reads.

A draft is kept when it can stand alone and rests on its passage: it does not point at "this passage", does not copy a
title, says nothing that was asked before, and its answer is made of the passage's words. Nothing here proves that a
question is a good one: that is why each row says "checked": false. Knows nothing of engines and HTTP.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mofang.errors import Invalid
from mofang.knowledge.base import Hit
from mofang.messages import Message
from mofang.strings import say
from mofang.text import drafts
from mofang.text.pairs import bare

MIN_PASSAGE = 40
"""Characters; a shorter passage is a heading or a line of a table."""
MIN_QUESTION = 4
MIN_TITLE = 4
"""Characters; a heading such as "安装" may well stand in a question, a longer one is a copy."""

SCHEMA = drafts.schema(("question", "answer"))
_ASKS = re.compile(
    r"[?？]\s*$|什么|怎么|怎样|如何|哪|几|多少|多长|多久|多大|谁|吗|为何|是否|能否|可否|有无"
    r"|^\s*(?:what|how|why|when|where|which|who|can|does|do|is|are|should)\b",
    re.IGNORECASE,
)


def prompt(passage: Hit, lang: str) -> list[Message]:
    """What to ask a model, whose answer should be an object of SCHEMA."""
    title = " > ".join((passage.title, *passage.headings))
    asked = say("evaluate.draft_passage", title=title, text=passage.text.strip(), lang=lang)
    example = say("evaluate.draft_example", lang=lang), say("evaluate.draft_example_reply", lang=lang)
    return [
        Message("system", say("evaluate.draft_rules", lang=lang)),
        Message("user", example[0]),  # a small model needs to be shown (as in answer.py)
        Message("assistant", example[1]),
        Message("user", asked),
    ]


def is_worth_asking(passage: Hit) -> bool:
    return len(passage.text.strip()) >= MIN_PASSAGE


def read(said: str) -> tuple[str, str] | None:
    """(question, answer) of a model's reply; None when it is not what was asked for."""
    row = drafts.read(said, ("question", "answer"))
    return (row["question"], row["answer"]) if row else None


def fault(passage: Hit, question: str, answer: str, asked: Iterable[str]) -> str:
    """Why a draft is dropped: unasked, points, title, copied, repeated, unsupported; "" when it is kept."""
    if len(question) < MIN_QUESTION or not _ASKS.search(question):
        return "unasked"
    if drafts.points(question):
        return "points"
    titles = (passage.title.rsplit("/", 1)[-1].rsplit(".", 1)[0], *passage.headings)
    if any(len(title) >= MIN_TITLE and bare(title) in bare(question) for title in titles):
        return "title"
    if bare(question) in bare(passage.text):
        return "copied"
    if drafts.is_repeated(question, asked):
        return "repeated"
    return "" if drafts.is_supported(answer, passage.text) else "unsupported"


def judged(passage: Hit, said: str, asked: Iterable[str]) -> tuple[str, str] | str:
    """(question, answer) of a model's reply, or why it is dropped: "unreadable", or as `fault` says."""
    draft = read(said)
    return (fault(passage, *draft, asked) or draft) if draft else "unreadable"


def row(passage: Hit, question: str, answer: str, number: int) -> dict[str, Any]:
    """A line of the set; `number` is the passage's place in the draw."""
    return {
        "id": f"q{number + 1}",
        "question": question,
        "answer": answer,
        "document": passage.title,
        "spans": [[passage.start, passage.end]],
        "checked": False,
    }


def drafted(path: Any, raw: bytes) -> tuple[list[dict[str, Any]], int]:
    """The rows of an earlier run, and how many bytes of the file they are: a last line that a kill cut short is not
    among them. Raises Invalid for a file that is something else."""
    rows: list[dict[str, Any]] = []
    whole = 0
    for number, line in drafts.whole_lines(raw):
        try:
            found = json.loads(line)
            _ = found["question"], found["document"], found["spans"][0], int(found["id"].removeprefix("q"))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise Invalid("evaluate.not_drafted", path=path, line=number) from error
        rows.append(found)
        whole += len(line)
    return rows, whole


def remaining(passages: Sequence[Hit], rows: Collection[Mapping[str, Any]]) -> list[tuple[int, Hit]]:
    """(place in the draw, passage) of what was not looked at yet: all behind the last passage that has a row."""
    done = {(row["document"], *row["spans"][0]) for row in rows}
    last = max((place for place, one in enumerate(passages) if (one.title, one.start, one.end) in done), default=-1)
    return [(place, one) for place, one in enumerate(passages) if place > last and is_worth_asking(one)]
