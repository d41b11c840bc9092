"""The knowledge bases of this home: a folder each. What the server, the command line and the workbench call.

Nothing here is kept in memory but a cache of vectors; the files are the truth, and every method may be called from
any thread or task.
"""

import asyncio
import difflib
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np

from mofang.engine.base import ChatEngine, Embedder
from mofang.errors import Conflict, Invalid, NotFound
from mofang.knowledge.answer import Grounding, ground
from mofang.knowledge.base import AddReport, DocumentInfo, Hit, KnowledgeInfo
from mofang.knowledge.ingest import Ingest
from mofang.knowledge.retrieve import VectorCache, search
from mofang.knowledge.store import FILE, Store, Vector, check_embedder
from mofang.messages import Message, Progress
from mofang.text.sentences import sentences

CONTEXT = 400
"""Characters of text shown before and after a span, rounded to whole sentences."""

_NAME = re.compile(r"[^\W_][\w.\-]*")
_MAX_NAME_BYTES = 200


class Library:
    """`folder` holds the bases. `embedder` opens the embedding model of a name for the time of a block."""

    def __init__(self, folder: Path, embedder: Callable[[str], AbstractAsyncContextManager[Embedder]]) -> None:
        self.folder = folder
        self._embedder = embedder
        self._cache = VectorCache()

    # ---- bases ----

    def create(self, name: str, *, title: str = "", embedding_model: str) -> KnowledgeInfo:
        """A new base. Its embedding model is fixed from here on ("auto": by the first document added).

        Raises Invalid (knowledge.bad_name), Conflict (knowledge.knowledge_exists).
        """
        if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_NAME_BYTES:
            raise Invalid("knowledge.bad_name", name=name, param="name")
        return Store.create(self.folder / name, title=title, embedding_model=embedding_model).info()

    def list(self) -> list[KnowledgeInfo]:
        """All bases, by name."""
        return [Store(self.folder / name).info() for name in self._names()]

    def info(self, name: str) -> KnowledgeInfo:
        """Raises NotFound."""
        return self._store(name).info()

    def remove(self, name: str) -> None:
        """The base with everything in it. Raises NotFound."""
        store = self._store(name)
        # First out of sight in one step, then away: whoever is killed in between leaves no half of a base.
        aside = self.folder / f".{name}.{secrets.token_hex(4)}"
        store.folder.rename(aside)
        self._cache.forget(store.path)
        shutil.rmtree(aside, ignore_errors=True)

    # ---- documents ----

    def documents(self, name: str) -> list[DocumentInfo]:
        """By name. Raises NotFound."""
        return self._store(name).documents()

    def remove_document(self, name: str, id: str) -> None:
        """The document, never to answer again. Raises NotFound."""
        self._store(name).remove(id)

    def original(self, name: str, id: str) -> Path:
        """The file as it was added; not to be written to. Raises NotFound."""
        return self._store(name).original(id)

    def text(self, name: str, id: str, start: int = 0, end: int | None = None) -> dict[str, Any]:
        """A span of the canonical text and where it stands: text, start, end, page, headings, before, after, title.

        Raises NotFound, Invalid (knowledge.bad_span).
        """
        version, block = self._store(name).text(id, start, end)
        text, length = version["text"], version["n_chars"]
        stop = length if end is None else min(end, length)
        if not 0 <= start <= stop:
            raise Invalid("knowledge.bad_span", start=start, end=end, length=length)
        return {
            "text": text[start:stop],
            "start": start,
            "end": stop,
            "page": block.page if block else None,
            "headings": list(block.headings) if block else [],
            "before": _before(text, start),
            "after": _after(text, stop),
            "title": version["title"],
        }

    async def add(
        self,
        name: str,
        files: Sequence[tuple[str, Path]],
        *,
        progress: Callable[[Progress], None],
        embedding_model: str | None = None,
        splitter: str = "sentence",
        limit_bytes: int | None = None,
    ) -> AddReport:
        """Take in files as (relative name, path). A name that is there already gets a new version.

        A file that cannot be read fails in the report; the others go on. Raises NotFound, Conflict when
        `embedding_model` (optional) or the loaded embedder is not the one that the base was made with, and what
        loading it raises. `progress` is called in stages "read" (files) and "embed" (passages).
        """
        store = self._store(name)
        info = await asyncio.to_thread(store.info)
        if embedding_model not in (None, "auto", info.embedding_model) and info.embedding_model != "auto":
            raise Conflict(
                "knowledge.other_embedding_model", name=name, fixed=info.embedding_model, given=embedding_model
            )
        model = embedding_model if info.embedding_model == "auto" and embedding_model else info.embedding_model
        ingest = Ingest(store, lambda: self._embedder(model), progress, splitter=splitter, limit_bytes=limit_bytes)
        return await ingest.run(files)

    # ---- search and answers ----

    async def search(self, names: Sequence[str], query: str, *, k: int = 8) -> list[Hit]:
        """The k best passages of several bases, best first. Raises NotFound, Invalid (knowledge.empty_query)."""
        if not query.strip():
            raise Invalid("knowledge.empty_query", param="query")
        stores = [self._store(name) for name in dict.fromkeys(names)]
        infos = [await asyncio.to_thread(store.info) for store in stores]
        vectors: dict[str, Vector] = {}
        for info in infos:
            if info.n_chunks and info.embedding_model not in vectors:
                vectors[info.embedding_model] = await self._embed_query(info, query)
        return await asyncio.to_thread(search, stores, query, vectors, k=k, cache=self._cache)

    async def ground(
        self, names: Sequence[str], messages: Sequence[Message], *, engine: ChatEngine, max_prompt_tokens: int
    ) -> Grounding:
        """The conversation with numbered sources for its last question; see mofang.knowledge.answer."""
        return await ground(
            lambda query, k: self.search(names, query, k=k),
            names,
            messages,
            engine=engine,
            max_prompt_tokens=max_prompt_tokens,
        )

    async def _embed_query(self, info: KnowledgeInfo, query: str) -> Vector:
        async with self._embedder(info.embedding_model) as embedder:
            check_embedder(
                info.name, info.embedding_model, info.dimensions, embedder.info().model, embedder.dimensions
            )
            return np.asarray((await embedder.embed([query], "query"))[0], dtype=np.float32)

    # ---- names ----

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(path.parent.name for path in self.folder.glob(f"*/{FILE}") if not path.parent.name.startswith("."))

    def _store(self, name: str) -> Store:
        names = self._names()
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            raise NotFound(
                "knowledge.knowledge_not_found",
                name=name,
                known=", ".join(names) or "-",
                near=near[0] if near else "-",
            )
        return Store(self.folder / name)


def _before(text: str, start: int) -> str:
    """Whole sentences that end at `start`, about CONTEXT characters of them."""
    low = max(0, start - CONTEXT)
    if low == 0:
        return text[:start]
    spans = list(sentences(text, low, start))
    return text[spans[1][0] : start] if len(spans) > 1 else text[low:start]


def _after(text: str, end: int) -> str:
    high = min(len(text), end + CONTEXT)
    if high == len(text):
        return text[end:]
    spans = list(sentences(text, end, high))
    return text[end : spans[-2][1]] if len(spans) > 1 else text[end:high]
