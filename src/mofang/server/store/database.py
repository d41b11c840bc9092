"""One SQLite file, opened safely: write-ahead log, foreign keys, numbered migrations, one writer at a time.

Knows nothing of conversations. The layout's number is SQLite's own `user_version`; a migration and its number are one
transaction, so a crash leaves the old layout whole.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mofang.errors import Conflict, Unreadable

MIGRATIONS = Path(__file__).parent / "migrations"


def migrations() -> list[Path]:
    """The SQL files in order; the n-th brings layout n-1 to n."""
    return sorted(MIGRATIONS.glob("[0-9]*.sql"))


class Database:
    """A connection that threads share, one transaction at a time. Blocking: call it from a worker thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10.0)
        self._connection.row_factory = sqlite3.Row
        try:
            self._prepare(migrations())
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise Unreadable("server.store_unreadable", path=path, why=error) from error
        except Conflict:
            self._connection.close()
            raise

    def _prepare(self, steps: Sequence[Path]) -> None:
        # NORMAL in WAL mode survives a killed process; only a power cut may cost the last transactions, never the file.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        found = self.version
        if found > len(steps):
            raise Conflict("core.newer_home", path=self.path, found=found, known=len(steps))
        for number, step in enumerate(steps[found:], start=found + 1):
            script = f"BEGIN IMMEDIATE;\n{step.read_text(encoding='utf-8')}\nPRAGMA user_version={number};\nCOMMIT;"
            try:
                self._connection.executescript(script)
            except sqlite3.Error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @property
    def version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it; other threads wait."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()
