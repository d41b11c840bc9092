"""Conversations by the words in them: every word stands in the title or in a message, as a piece of its text.

A scan with LIKE: SQLite's full-text index cuts Chinese into nothing useful, and its trigrams do not find words of two
characters, which most Chinese words are. ASCII letters are found in either case.
"""

import sqlite3
from typing import Any

from mofang.engine.base import CALLER

WORDS = 8
"""Of a query; more narrow nothing down."""
BEFORE, AFTER = 24, 96
"""Characters of a message that are shown around what was found."""


def words_of(query: str) -> list[str]:
    return query.split()[:WORDS]


def search(db: sqlite3.Connection, query: str) -> list[tuple[sqlite3.Row, dict[str, Any] | None]]:
    """The asker's conversations that hold every word of `query`, last touched first, each with the message that holds
    most of them: {"message_id", "role", "text"}; None where only the title does."""
    words = words_of(query)
    patterns = [_pattern(word) for word in words]
    held = (
        "(c.title LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM messages m"
        " WHERE m.conversation_id = c.id AND m.content LIKE ? ESCAPE '\\'))"
    )
    rows = db.execute(
        f"SELECT c.* FROM conversations c WHERE ? IN ('', c.owner) AND {' AND '.join([held] * len(words))}"  # noqa: S608 (our own words)
        " ORDER BY c.updated_at DESC, c.number DESC",
        (CALLER.get(), *(pattern for pattern in patterns for _ in range(2))),
    ).fetchall()
    return [(row, _hit(db, row["id"], words, patterns)) for row in rows]


def _hit(db: sqlite3.Connection, conversation_id: str, words: list[str], patterns: list[str]) -> dict[str, Any] | None:
    score = " + ".join(["(content LIKE ? ESCAPE '\\')"] * len(patterns))
    row = db.execute(
        f"SELECT id, role, content, {score} AS score FROM messages WHERE conversation_id = ?"  # noqa: S608 (our own words)
        " ORDER BY score DESC, number LIMIT 1",
        (*patterns, conversation_id),
    ).fetchone()
    if row is None or not row["score"]:
        return None
    return {"message_id": row["id"], "role": row["role"], "text": excerpt(row["content"], words)}


def excerpt(text: str, words: list[str]) -> str:
    """One line around the first of `words` that stands in `text`."""
    lowered = text.lower()
    at = min((place for place in (lowered.find(word.lower()) for word in words) if place >= 0), default=0)
    start, end = max(0, at - BEFORE), at + AFTER
    line = " ".join(text[start:end].split())
    return ("…" if start else "") + line + ("…" if end < len(text) else "")


def _pattern(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
