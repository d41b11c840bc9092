"""The index stores of the bases in use: opened on request, brought up to date, and replaced when they fail.

The words are searched in memory by the built-in store, unless the base's own store offers that too. When a store is
silent, too far behind or lacks its library, the same search is done exactly by the built-in store, and `notices` says so.
"""

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from mofang.errors import MofangError
from mofang.knowledge import STORES
from mofang.knowledge.store import Store, Vector, changes, commit, is_commit, place
from mofang.knowledge.stores.base import Changes, Commit, IndexStore, Keywords, KeywordStore, Row
from mofang.knowledge.stores.builtin import Builtin
from mofang.settings import Settings
from mofang.strings import say

MAX_CATCH_UP = 2_000
"""Chunks that a search itself hands to a store that is behind; more are left to `mofang kb rebuild`."""
MAX_WAIT_S = 0.5
"""That a search waits while a store is being filled."""
BUILTIN, WORDS = "builtin", "words"

Report = Callable[[int, int], None]
_Key = tuple[Path, str, str]
"""A base's path and uid (another base may come to stand there), and the kind of store."""
_log = logging.getLogger(__name__)


class Behind(Exception):
    """Inside: the store lacks so many chunks that a search does not wait for them."""


class Legs:
    """Stores by base; those of the built-in kind that were used longest ago leave memory beyond `max_bytes`."""

    def __init__(self, settings: Settings, max_bytes: int = 2_000_000_000) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._opened: dict[_Key, IndexStore] = {}
        self._locks: dict[Path, threading.Lock] = {}
        self._fills: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()

    # ---- search ----

    def keywords(
        self,
        store: Store,
        connection: sqlite3.Connection,
        words: Sequence[str],
        k: int,
        documents: Collection[str] | None,
        notices: list[str],
    ) -> Keywords:
        """The keyword leg of one base, as of the connection's transaction or a little later."""
        kind = _kind(connection)
        if kind != BUILTIN:
            try:
                own = self._current(store, connection, kind)
                if isinstance(own, KeywordStore):
                    return own.keywords(words, k, documents)
            except (MofangError, Behind) as error:
                self._say(store, kind, error, notices)
        return self._builtin(store, connection, vectors=kind == BUILTIN).keywords(words, k, documents)

    def dense(
        self,
        store: Store,
        connection: sqlite3.Connection,
        vector: Vector,
        k: int,
        documents: Collection[str] | None,
        notices: list[str],
    ) -> list[int]:
        """The vector leg of one base."""
        kind = _kind(connection)
        if kind != BUILTIN:
            try:
                own = self._current(store, connection, kind)
                if documents is None or own.filters:
                    return own.dense(vector, k, documents)
                notices.append(say("knowledge.store_no_filter", name=store.folder.name, store=kind))
            except (MofangError, Behind) as error:
                self._say(store, kind, error, notices)
        return self._builtin(store, connection, vectors=True).dense(vector, k, documents)

    def cosines(
        self, store: Store, connection: sqlite3.Connection, ids: Sequence[int], vector: Vector
    ) -> dict[int, float]:
        """The exact cosine of each of these chunks that is there, in the connection's transaction."""
        query = "SELECT id FROM chunks WHERE id IN (SELECT value FROM json_each(?))"
        there = [row[0] for row in connection.execute(query, (json.dumps(list(ids)),))]
        found: dict[int, float] = {}
        if _kind(connection) == BUILTIN:
            found = self._builtin(store, connection, vectors=True).cosines(there, vector)
        missing = json.dumps([one for one in there if one not in found])
        query = """
            SELECT c.id, v.vector FROM chunks c JOIN vectors v ON v.digest = c.digest
            WHERE c.id IN (SELECT value FROM json_each(?))
        """
        for row in connection.execute(query, (missing,)):
            found[row[0]] = float(np.frombuffer(row[1], "<f4") @ vector)
        return found

    # ---- keeping up ----

    def settle(self, store: Store, report: Report, *, files: bool = True) -> None:
        """After documents came or went: hand the changes to the base's own store, write the built-in one's files.

        files: False leaves the latter for another time.
        Raises what the store raises; the documents are safe in SQLite then, and searches say that the store is behind.
        """
        with self._changing(store), ExitStack() as view:
            connection = view.enter_context(store.read())
            kind = _kind(connection)
            if kind != BUILTIN:
                self._sync(self._open(store, connection, kind), connection, report)
                return
            if not files:
                return
            dimensions = place(store, connection).dimensions
            n = connection.execute("SELECT count(*) FROM chunks").fetchone()[0]
            builtin = self._builtin(store, connection, vectors=True)
            builtin.sweep()
            if builtin.is_settled(n):
                return
            builtin.settle(changes(connection, None), dimensions, report, all_read=view.close)
        self._let_go(store)  # the next search opens what was written

    def rebuild(self, store: Store, report: Report) -> int:
        """Fill the base's store anew from SQLite; returns the number of its chunks. Raises what the store raises.

        Searches go on meanwhile: of the built-in store in the old files, else exactly, and they say so.
        """
        with self._changing(store), ExitStack() as view:
            connection = view.enter_context(store.read())
            kind = _kind(connection)
            everything = changes(connection, None)
            if kind != BUILTIN:
                own = self._open(store, connection, kind)
                own.drop()
                self._sync(own, connection, report)
            else:
                dimensions = place(store, connection).dimensions
                Builtin(store.folder).settle(everything, dimensions, report, anew=True, all_read=view.close)
        self._let_go(store)
        return everything.n_added

    def remove(self, store: Store) -> None:
        """The base is about to go: its own store forgets it, where it answers."""
        with suppress(MofangError), store.read() as connection:
            kind = _kind(connection)
            where = place(store, connection)
            if kind != BUILTIN:
                try:
                    self._open(store, connection, kind).drop()
                except MofangError as error:
                    _log.warning("the %s store still holds mofang_%s: %s", kind, where.uid, error.message())
        self._let_go(store)

    def close(self) -> None:
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        for each in opened:
            each.close()

    # ---- inside ----

    def _builtin(self, store: Store, connection: sqlite3.Connection, *, vectors: bool) -> Builtin:
        key = (store.path, place(store, connection).uid, BUILTIN if vectors else WORDS)
        with self._lock_of(store):
            with self._lock:
                found = self._opened.pop(key, None)
            if not isinstance(found, Builtin):
                found = Builtin(store.folder, vectors=vectors, is_ours=lambda one: is_commit(connection, one))
            held = found.held()
            if _behind(store, connection, held):
                found.sync(changes(connection, held, vectors=vectors))
            with self._lock:
                self._opened[key] = found  # at the end: used last
                self._make_room(key)
        return found

    def _make_room(self, kept: _Key) -> None:
        sizes = {key: one.memory_bytes for key, one in self._opened.items() if isinstance(one, Builtin)}
        for key in list(sizes):
            if sum(sizes.values()) <= self._max_bytes or key == kept:
                return
            del self._opened[key], sizes[key]

    def _current(self, store: Store, connection: sqlite3.Connection, kind: str) -> IndexStore:
        own = self._open(store, connection, kind)
        with self._changing(store, wait_s=MAX_WAIT_S):
            held = own.held()
            if _behind(store, connection, held):
                new = changes(connection, held)
                if new.size > MAX_CATCH_UP:
                    raise Behind
                own.sync(new)
        return own

    @contextmanager
    def _changing(self, store: Store, *, wait_s: float = -1) -> Iterator[None]:
        """One at a time fills a base's store. Raises Behind when another one does so for longer than `wait_s`."""
        with self._lock:
            lock = self._fills.setdefault(store.path, threading.Lock())
        if not lock.acquire(timeout=wait_s):
            raise Behind
        try:
            yield
        finally:
            lock.release()

    def _open(self, store: Store, connection: sqlite3.Connection, kind: str) -> IndexStore:
        where = place(store, connection)
        key = (store.path, where.uid, kind)
        with self._lock:
            found = self._opened.get(key)
        if found is None:
            found = STORES.get(kind)(where, self._settings)
            with self._lock:
                self._opened[key] = found
        return found

    def _sync(self, own: IndexStore, connection: sqlite3.Connection, report: Report) -> None:
        new = changes(connection, own.held())
        done = 0

        def counted() -> Iterator[list[Row]]:
            nonlocal done
            for batch in new.added:
                yield batch
                done += len(batch)
                report(done, new.n_added)

        own.sync(Changes(new.commit, new.whole, new.removed, new.n_added, counted()))

    def _let_go(self, store: Store) -> None:
        with self._lock:
            opened = [self._opened.pop(key) for key in list(self._opened) if key[0] == store.path]
        for each in opened:
            each.close()

    def _lock_of(self, store: Store) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(store.path, threading.Lock())

    def _say(self, store: Store, kind: str, error: Exception, notices: list[str]) -> None:
        why = error.message() if isinstance(error, MofangError) else say("knowledge.store_behind")
        notice = say("knowledge.store_fallback", name=store.folder.name, store=kind, why=why)
        if notice not in notices:
            notices.append(notice)
            _log.warning("%s", notice)


def _kind(connection: sqlite3.Connection) -> str:
    kind: str = connection.execute("SELECT store FROM base").fetchone()[0]
    return kind


def _behind(store: Store, connection: sqlite3.Connection, held: Commit | None) -> bool:
    """Whether a copy has to change before this transaction may search it. One that is newer will do: what it lacks is
    gone, and what it has besides is not found in the transaction."""
    now = commit(connection)
    if held is None or held.version < now.version:
        return True
    if held.version == now.version:
        return held != now
    with store.read() as fresh:  # newer than this transaction, or of a base that was since restored from a backup
        return not is_commit(fresh, held)
