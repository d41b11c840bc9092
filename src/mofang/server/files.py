"""Files uploaded through /v1/files, and which of them stand in which knowledge base: what OpenAI's clients count with.

A file lies in <home>/files under its id; its row says whose it is. A file that is put into a base becomes a document
there (an attachment remembers under which name), which is then a document like any other. Methods block.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofang.engine.base import CALLER
from mofang.errors import NotFound
from mofang.server.store import new_id, now
from mofang.server.store.database import Database


@dataclass(frozen=True, slots=True)
class File:
    id: str
    owner: str
    name: str
    purpose: str
    bytes: int
    created_at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True, slots=True)
class Attachment:
    base: str
    file: str
    """Its id."""
    document: str
    """Its document's name in the base."""
    status: str
    """in_progress, completed, failed."""
    error: dict[str, str] | None
    created_at: str


class Files:
    """A key sees its own files, the machine's own user all."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self._database = database

    def start(self) -> None:
        """Own up to what a killed process left: attachments that nobody works on, bytes without a row."""
        error = {"code": "server_error", "message": "interrupted"}
        with self._database.transaction() as db:
            db.execute(
                "UPDATE attachments SET status = 'failed', error = ? WHERE status = 'in_progress'", (json.dumps(error),)
            )
            known = {row["id"] for row in db.execute("SELECT id FROM files")}
        for path in self.folder.glob("*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def keep(self, name: str, path: Path, purpose: str) -> File:
        """Move `path` in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = File(new_id("file"), CALLER.get(), name, purpose, path.stat().st_size, now())
        path.replace(self.folder / file.id)
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO files (id, owner, name, purpose, bytes, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                (file.id, file.owner, file.name, file.purpose, file.bytes, file.created_at),
            )
        return file

    def all(self) -> list[File]:
        """Oldest first."""
        with self._database.reading() as db:
            rows = db.execute("SELECT * FROM files WHERE ? IN ('', owner) ORDER BY number", (CALLER.get(),)).fetchall()
        return [_file(row) for row in rows]

    def get(self, file_id: str) -> File:
        """Raises NotFound, also for another key's."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT * FROM files WHERE id = ? AND ? IN ('', owner)", (file_id, CALLER.get())
            ).fetchone()
        if row is None:
            raise NotFound("server.file_not_found", id=file_id)
        return _file(row)

    def path(self, file_id: str) -> Path:
        return self.folder / self.get(file_id).id

    def remove(self, file_id: str) -> None:
        """Its documents are the caller's to remove."""
        path = self.path(file_id)
        with self._database.transaction() as db:
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
        path.unlink(missing_ok=True)

    # ---- in bases ----

    def attach(self, base: str, file_id: str, document: str) -> Attachment:
        """Note that a file is on its way into a base."""
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO attachments VALUES (?, ?, ?, 'in_progress', NULL, ?)",
                (base, file_id, document, now()),
            )
        return self.attachments(base)[file_id]

    def settle(self, base: str, file_id: str, error: Mapping[str, str] | None = None) -> None:
        """How it went."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE attachments SET status = ?, error = ? WHERE base = ? AND file = ?",
                ("failed" if error else "completed", json.dumps(error) if error else None, base, file_id),
            )

    def detach(self, base: str, file_id: str) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM attachments WHERE base = ? AND file = ?", (base, file_id))

    def attachments(self, base: str) -> dict[str, Attachment]:
        """By file id. Whoever asks has been let into the base."""
        return {one.file: one for one in self._rows("base = ?", base)}

    def bases_of(self, file_id: str) -> dict[str, Attachment]:
        """By base."""
        return {one.base: one for one in self._rows("file = ?", file_id)}

    def _rows(self, where: str, value: str) -> list[Attachment]:
        with self._database.reading() as db:
            query = f"SELECT * FROM attachments WHERE {where} ORDER BY created_at, file"  # noqa: S608 (our own words)
            rows = db.execute(query, (value,)).fetchall()
        return [_attachment(row) for row in rows]


def _file(row: sqlite3.Row) -> File:
    return File(*(row[name] for name in ("id", "owner", "name", "purpose", "bytes", "created_at")))


def _attachment(row: sqlite3.Row) -> Attachment:
    error: dict[str, Any] | None = json.loads(row["error"]) if row["error"] else None
    return Attachment(row["base"], row["file"], row["document"], row["status"], error, row["created_at"])
