"""A question that somebody has answered already: the answer of its question-answer pair, given at once and by no model.

The pair is looked for among what search finds. Its question must be the very one (text/alike.py: equal keys), or the best
passage's question in other words that mean the same; then the embedder must hold the two questions for near as well.
How near is told on its own scale: 0 is what everyday queries are to this question on average, 1 is the same question.
Where equal questions have different answers, none is preferred: the model gets them as sources.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mofang.engine.base import Vectors
from mofang.knowledge.answer import Grounding, source_of
from mofang.knowledge.base import Hit
from mofang.knowledge.store import Store, block_at, span
from mofang.messages import Message
from mofang.strings import say
from mofang.text.alike import key, near
from mofang.text.languages import language_of

CANDIDATES = 10
"""Passages among which the very question is looked for; the same in other words must be the first."""
LEAST_NEARNESS = 0.6
"""Of a question in other words; what is asked in the same words about another thing has been told apart before."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question-answer pair of a base: `hit` is the whole of it, text[answer:] what answers `question`."""

    hit: Hit
    question: str
    answer: str
    answer_start: int
    """In the canonical text."""


def has_pairs(stores: Sequence[Store]) -> bool:
    """Whether any of the bases holds a pair; most hold none, and need no search before the one that grounds."""
    for store in stores:
        with store.read() as connection:
            if connection.execute("SELECT 1 FROM blocks WHERE kind = 'qa' LIMIT 1").fetchone():
                return True
    return False


def plain_question(messages: Sequence[Message]) -> bool:
    """Whether the last turn is a question that a stored answer could be for: no instructions stand before it, which
    the answer could not follow, and no picture beside it."""
    instructed = any(message.role in ("system", "developer") and message.text.strip() for message in messages)
    return not instructed and not any(message.has_image for message in messages)


def pairs_of(stores: dict[str, Store], hits: Sequence[Hit]) -> list[Pair | None]:
    """The pair that each hit is of, or None."""
    found: list[Pair | None] = []
    for hit in hits:
        with stores[hit.knowledge].read() as connection:
            found.append(_pair(connection, hit))
    return found


def the_very(question: str, pairs: Sequence[Pair | None]) -> Pair | None:
    """The pair with this question; None also when such pairs do not agree on the answer."""
    asked = key(question)
    same = [pair for pair in pairs if pair and asked and key(pair.question) == asked]
    return same[0] if len({key(pair.answer) for pair in same}) == 1 else None


def the_nearest(question: str, pairs: Sequence[Pair | None]) -> Pair | None:
    """The pair of the best hit, when its question says the same in other words. Not for sure yet: see `nearness`."""
    best = pairs[0] if pairs else None
    if best is None or not near(key(question), key(best.question)):
        return None
    rivals = [pair for pair in pairs[1:] if pair and key(pair.question) == key(best.question)]
    return best if all(key(pair.answer) == key(best.answer) for pair in rivals) else None


def nearness(questions: Vectors, everyday: Vectors) -> float:
    """Of two questions (2, d), by the mean (d,) of everyday queries: 1 for the same, about 0 for any other."""
    one, other = questions
    usual = float(one @ everyday)
    return (float(one @ other) - usual) / max(1 - usual, 1e-6)


def grounding(pair: Pair, messages: Sequence[Message], query: str, notices: Sequence[str]) -> Grounding:
    """The pair as an answer with one source, cited whole."""
    end = pair.answer_start + len(pair.answer)
    source = replace(source_of(1, pair.hit), spans=((pair.answer_start, end),))
    said = say("knowledge.stored_answer", title=pair.hit.title, lang=language_of(query))
    apart = "\n\n" if "\n" in pair.answer else " "
    return Grounding(list(messages), [source], query, [said, *notices], answer=f"{pair.answer}{apart}[1]")


def _pair(connection: sqlite3.Connection, hit: Hit) -> Pair | None:
    row = connection.execute("SELECT version_id FROM documents WHERE id = ?", (hit.document_id,)).fetchone()
    if row is None or span(connection, row[0], hit.start, hit.end) != hit.text:
        return None  # the document has changed since
    block = block_at(connection, row[0], hit.start, hit.end)
    if block is None or block.kind != "qa" or block.lead is None:
        return None
    text = span(connection, row[0], block.start, block.end)
    cut = block.lead[1] - block.start
    answer = text[cut:].strip()
    if not answer:
        return None
    whole = replace(hit, text=text, start=block.start, end=block.end, lead="", box=block.box, place=block.place)
    return Pair(whole, text[:cut], answer, block.start + text.index(answer, cut))
