"""Files uploaded through /v1/files, and which of them stand in which knowledge base: what OpenAI's clients count with.

A file lies in <home>/files under its id; its row says whose it is. A file that is put into a base becomes a document
there (an attachment remembers under which name), which is then a document like any other. A turn of a conversation may
refer to a file (the store notes it); it leaves with the last conversation that does. Methods block.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from mofang.engine.base import CALLER
from mofang.errors import NotFound
from mofang.knowledge import LOADERS
from mofang.knowledge.loaders import explained, parse, suffix
from mofang.server.store import iso, new_id, now
from mofang.server.store.database import Database

PICTURES: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
}
"""How a picture begins that the engines read, and its media type; the name may say anything."""


@dataclass(frozen=True, slots=True)
class File:
    id: str
    owner: str
    name: str
    purpose: str
    bytes: int
    created_at: str
    """ISO 8601, UTC."""
    expires_at: str | None = None
    """When it leaves by itself; None: never. A conversation that refers to it keeps it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file says: text, or a picture."""

    name: str
    text: str = ""
    notes: tuple[str, ...] = ()
    """What a person should know about how it was read."""
    data: bytes = b""
    media_type: str = ""
    """Of a picture; "": it is text."""


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
        """Own up to what a killed process left: attachments that nobody works on, bytes without a row; and forget."""
        error = {"code": "server_error", "message": "interrupted"}
        with self._database.transaction() as db:
            db.execute(
                "UPDATE attachments SET status = 'failed', error = ? WHERE status = 'in_progress'", (json.dumps(error),)
            )
        self.forget()
        with self._database.reading() as db:
            known = {row["id"] for row in db.execute("SELECT id FROM files")}
        for path in self.folder.glob("*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Drop the files whose time is over, and those of conversations that are gone, where no other conversation and
        no base has them."""
        with self._database.transaction() as db:
            left = db.execute(
                "SELECT file FROM attached WHERE conversation NOT IN (SELECT id FROM conversations)"
                " AND file NOT IN (SELECT file FROM attachments)"
                " AND file NOT IN (SELECT file FROM attached WHERE conversation IN (SELECT id FROM conversations))"
            ).fetchall()
            over = db.execute("SELECT id AS file FROM files WHERE expires_at < ?", (now(),)).fetchall()
            gone = {row["file"] for row in (*left, *over)}
            for file_id in gone:
                db.execute("DELETE FROM files WHERE id = ?", (file_id,))
            db.execute("DELETE FROM attached WHERE conversation NOT IN (SELECT id FROM conversations)")
        for file_id in gone:
            (self.folder / file_id).unlink(missing_ok=True)

    def keep(self, name: str, path: Path, purpose: str, expires_in_s: int | None = None) -> File:
        """Move `path` in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        until = iso(datetime.now(UTC) + timedelta(seconds=expires_in_s)) if expires_in_s else None
        file = File(new_id("file"), CALLER.get(), name, purpose, path.stat().st_size, now(), until)
        path.replace(self.folder / file.id)
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO files (id, owner, name, purpose, bytes, created_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (file.id, file.owner, file.name, file.purpose, file.bytes, file.created_at, file.expires_at),
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

    def reading(self, file_id: str) -> Reading:
        """What it says, read once. Raises NotFound, also for another key's; what the loader of its format says."""
        file = self.get(file_id)
        path = self.folder / file.id
        if kind := _picture(file.name, path):
            return Reading(file.name, data=path.read_bytes(), media_type=kind)
        with self._database.reading() as db:
            row = db.execute("SELECT text, notes FROM readings WHERE file = ?", (file.id,)).fetchone()
        return Reading(file.name, row["text"], tuple(json.loads(row["notes"]))) if row else self._read(file, path)

    def _read(self, file: File, path: Path) -> Reading:
        try:
            document = parse(path, file.name)
        except Exception as error:  # whatever a format's library raises
            raise explained(file.name, path, error) from error
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO readings SELECT id, ?, ? FROM files WHERE id = ?",
                (document.text, json.dumps(list(document.notes), ensure_ascii=False), file.id),
            )
        return Reading(file.name, document.text, tuple(document.notes))

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


def _picture(name: str, path: Path) -> str:
    """Its media type, where the file is a picture and not one that has a loader."""
    if suffix(name) in LOADERS.names():
        return ""
    with path.open("rb") as opened:
        head = opened.read(8)
    return next((kind for begins, kind in PICTURES.items() if head.startswith(begins)), "")


def _file(row: sqlite3.Row) -> File:
    return File(*(row[name] for name in ("id", "owner", "name", "purpose", "bytes", "created_at", "expires_at")))


def _attachment(row: sqlite3.Row) -> Attachment:
    error: dict[str, Any] | None = json.loads(row["error"]) if row["error"] else None
    return Attachment(row["base"], row["file"], row["document"], row["status"], error, row["created_at"])
