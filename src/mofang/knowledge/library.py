"""All knowledge bases of a home: the door of this room. One folder a base under `folder`.

Methods that are not async block; whoever serves many calls them from a worker thread.
"""

import asyncio
import builtins
import difflib
import logging
import random
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mofang.engine.base import ChatEngine, Embedder, Engine, Vectors
from mofang.errors import Invalid, MofangError, NotFound
from mofang.knowledge import STORES, answer, pages, retrieve, stored
from mofang.knowledge.base import AddReport, Block, Chunk, DocumentInfo, Hit, KnowledgeInfo, ParsedDocument, Span
from mofang.knowledge.centre import Centres
from mofang.knowledge.drafted import Drafted
from mofang.knowledge.evidence import Usual, has_words, is_first
from mofang.knowledge.ingest import Cutting, Here, Ingest, Ingester
from mofang.knowledge.legs import Legs, Report
from mofang.knowledge.rerank import RERANKED, OpenReranker, reranked
from mofang.knowledge.retrieve import Asked
from mofang.knowledge.rewrite import query_of
from mofang.knowledge.split.sentence import split
from mofang.knowledge.store import FILE, Store, check_embedder
from mofang.knowledge.within import Filter
from mofang.messages import Message, Progress
from mofang.settings import Settings
from mofang.strings import say
from mofang.text import alike
from mofang.text.fold import simplified
from mofang.text.languages import language_of

CONTEXT_CHARACTERS = 120
"""Shown before and after a span, so that a person sees where it stands."""
CANDIDATES = 12
"""Passages that an answer chooses its sources from, before neighbours are joined."""
_NAME = re.compile(r"\w[\w.\-]{0,127}")
_MAX_NAME_BYTES = 200
"""Of a folder name; the file system's own limit is 255."""

_log = logging.getLogger(__name__)

OpenEmbedder = Callable[[str], AbstractAsyncContextManager[Engine]]


class Library:
    """`embedder(model name)` opens the embedder of that name for the length of a block."""

    def __init__(
        self,
        folder: Path,
        embedder: OpenEmbedder,
        *,
        splitter: str = "sentence",
        limit_bytes: int | None = None,
        settings: Settings | None = None,
        reranker: OpenReranker | None = None,
    ) -> None:
        """settings: how the stores of bases that name another than the built-in one are reached, and which reranker
        searches use. reranker: opens one by its name; None: there are none here."""
        self.folder = folder
        self._embedder = embedder
        self._cutting = Cutting(splitter, limit_bytes)
        settings = settings or Settings()
        self._legs = Legs(settings)
        self._reranker = settings.reranker_model
        self._open_reranker = reranker
        self._centres = Centres()
        self._usual = Usual(self._legs)
        self._drawing = asyncio.Semaphore(pages.AT_ONCE)
        self._drafting = threading.Lock()

    def close(self) -> None:
        """Let go of connections to stores elsewhere."""
        self._legs.close()

    # ---- bases ----

    def create(self, name: str, *, title: str = "", embedding_model: str, store: str = "builtin") -> KnowledgeInfo:
        """A new, empty base. Its embedder and its store are fixed.

        Raises Invalid for a bad name, UnknownName or MissingExtra for the store, Conflict when the base exists."""
        if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_NAME_BYTES:
            raise Invalid("knowledge.bad_name", param="name", name=name)
        STORES.get(store)
        self.folder.mkdir(parents=True, exist_ok=True)
        return Store.create(self.folder / name, title=title, embedding_model=embedding_model, store=store).info()

    def list(self) -> builtins.list[KnowledgeInfo]:
        """Every base, by name."""
        return [Store(self.folder / name).info() for name in self.names()]

    def names(self) -> builtins.list[str]:
        """Of every base, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name for path in self.folder.iterdir() if not path.name.startswith(".") and (path / FILE).is_file()
        )

    def info(self, name: str) -> KnowledgeInfo:
        return self._store(name).info()

    def retitle(self, name: str, title: str) -> None:
        """Another title for people; the name stays."""
        self._store(name).retitle(title)

    def remove(self, name: str) -> None:
        """The base with all its documents: gone at once, also when deleting takes long or is interrupted."""
        store = self._store(name)
        self._legs.remove(store)
        trash = self.folder / f".removed-{uuid.uuid4().hex}"
        store.folder.rename(trash)
        shutil.rmtree(trash)

    # ---- documents ----

    def documents(self, name: str) -> builtins.list[DocumentInfo]:
        return self._store(name).documents()

    def remove_document(self, name: str, document_id: str, /) -> None:
        """It answers nothing any more once this returns. Raises NotFound."""
        store = self._store(name)
        store.remove(document_id)
        self._settle(store, lambda _: None, files=False)

    def file(self, name: str, document_id: str, /) -> Path:
        """The document as it was added."""
        return self._store(name).original(document_id)

    def text(self, name: str, document_id: str, /, start: int = 0, end: int | None = None) -> dict[str, Any]:
        """A span of the canonical text with what stands around it. Raises Invalid for a span that is not there."""
        found = self._store(name).text(document_id, start, end, around=CONTEXT_CHARACTERS)
        block = found.block
        return {
            "title": found.name,
            "text": found.text,
            "start": found.start,
            "end": found.end,
            "page": block.page if block else None,
            "box": block.box if block else None,
            "place": asdict(block.place) if block and block.place else None,
            "headings": block.headings if block else (),
            "before": found.before,
            "after": found.after,
            "n_chars": found.n_chars,
            "n_pages": found.n_pages,
        }

    def chunks(self, name: str, document_id: str, /, start: int = 0, n: int = 100) -> builtins.list[Chunk]:
        """The first n chunks of a document that reach beyond `start`, in the order of the text."""
        return self._store(name).chunks(document_id, start, n)

    async def picture(
        self, name: str, document_id: str, page: int, /, *, width: int, within: Span | None = None
    ) -> bytes:
        """A page of a PDF as PNG, `width` pixels wide or less, the boxes of what stands in `within` marked on it.

        Raises NotFound for a page, Unreadable for a document, that is not there to be drawn."""
        sheet = await asyncio.to_thread(self._store(name).page, document_id, page, within)
        async with self._drawing:
            return await asyncio.to_thread(pages.draw, sheet, width)

    async def add(
        self,
        name: str,
        files: Sequence[tuple[str, Path]],
        *,
        progress: Callable[[Progress], None],
        ingester: Ingester | None = None,
    ) -> AddReport:
        """Read, embed and commit (relative name, path) pairs; a file that fails does not stop the others.

        ingester: does so in place of this process."""
        store = self._store(name)
        report = await (ingester or self._ingest)(store, files, self._cutting, progress)
        await asyncio.to_thread(self._settle, store, progress)  # also what an add that was killed did not come to
        return report

    async def rebuild(self, name: str, *, progress: Callable[[Progress], None]) -> int:
        """Fill the base's index store anew from SQLite; returns the number of chunks. Raises what the store raises."""
        return await asyncio.to_thread(self._legs.rebuild, self._store(name), _steps(progress))

    def passages(self, name: str, *, n: int, seed: int = 0) -> builtins.list[Hit]:
        """n passages drawn by `seed` from all of the base, in the order of the draw: the same ones for the same base
        and seed, and the first of a longer draw are the shorter one's."""
        store = self._store(name)
        with store.read() as connection:
            ids = [row[0] for row in connection.execute("SELECT id FROM chunks ORDER BY id")]
            random.Random(seed).shuffle(ids)
            return [retrieve.passage_hit(store, connection, chunk_id) for chunk_id in ids[:n]]

    # ---- questions to measure it with ----

    def questions(self, name: str) -> builtins.list[dict[str, Any]]:
        """Those that were drafted; see drafted.py."""
        return Drafted(self._store(name).folder).rows()

    def keep_question(self, name: str, passage: Hit, question: str, answer: str) -> dict[str, Any]:
        with self._drafting:
            return Drafted(self._store(name).folder).keep(passage, question, answer)

    def change_question(self, name: str, question_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Raises NotFound."""
        with self._drafting:
            return Drafted(self._store(name).folder).change(question_id, changes)

    def forget_questions(self, name: str) -> None:
        with self._drafting:
            Drafted(self._store(name).folder).forget()

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
    ) -> builtins.list[Hit]:
        """The k passages nearest to `query` in all of the bases, best first; None: every candidate of both legs.

        Raises Invalid for an empty query.
        within: the documents that may answer. notices: gets what a person should know of how the search was done.
        rerank: the reranker that orders the first of them; "": none; None: the setting's.
        """
        if not query.strip():
            raise Invalid("knowledge.empty_query", param="query")
        stores = self._stores(names)
        asked = await self._asked(stores, query)
        return await self._search(stores, query, asked, k=k, within=within, notices=notices, rerank=rerank)

    async def stored(self, names: Sequence[str], messages: Sequence[Message]) -> answer.Grounding | None:
        """The answer that a question-answer pair of these bases has for the last question; None: a model must answer.

        A question that leans on what was said before has none: what it asks, only the model can tell.
        """
        asked = await query_of(messages, None)
        stores = self._stores(names)
        if not asked.text or asked.how != "asked" or not stored.plain_question(messages):
            return None
        if not await asyncio.to_thread(stored.has_pairs, stores):
            return None
        notices: builtins.list[str] = []
        vectors = await self._asked(stores, asked.text)
        hits = await self._search(stores, asked.text, vectors, k=stored.CANDIDATES, notices=notices, rerank="")
        by_name = {store.folder.name: store for store in stores}
        pairs = await asyncio.to_thread(stored.pairs_of, by_name, hits)
        found = stored.the_very(asked.text, pairs)
        if found is None and (rival := stored.the_nearest(asked.text, pairs)) is not None:
            near = await self._nearness(by_name[rival.hit.knowledge], asked.text, vectors, rival.question)
            found = rival if near >= stored.LEAST_NEARNESS else None
        return stored.grounding(found, messages, asked.text, notices) if found else None

    async def covers(self, names: Sequence[str], query: str, hits: Sequence[Hit]) -> bool:
        """Whether any of the bases holds something on `query`, for which search found `hits`; see evidence.py."""
        stores = self._stores(names)
        return await self._covers(stores, query, await self._asked(stores, query), hits)

    async def vectors(self, name: str, texts: Sequence[str]) -> Vectors:
        """(n, d) of a base's embedder, each of length 1; (n, 0) for a base without documents."""
        model, dimensions = await asyncio.to_thread(self._store(name).embedder)
        if dimensions is None:
            return np.zeros((len(texts), 0), np.float32)
        async with self._embedder(model) as embedder:
            assert isinstance(embedder, Embedder)
            return np.asarray(await embedder.embed([simplified(text) for text in texts], "query"), np.float32)

    async def ground(
        self, names: Sequence[str], messages: Sequence[Message], *, engine: ChatEngine, max_prompt_tokens: int
    ) -> answer.Grounding:
        """The conversation with numbered sources for its last question, within `max_prompt_tokens`."""
        asked = await query_of(messages, engine)
        query = asked.text
        if query and not alike.key(query):  # a greeting: to these no document is the answer
            return answer.Grounding(list(messages), [], query)
        notices: builtins.list[str] = []
        stores = self._stores(names) if query else []
        vectors = await self._asked(stores, query)
        hits = await self._search(stores, query, vectors, k=CANDIDATES, notices=notices) if query else []
        grounding = await answer.compose(
            messages, hits, query=query, names=names, engine=engine, max_prompt_tokens=max_prompt_tokens
        )
        if grounding.sources and is_first(messages) and not await self._covers(stores, query, vectors, hits):
            grounding = answer.refused(grounding, names)
        if asked.how != "asked":
            grounding.notices.insert(0, say(f"knowledge.query_{asked.how}", query=query))
        grounding.notices.extend(notices)
        return grounding

    # ---- inside ----

    async def _ingest(
        self,
        store: Store,
        files: Sequence[tuple[str, Path]],
        cutting: Cutting,
        progress: Callable[[Progress], None],
    ) -> AddReport:
        model, _ = await asyncio.to_thread(store.embedder)
        hands = Here(lambda: self._embedder(model))  # type: ignore[arg-type, return-value]
        return await Ingest(store, hands, cutting, progress).run(files)

    def _settle(self, store: Store, progress: Callable[[Progress], None], *, files: bool = True) -> None:
        """The documents are safe by now: a store that does not answer is a warning here and a notice in each search; files
        that cannot be written are a warning, and searches are exact without them."""
        try:
            self._legs.settle(store, _steps(progress), files=files)
        except (MofangError, OSError) as error:
            why = error.message() if isinstance(error, MofangError) else error
            _log.warning("the index of %s was not brought up to date: %s", store.folder.name, why)

    async def _asked(self, stores: Sequence[Store], query: str) -> dict[str, Asked]:
        """The query by embedding model, for each base that has vectors."""
        asked: dict[str, Asked] = {}
        for store in stores:
            model, dimensions = await asyncio.to_thread(store.embedder)
            if dimensions is not None and model not in asked:
                asked[model] = await self._ask(store, model, dimensions, query)
        return asked

    async def _search(
        self,
        stores: Sequence[Store],
        query: str,
        asked: Mapping[str, Asked],
        *,
        k: int | None,
        within: Filter | None = None,
        notices: builtins.list[str] | None = None,
        rerank: str | None = None,
    ) -> builtins.list[Hit]:
        notices = [] if notices is None else notices
        model = (self._reranker if rerank is None else rerank) if self._open_reranker else ""
        depth = max(k, RERANKED) if k and model else k
        hits = await asyncio.to_thread(
            retrieve.search, stores, query, asked, k=depth, legs=self._legs, within=within, notices=notices
        )
        if model and hits and self._open_reranker:
            hits = await reranked(query, hits, model, self._open_reranker, notices)
        return hits[:k]

    async def _covers(
        self, stores: Sequence[Store], query: str, asked: Mapping[str, Asked], hits: Sequence[Hit]
    ) -> bool:
        if has_words(hits):
            return True
        lang = language_of(query)
        for store in stores:
            model, _ = await asyncio.to_thread(store.embedder)
            if model not in asked:
                continue
            everyday = self._centres.known(model, lang)
            if await asyncio.to_thread(self._usual.is_near, store, asked[model].vector, everyday, lang):
                return True
        return False

    async def _ask(self, store: Store, model: str, dimensions: int, query: str) -> Asked:
        """A query longer than a passage is embedded in parts, and the parts' mean is sought: nothing is cut off."""
        query = simplified(query)
        chunks = split(ParsedDocument(query, [Block("paragraph", 0, len(query))]))
        parts = [query[chunk.start : chunk.end] for chunk in chunks]
        async with self._embedder(model) as embedder:
            assert isinstance(embedder, Embedder)
            check_embedder(store.folder.name, model, dimensions, embedder.info().model, embedder.dimensions)
            vectors = np.asarray(await embedder.embed(parts, "query"), dtype=np.float32)
            mean = vectors.mean(axis=0)
            vector = np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), dtype=np.float32)
            return Asked(vector, await self._centres.direction(vector, embedder, language_of(query)))

    async def _nearness(self, store: Store, query: str, asked: Mapping[str, Asked], question: str) -> float:
        """Of the query and another question, by the base's own embedder."""
        model, _ = await asyncio.to_thread(store.embedder)
        both = np.stack([asked[model].vector, *await self.vectors(store.folder.name, [question])])
        return stored.nearness(both, self._centres.known(model, language_of(query)).mean(axis=0))

    def _stores(self, names: Sequence[str]) -> builtins.list[Store]:
        """Each once. Raises NotFound."""
        return [self._store(name) for name in dict.fromkeys(names)]

    def _store(self, name: str) -> Store:
        """Raises NotFound with the nearest name."""
        known = self.names()
        if name not in known:
            raise not_found(name, known)
        return Store(self.folder / name)


def not_found(name: str, known: Sequence[str]) -> NotFound:
    """The error for a base that is not among `known`, which holds what may be told to whoever asked."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return NotFound(
        "knowledge.knowledge_not_found", name=name, known=", ".join(known) or "-", near=near[0] if near else "-"
    )


def _steps(progress: Callable[[Progress], None]) -> Report:
    return lambda done, total: progress(Progress("index", done, total, "passages", 0.0, ""))
