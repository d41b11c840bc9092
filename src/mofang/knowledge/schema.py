"""The tables of one knowledge base, as numbered migrations. Number n brings a file of version n-1 to n; none is edited.

documents keep their id over all their versions; a version is one reading of one file. Chunks refer to vectors by the
digest of what was embedded, so equal passages share one vector. `words` holds each chunk's words, cut by
mofang.text.words and parted by spaces: the keyword index is made from them. `base.version` counts the commits, and
`commits` gives each a random token, so that a copy of the base knows whether it is one. `removed` says which chunks
each commit took away (as far back as base.removed_from), so that a copy can follow.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from mofang.errors import Conflict
from mofang.knowledge.recut import simplify_words
from mofang.knowledge.texts import TEXT_PART
from mofang.text.words import INNER

_TOKENIZER = "ascii tokenchars ''{}''".format(INNER.replace("'", "''''"))

Step = Callable[[sqlite3.Connection], None]

MIGRATIONS: tuple[str | Step, ...] = (
    f"""
    CREATE TABLE base (
        name TEXT NOT NULL, title TEXT NOT NULL, embedding_model TEXT NOT NULL, dimensions INTEGER,
        created_at TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE documents (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, version_id INTEGER REFERENCES versions (id)
    ) WITHOUT ROWID;
    CREATE TABLE versions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        document_id TEXT NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
        sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL,
        n_chars INTEGER NOT NULL, n_pages INTEGER, notes TEXT NOT NULL, added_at TEXT NOT NULL
    );
    CREATE INDEX versions_of_document ON versions (document_id);
    CREATE INDEX versions_by_sha256 ON versions (sha256);
    CREATE TABLE blocks (
        version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
        n INTEGER NOT NULL, kind TEXT NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL,
        headings TEXT NOT NULL, page INTEGER, box TEXT,
        PRIMARY KEY (version_id, n)
    ) WITHOUT ROWID;
    CREATE TABLE chunks (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
        start INTEGER NOT NULL, "end" INTEGER NOT NULL, headings TEXT NOT NULL, digest BLOB NOT NULL
    );
    CREATE INDEX chunks_of_version ON chunks (version_id);
    CREATE INDEX chunks_by_digest ON chunks (digest);
    CREATE TABLE vectors (digest BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
    CREATE VIRTUAL TABLE words USING fts5 (title, body, tokenize = '{_TOKENIZER}');
    CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, row);
    """,
    # Places within sheets and slides (a JSON object), and the span that pieces of a block are read with ([start, end]).
    # Texts in parts, so that a span of a document of 200 MB is read without the rest; versions.text is empty from here
    # on (SQLite before 3.35 cannot drop it).
    f"""
    ALTER TABLE blocks ADD COLUMN place TEXT;
    ALTER TABLE blocks ADD COLUMN lead TEXT;
    ALTER TABLE chunks ADD COLUMN lead TEXT;
    CREATE INDEX blocks_by_end ON blocks (version_id, "end");
    CREATE TABLE texts (
        version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
        start INTEGER NOT NULL, text TEXT NOT NULL, UNIQUE (version_id, start)
    );
    INSERT INTO texts
        WITH RECURSIVE parts (version_id, start, n_chars) AS (
            SELECT id, 0, n_chars FROM versions
            UNION ALL
            SELECT version_id, start + {TEXT_PART}, n_chars FROM parts WHERE start + {TEXT_PART} < n_chars
        )
        SELECT version_id, start, substr(v.text, start + 1, {TEXT_PART}) FROM parts JOIN versions v ON v.id = version_id;
    UPDATE versions SET text = '';
    """,  # noqa: S608
    """
    ALTER TABLE base ADD COLUMN uid TEXT NOT NULL DEFAULT '';
    ALTER TABLE base ADD COLUMN store TEXT NOT NULL DEFAULT 'builtin';
    ALTER TABLE base ADD COLUMN removed_from INTEGER NOT NULL DEFAULT 0;
    UPDATE base SET uid = lower(hex(randomblob(8))), removed_from = version;
    CREATE TABLE commits (version INTEGER PRIMARY KEY, token TEXT NOT NULL, last_chunk INTEGER NOT NULL);
    INSERT INTO commits SELECT version, lower(hex(randomblob(8))), (SELECT ifnull(max(id), 0) FROM chunks) FROM base;
    CREATE TABLE removed (version INTEGER NOT NULL, chunk_id INTEGER NOT NULL);
    CREATE INDEX removed_by_version ON removed (version);
    CREATE TABLE cut (
        chunk_id INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE, words TEXT NOT NULL
    );
    INSERT INTO cut SELECT rowid, title || ' ' || body FROM words;
    DROP TABLE vocabulary;
    DROP TABLE words;
    ALTER TABLE cut RENAME TO words;
    """,
    # Whether a base holds question-answer pairs is asked before each answer.
    "CREATE INDEX blocks_of_pairs ON blocks (version_id) WHERE kind = 'qa';",
    simplify_words,
)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the newest version, each step in one transaction. Raises Conflict for a newer file."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > len(MIGRATIONS):
        raise Conflict("core.newer_home", path=path, found=found, known=len(MIGRATIONS))
    for number, step in enumerate(MIGRATIONS[found:], start=found + 1):
        if isinstance(step, str):
            connection.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {number}; COMMIT;")
        else:
            _run(connection, step, number)


def _run(connection: sqlite3.Connection, step: Step, number: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] < number:  # else another process was first
            step(connection)
            connection.execute(f"PRAGMA user_version = {number}")
    except BaseException:
        connection.rollback()
        raise
    connection.execute("COMMIT")
