"""PostgreSQL with the extension pgvector (0.8 or newer), at MOFANG_PGVECTOR_DSN.  [pgvector]

One table a base, mofang_<uid>, and its commit in mofang_bases: both change in one transaction. The HNSW index takes
vectors up to 2,000 dimensions; longer ones are compared one by one. Needs the right to create tables, and the extension
to be there or the right to create it.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from mofang.errors import Invalid
from mofang.knowledge.stores.base import Changes, Commit, Place, Row, Vector
from mofang.knowledge.stores.faults import asking, secrets_of
from mofang.settings import Settings

MAX_INDEXED = 2_000
"""Dimensions that pgvector's HNSW index takes."""
EXPANSION = 200
CONNECT_TIMEOUT_S = 5


class PgVector:
    """The table mofang_<uid>."""

    filters = True

    def __init__(self, place: Place, dsn: str) -> None:
        self._uid = place.uid
        self._table = f"mofang_{place.uid}"  # hex digits: it needs no quoting
        self._dsn = dsn
        self._connection: Any = None
        self._lock = threading.Lock()

    def held(self) -> Commit | None:
        with self._transaction() as run:
            row = run("SELECT commit FROM mofang_bases WHERE uid = %s", (self._uid,)).fetchone()
            return Commit.read(row[0]) if row else None

    def sync(self, changes: Changes) -> None:
        with self._transaction() as run:
            run("SELECT pg_advisory_xact_lock(hashtext(%s))", (self._table,))
            if changes.whole:
                run(f"DROP TABLE IF EXISTS {self._table}")
            elif changes.removed:
                run(f"DELETE FROM {self._table} WHERE id = ANY(%s)", (list(changes.removed),))  # noqa: S608
            for batch in changes.added:
                self._add(run, batch)
            run(
                "INSERT INTO mofang_bases VALUES (%s, %s) ON CONFLICT (uid) DO UPDATE SET commit = excluded.commit",
                (self._uid, str(changes.commit)),
            )

    def dense(self, vector: Vector, k: int, documents: Collection[str] | None) -> list[int]:
        where = "" if documents is None else "WHERE document = ANY(%s)"
        values = () if documents is None else (list(documents),)
        with self._transaction() as run:
            if not self._exists(run):
                return []
            # With a filter the scan goes on until k rows passed it, in the right order.
            run(f"SET LOCAL hnsw.ef_search = {min(1_000, max(EXPANSION, k))}")
            run("SET LOCAL hnsw.iterative_scan = strict_order")
            query = f"SELECT id FROM {self._table} {where} ORDER BY vector <#> %s::vector LIMIT %s"  # noqa: S608
            return [row[0] for row in run(query, (*values, _literal(vector), k))]

    def drop(self) -> None:
        with self._transaction() as run:
            run(f"DROP TABLE IF EXISTS {self._table}")
            run("DELETE FROM mofang_bases WHERE uid = %s", (self._uid,))

    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ---- inside ----

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """`execute` in one transaction; after a fault of the connection the next one opens another."""
        with self._lock, asking("pgvector", secrets=(*secrets_of(self._dsn), *_passwords(self._dsn))):
            connection = self._connected()
            with connection.transaction():
                yield connection.execute

    def _connected(self) -> Any:
        import psycopg

        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, connect_timeout=CONNECT_TIMEOUT_S)
            with self._connection.transaction():
                # Asked for first: creating it needs a right that those who use it may lack.
                if not self._connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
                    self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS mofang_bases (uid text PRIMARY KEY, commit text NOT NULL)"
                )
        return self._connection

    def _exists(self, run: Any) -> bool:
        return run("SELECT to_regclass(%s)", (self._table,)).fetchone()[0] is not None

    def _add(self, run: Any, batch: list[Row]) -> None:
        n = len(batch[0].vector)
        if not self._exists(run):
            run(
                f"CREATE TABLE {self._table} (id bigint PRIMARY KEY, document text NOT NULL, vector vector({n}) NOT NULL)"
            )
            run(f"CREATE INDEX ON {self._table} (document)")
            if n <= MAX_INDEXED:
                run(f"CREATE INDEX ON {self._table} USING hnsw (vector vector_ip_ops)")
        # The same chunk may come again after a crash.
        run(f"DELETE FROM {self._table} WHERE id = ANY(%s)", ([row.id for row in batch],))  # noqa: S608
        with self._connection.cursor().copy(f"COPY {self._table} (id, document, vector) FROM STDIN") as copy:
            for row in batch:
                copy.write_row((row.id, row.document_id, _literal(row.vector)))


def open_store(place: Place, settings: Settings) -> PgVector:
    """Raises Invalid without an address; connects on first use."""
    if settings.pgvector_dsn is None:
        raise Invalid(
            "knowledge.bad_store_url", setting="MOFANG_PGVECTOR_DSN", right="postgresql://user:password@host/db"
        )
    return PgVector(place, settings.pgvector_dsn.get_secret_value())


def _literal(vector: Vector) -> str:
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def _passwords(dsn: str) -> tuple[str, ...]:
    """Of a DSN in words: host=… password=…"""
    from psycopg.conninfo import conninfo_to_dict

    try:
        password = conninfo_to_dict(dsn).get("password")
    except Exception:  # no DSN at all: connecting says so
        return ()
    return (str(password),) if password else ()
