"""Whose a knowledge base is and who may read it; and `Guarded`, the library as the one who asks may see it.

Every route, dialect, answer and job reaches documents through `Guarded`, so there is one place to get it right. To a
key that may not read a base it does not exist: the error, its list of known names and its nearest name are made from
what that key can see. The machine's own user (CALLER "") sees and may do everything.

Rights are rows of the server's file, where the keys are, and not of the base's: a base that is copied to another
machine must not bring rights of keys that mean nothing, or someone else, there. A base's making takes its name: all
rights that the name had are dropped and the maker's written before the base is there, and its rights go after it went,
so a crash in between leaves rights to nothing, never a base to a stranger.
"""

import builtins
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mofang.engine.base import CALLER, ChatEngine, Vectors
from mofang.errors import Conflict, Forbidden
from mofang.knowledge.base import AddReport, Chunk, DocumentInfo, Hit, KnowledgeInfo, Span
from mofang.knowledge.ingest import Ingester
from mofang.knowledge.library import not_found
from mofang.knowledge.within import Filter
from mofang.messages import Message
from mofang.server.rooms import Grounding, Library, Report
from mofang.server.store.database import Database


def may_see(owner: str) -> bool:
    """Whether the one who asks is `owner` (the id of a key) or the machine's own user."""
    return CALLER.get() in ("", owner)


class Access:
    """Owners and readers of all bases, in memory too: every request asks. Methods that write block."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owners: dict[str, str] = {}
        self._readers: dict[str, frozenset[str]] = {}
        self._read()

    def _read(self) -> None:
        with self._database.reading() as db:
            owners = {row["name"]: row["owner"] for row in db.execute("SELECT * FROM bases")}
            readers: dict[str, set[str]] = {}
            for row in db.execute("SELECT * FROM readers"):
                readers.setdefault(row["base"], set()).add(row["key"])
        self._owners, self._readers = owners, {base: frozenset(keys) for base, keys in readers.items()}

    def owner(self, base: str) -> str:
        """The key that owns it; "": the machine's own user."""
        return self._owners.get(base, "")

    def readers(self, base: str) -> frozenset[str]:
        """The keys that it names, beside its owner."""
        return self._readers.get(base, frozenset())

    def may_write(self, base: str) -> bool:
        return may_see(self.owner(base))

    def may_read(self, base: str) -> bool:
        return self.may_write(base) or CALLER.get() in self.readers(base)

    def take(self, base: str) -> None:
        """The base is the asker's and nobody else's from now on."""
        with self._database.transaction() as db:
            _drop(db, base)
            if CALLER.get():
                db.execute("INSERT INTO bases VALUES (?, ?)", (base, CALLER.get()))
        self._read()

    def forget(self, base: str) -> None:
        with self._database.transaction() as db:
            _drop(db, base)
        self._read()

    def share(self, base: str, key: str) -> None:
        with self._database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO readers VALUES (?, ?)", (base, key))
        self._read()

    def unshare(self, base: str, key: str) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM readers WHERE base = ? AND key = ?", (base, key))
        self._read()


def _drop(db: sqlite3.Connection, base: str) -> None:
    db.execute("DELETE FROM bases WHERE name = ?", (base,))
    db.execute("DELETE FROM readers WHERE base = ?", (base,))
    db.execute("DELETE FROM attachments WHERE base = ?", (base,))


class Guarded:
    """`Library` for whoever asks. It hands nothing through by itself: a new method of the library is closed here
    until someone writes down what it takes."""

    def __init__(self, library: Library, access: Access) -> None:
        self._library = library
        self.access = access
        self._making = threading.Lock()

    # ---- what the asker can see ----

    def names(self) -> builtins.list[str]:
        return [name for name in self._library.names() if self.access.may_read(name)]

    def check(self, name: str, *, write: bool = False) -> None:
        """Raises NotFound for a base that the asker cannot see, Forbidden for one that it can see but not change."""
        visible = self.names()
        if name not in visible:
            raise not_found(name, visible)
        if write and not self.access.may_write(name):
            raise Forbidden("knowledge.read_only", name=name)

    # ---- bases ----

    def create(self, name: str, *, title: str = "", embedding_model: str, store: str = "builtin") -> KnowledgeInfo:
        """A new base of the asker's. Raises Conflict also for a name that is taken by a base it cannot see."""
        with self._making:
            if name in self._library.names():
                raise Conflict("knowledge.knowledge_exists", name=name)
            self.access.take(name)
            try:
                return self._library.create(name, title=title, embedding_model=embedding_model, store=store)
            except BaseException:
                self.access.forget(name)
                raise

    def list(self) -> Sequence[KnowledgeInfo]:
        return [self._library.info(name) for name in self.names()]

    def info(self, name: str) -> KnowledgeInfo:
        self.check(name)
        return self._library.info(name)

    def retitle(self, name: str, title: str) -> None:
        self.check(name, write=True)
        self._library.retitle(name, title)

    def remove(self, name: str) -> None:
        with self._making:
            self.check(name, write=True)
            self._library.remove(name)
            self.access.forget(name)

    # ---- documents ----

    def documents(self, name: str) -> Sequence[DocumentInfo]:
        self.check(name)
        return self._library.documents(name)

    def remove_document(self, name: str, document_id: str, /) -> None:
        self.check(name, write=True)
        self._library.remove_document(name, document_id)

    def text(self, name: str, document_id: str, /, start: int = 0, end: int | None = None) -> dict[str, Any]:
        self.check(name)
        return self._library.text(name, document_id, start=start, end=end)

    def file(self, name: str, document_id: str, /) -> Path:
        self.check(name)
        return self._library.file(name, document_id)

    def chunks(self, name: str, document_id: str, /, start: int = 0, n: int = 100) -> Sequence[Chunk]:
        self.check(name)
        return self._library.chunks(name, document_id, start=start, n=n)

    async def picture(
        self, name: str, document_id: str, page: int, /, *, width: int, within: Span | None = None
    ) -> bytes:
        self.check(name)
        return await self._library.picture(name, document_id, page, width=width, within=within)

    def passages(self, name: str, *, n: int, seed: int = 0) -> Sequence[Hit]:
        self.check(name)
        return self._library.passages(name, n=n, seed=seed)

    def questions(self, name: str) -> Sequence[dict[str, Any]]:
        self.check(name)
        return self._library.questions(name)

    def keep_question(self, name: str, passage: Hit, question: str, answer: str) -> dict[str, Any]:
        self.check(name, write=True)
        return self._library.keep_question(name, passage, question, answer)

    def change_question(self, name: str, question_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        self.check(name, write=True)
        return self._library.change_question(name, question_id, changes)

    def forget_questions(self, name: str) -> None:
        self.check(name, write=True)
        self._library.forget_questions(name)

    async def add(
        self,
        name: str,
        files: Sequence[tuple[str, Path]],
        *,
        progress: Report,
        ingester: Ingester | None = None,
    ) -> AddReport:
        self.check(name, write=True)
        return await self._library.add(name, files, progress=progress, ingester=ingester)

    async def rebuild(self, name: str, *, progress: Report) -> int:
        self.check(name, write=True)
        return await self._library.rebuild(name, progress=progress)

    def close(self) -> None:
        self._library.close()

    # ---- search and answers ----

    async def search(
        self,
        names: Sequence[str],
        query: str,
        *,
        k: int | None = 8,
        within: Filter | None = None,
        notices: builtins.list[str] | None = None,
        rerank: str | None = None,
    ) -> Sequence[Hit]:
        for name in names:
            self.check(name)
        return await self._library.search(names, query, k=k, within=within, notices=notices, rerank=rerank)

    async def stored(self, names: Sequence[str], messages: Sequence[Message]) -> Grounding | None:
        for name in names:
            self.check(name)
        return await self._library.stored(names, messages)

    async def ground(
        self, names: Sequence[str], messages: Sequence[Message], *, engine: ChatEngine, max_prompt_tokens: int
    ) -> Grounding:
        for name in names:
            self.check(name)
        return await self._library.ground(names, messages, engine=engine, max_prompt_tokens=max_prompt_tokens)

    async def vectors(self, name: str, texts: Sequence[str]) -> Vectors:
        self.check(name)
        return await self._library.vectors(name, texts)
