"""A migration: the words of chunks in traditional Chinese, cut anew from their text now that folding simplifies it."""

import json
import secrets
import sqlite3

from mofang.knowledge.passage import indexed, passage, title_words
from mofang.knowledge.texts import span
from mofang.text.fold import simplified


def simplify_words(connection: sqlite3.Connection) -> None:
    """Words that hold nothing traditional stay. Where any changed, it is a commit that no copy can follow: index stores
    and files copy the base anew."""
    changed = [
        row[0] for row in connection.execute("SELECT chunk_id, words FROM words") if simplified(row[1]) != row[1]
    ]
    for chunk_id in changed:
        words = _words(connection, chunk_id)
        connection.execute("UPDATE words SET words = ? WHERE chunk_id = ?", (words, chunk_id))
    if changed:
        connection.execute("UPDATE base SET version = version + 1, removed_from = version + 1")
        query = "INSERT INTO commits SELECT version, ?, (SELECT ifnull(max(id), 0) FROM chunks) FROM base"
        connection.execute(query, (secrets.token_hex(8),))
        connection.execute("DELETE FROM removed")


def _words(connection: sqlite3.Connection, chunk_id: int) -> str:
    query = """
        SELECT c.version_id, c.start, c."end", c.headings, c.lead, v.title, d.name
        FROM chunks c JOIN versions v ON v.id = c.version_id JOIN documents d ON d.id = v.document_id WHERE c.id = ?
    """
    version, start, end, headings, lead, title, name = connection.execute(query, (chunk_id,)).fetchone()
    led = span(connection, version, *json.loads(lead)) if lead else ""
    text = passage(json.loads(headings), span(connection, version, start, end), led)
    return indexed(title_words(title, name), text)
