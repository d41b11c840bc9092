"""Keys that the owner gives out, beside the one MOFANG_API_KEY: who may ask which models, how much, and until when.

They are rows of the server's SQLite file; all are held in memory too, since every request asks for one. What is stored
is SHA-256 of the key. A slow hash (scrypt, argon2) protects what people think up; a key is 256 random bits, which
nobody tries out however fast the hash is, and each request would pay for the slowness.
"""

import hashlib
import hmac
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mofang.errors import Denied, NotFound
from mofang.server.store import iso, new_id
from mofang.server.store.database import Database

PREFIX = "mf-"
"""How a key of ours begins, so that scanners and people know one when they see it."""
WRITE_USE_EVERY_S = 60.0
"""`last_used_at` is written this often at most: a write a request would cost more than the request's own check."""

Clock = Callable[[], datetime]


def utc() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and answer together."""
    concurrent: int | None = None
    """Requests that are answered at the same time."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it may be shown: everything but the key. Times are ISO 8601 in UTC."""

    id: str
    name: str
    created_at: str
    last_used_at: str | None = None
    expires_at: str | None = None
    revoked_at: str | None = None
    limits: Limits = Limits()
    models: tuple[str, ...] = ()
    """Exact names or globs (`qwen*`); empty: every model."""

    def permits(self, model: str) -> bool:
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    def state(self, moment: str) -> str:
        """active, expired or revoked at `moment`."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= moment else "active"


def digest(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """All keys of one server. Methods that write block; `find` and `touch` do not."""

    def __init__(self, database: Database, clock: Clock = utc) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._written_at = time.monotonic()
        self._used: dict[str, str] = {}
        """Uses that are not written yet: id → time."""
        self._by_hash: dict[str, Key] = {}
        self._read()

    def _read(self) -> None:
        with self._database.reading() as db:
            rows = db.execute("SELECT * FROM keys ORDER BY number").fetchall()
        self._by_hash = {row["hash"]: _key(row) for row in rows}

    def now(self) -> str:
        return iso(self._clock())

    def list(self) -> Sequence[Key]:
        """Every key, the revoked ones too, oldest first."""
        keys = [replace(key, last_used_at=self._used.get(key.id, key.last_used_at)) for key in self._by_hash.values()]
        return sorted(keys, key=lambda key: key.created_at)

    def get(self, key_id: str) -> Key:
        """By its id, the ended ones too. Raises NotFound."""
        for key in self._by_hash.values():
            if key.id == key_id:
                return key
        raise NotFound("keys.key_not_found", id=key_id)

    def create(
        self, name: str, *, limits: Limits, models: Sequence[str] = (), expires_in_s: float | None = None
    ) -> tuple[Key, str]:
        """A new key and the secret itself, which nobody can be told again."""
        secret = PREFIX + secrets.token_urlsafe(32)
        moment = self._clock()
        expires = iso(moment + timedelta(seconds=expires_in_s)) if expires_in_s is not None else None
        key = Key(new_id("key"), name, iso(moment), expires_at=expires, limits=limits, models=tuple(models))
        row = {
            "id": key.id,
            "name": name,
            "hash": digest(secret),
            "created_at": key.created_at,
            "expires_at": expires,
            "models": json.dumps(key.models, ensure_ascii=False),
            **asdict(limits),
        }
        names = ", ".join(row)
        holes = ", ".join(f":{column}" for column in row)
        with self._database.transaction() as db:
            db.execute(f"INSERT INTO keys ({names}) VALUES ({holes})", row)  # noqa: S608 (names are ours)
        self._read()
        return key, secret

    def revoke(self, key_id: str) -> Key:
        """End a key at once; revoking it again changes nothing. Raises NotFound."""
        with self._database.transaction() as db:
            db.execute("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (self.now(), key_id))
        self._read()
        return self.get(key_id)

    def find(self, given: str) -> Key:
        """The key that was given. Raises Denied: unknown, revoked or expired.

        Every digest is compared, each in constant time: how long it takes says nothing of how near a guess came.
        """
        asked = digest(given)
        found = [key for known, key in self._by_hash.items() if hmac.compare_digest(known, asked)]
        if not found:
            raise Denied("server.wrong_key")
        key = found[0]
        state = key.state(self.now())
        if state != "active":
            raise Denied(f"keys.key_{state}", id=key.id, at=key.revoked_at or key.expires_at)
        return key

    def touch(self, key: Key) -> bool:
        """Note a use. Whether it is time for `flush`, in a worker thread."""
        self._used[key.id] = self.now()
        return time.monotonic() - self._written_at >= WRITE_USE_EVERY_S

    def flush(self) -> None:
        """Write the uses that were noted."""
        with self._lock:
            self._written_at = time.monotonic()
            used, self._used = self._used, {}
            if used:
                with self._database.transaction() as db:
                    db.executemany(
                        "UPDATE keys SET last_used_at = ? WHERE id = ?", [(at, id) for id, at in used.items()]
                    )
                self._read()


def any_active(store: Path) -> bool:
    """Whether the server's file holds a key that opens something; asked before the server owns the file."""
    if not store.is_file():
        return False
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
        try:
            found = db.execute(
                "SELECT 1 FROM keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)", (iso(utc()),)
            ).fetchone()
        except sqlite3.DatabaseError:  # an older layout has none; a broken file is told of when the server opens it
            return False
    return found is not None


def _key(row: sqlite3.Row) -> Key:
    return Key(
        row["id"],
        row["name"],
        row["created_at"],
        row["last_used_at"],
        row["expires_at"],
        row["revoked_at"],
        Limits(row["requests_per_minute"], row["tokens_per_minute"], row["concurrent"]),
        tuple(json.loads(row["models"])),
    )


def shape(key: Key, moment: str) -> dict[str, Any]:
    """The API's JSON of a key."""
    fields = asdict(key)
    limits = fields.pop("limits")
    return {"object": "key", **fields, **limits, "models": list(key.models), "state": key.state(moment)}
