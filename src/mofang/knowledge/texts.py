"""A version's canonical text in SQLite: rows of TEXT_PART characters, so that a span is read without the rest."""

import sqlite3

TEXT_PART = 1 << 16
"""Characters in one row of `texts`; `start` is a multiple of it."""


def span(connection: sqlite3.Connection, version_id: int, start: int, end: int) -> str:
    """text[start:end] of a version's canonical text."""
    first = start - start % TEXT_PART
    query = "SELECT text FROM texts WHERE version_id = ? AND start >= ? AND start < ? ORDER BY start"
    text = "".join(row[0] for row in connection.execute(query, (version_id, first, max(end, start + 1))))
    return text[start - first : end - first]
