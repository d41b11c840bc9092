"""From files to committed documents: read → split → embed in batches → one transaction a document.

Files are read ahead in windows, so that the total is known and small files share batches. What cannot be read fails
alone and is reported; the others go on.
"""

import asyncio
import hashlib
import logging
import time
import unicodedata
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mofang.engine.base import Embedder
from mofang.errors import MofangError, TooLarge, Unreadable
from mofang.knowledge import SPLITTERS
from mofang.knowledge.base import AddReport, FileReport
from mofang.knowledge.loaders import parse
from mofang.knowledge.passage import digest
from mofang.knowledge.split.sentence import LIMIT
from mofang.knowledge.store import NewVersion, StagedFile, Store, Vector
from mofang.messages import Progress
from mofang.strings import say

BATCH = 64
"""Passages in one call of the embedder."""
WINDOW = 4096
"""Passages that are read ahead before they are embedded and committed."""
MIN_LIMIT = 40
"""Characters; an embedder that cannot take this is not one."""

Report = Callable[[Progress], None]
OpenEmbedder = Callable[[], AbstractAsyncContextManager[Embedder]]

_log = logging.getLogger(__name__)


class _Meter:
    """Progress of one stage, with the rate over the last seconds."""

    def __init__(self, report: Report, stage: str, total: int, unit: str) -> None:
        self._report, self._stage, self._total, self._unit = report, stage, total, unit
        self._done = 0
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=20)

    def step(self, n: int, detail: str = "") -> None:
        self._done += n
        now = time.monotonic()
        first, done = self._marks[0]
        rate = (self._done - done) / (now - first) if now - first > 0.2 else 0.0
        self._marks.append((now, self._done))
        self._report(Progress(self._stage, self._done, self._total, self._unit, rate, detail))


@dataclass
class _Work:
    """A file that was read and waits for its vectors."""

    place: int
    """Of the file in the report."""
    new: NewVersion
    limit: int
    missing: set[bytes]
    n_embedded: int = 0

    def texts(self) -> dict[bytes, str]:
        return {digest(text): text for text in self.new.passages()}


class Ingest:
    """One call of `add`. `open_embedder` is entered only when something has to be embedded."""

    def __init__(
        self, store: Store, open_embedder: OpenEmbedder, report: Report, *, splitter: str, limit_bytes: int | None
    ) -> None:
        self.store = store
        self._open_embedder = open_embedder
        self._report = report
        self._split = SPLITTERS.get(splitter)
        self._limit_bytes = limit_bytes
        self._stack = AsyncExitStack()
        self._embedder: Embedder | None = None
        self._reports: dict[int, FileReport] = {}
        self._vectors: dict[bytes, Vector] = {}

    async def run(self, files: Sequence[tuple[str, Path]]) -> AddReport:
        began = time.monotonic()
        async with self._stack:
            async for window in self._windows(files):
                try:
                    await self._commit(window)
                finally:
                    for work in window:
                        self.store.discard(work.new.file)
        reports = [self._reports[place] for place in range(len(files))]
        return AddReport(reports, time.monotonic() - began)

    # ---- reading ----

    async def _windows(self, files: Sequence[tuple[str, Path]]) -> AsyncIterator[list[_Work]]:
        await asyncio.to_thread(self.store.sweep)
        known = await asyncio.to_thread(self.store.digests_of_files)
        meter = _Meter(self._report, "read", len(files), "files")
        window: list[_Work] = []
        try:
            for place, (given, path) in enumerate(files):
                name = clean_name(given) or path.name
                work = await asyncio.to_thread(self._read, place, name, path, known.get(name))
                meter.step(1, name)
                if work is None:
                    continue
                window.append(work)
                if sum(len(one.new.chunks) for one in window) >= WINDOW:
                    yield window
                    window = []
            if window:
                yield window
        except BaseException:
            for work in window:
                self.store.discard(work.new.file)
            raise

    def _read(self, place: int, name: str, path: Path, known: str | None) -> _Work | None:
        """Blocking. None when there is nothing left to do: the report says why."""
        staged: StagedFile | None = None
        try:
            if known is not None and _sha256(path) == known:
                self._reports[place] = FileReport(name, "unchanged")
                return None
            staged = self.store.stage(path)
            document = parse(staged.path, name, limit_bytes=self._limit_bytes)
            new = NewVersion(name, staged, document, self._split(document, LIMIT))
            return _Work(place, new, LIMIT, set())
        except (MofangError, OSError, ValueError, RecursionError, MemoryError, RuntimeError) as error:
            if staged is not None:
                self.store.discard(staged)
            self._reports[place] = _failed(name, path, error)
            return None

    # ---- embedding and committing ----

    async def _commit(self, window: list[_Work]) -> None:
        await self._plan(window)
        # What needs no embedding can answer at once.
        await self._put_ready(window)
        meter = _Meter(self._report, "embed", len(set().union(*(work.missing for work in window))), "passages")
        while waiting := [work for work in window if work.missing]:
            await self._embed(waiting, meter)
            await self._put_ready(waiting)
        self._vectors.clear()

    async def _plan(self, window: list[_Work]) -> None:
        """Find which passages have vectors already."""
        wanted = {key for work in window for key in work.texts()}
        self._vectors |= await asyncio.to_thread(self.store.vectors, wanted - self._vectors.keys())
        for work in window:
            work.missing = work.texts().keys() - self._vectors.keys()

    async def _embed(self, waiting: list[_Work], meter: _Meter) -> None:
        """One batch, from the first works that wait. A failure fails the works that are in it."""
        batch: dict[bytes, str] = {}
        for work in waiting:
            texts = work.texts()
            for key in texts.keys() & work.missing:
                if len(batch) < BATCH:
                    batch[key] = texts[key]
            if len(batch) >= BATCH:
                break
        embedder = await self._embedder_now()
        try:
            vectors = await embedder.embed(list(batch.values()), "passage")
        except TooLarge:
            await self._shorten([work for work in waiting if work.missing & batch.keys()], embedder)
            return
        except MofangError as error:
            for work in waiting:
                if work.missing & batch.keys():
                    self._give_up(work, error)
            return
        self._vectors.update(zip(batch, np.asarray(vectors, dtype=np.float32), strict=True))
        for work in waiting:
            work.n_embedded += len(work.missing & batch.keys())
            work.missing -= batch.keys()
        meter.step(len(batch), waiting[0].new.name)

    async def _embedder_now(self) -> Embedder:
        if self._embedder is None:
            self._embedder = await self._stack.enter_async_context(self._open_embedder())
        return self._embedder

    async def _shorten(self, works: list[_Work], embedder: Embedder) -> None:
        """Of works whose batch was too large, cut those that hold too large a passage anew, into half the length."""
        for work in works:
            texts = work.texts()
            try:
                for key in list(work.missing):
                    self._vectors[key] = (await embedder.embed([texts[key]], "passage"))[0]
                    work.missing.discard(key)
                    work.n_embedded += 1
            except TooLarge as error:
                if work.limit // 2 < MIN_LIMIT:
                    self._give_up(work, error)
                    continue
                work.limit //= 2
                chunks = await asyncio.to_thread(self._split, work.new.document, work.limit)
                work.new = replace(work.new, chunks=chunks)
                work.missing = work.texts().keys() - self._vectors.keys()

    async def _put_ready(self, works: list[_Work]) -> None:
        for work in works:
            if not work.missing and work.place not in self._reports:
                self._reports[work.place] = await self._put(work)

    async def _put(self, work: _Work) -> FileReport:
        notes = work.new.document.notes
        if work.limit != LIMIT:
            notes = (*notes, say("knowledge.smaller_chunks", limit=work.limit))
            work.new = replace(work.new, document=replace(work.new.document, notes=notes))
        n_chunks = len(work.new.chunks)
        try:
            status = await asyncio.to_thread(self._store_put, work)
        except MofangError as error:
            return _failed(work.new.name, work.new.file.path, error)
        return FileReport(work.new.name, status, n_chunks, work.n_embedded, notes=notes)

    def _store_put(self, work: _Work) -> Literal["added", "replaced"]:
        """Blocking. Where nothing had to be embedded, the base's own embedder holds."""
        vectors = {key: self._vectors[key] for key in work.texts()}
        if self._embedder:
            model, dimensions = self._embedder.info().model, self._embedder.dimensions
        else:
            info = self.store.info()
            model, dimensions = info.embedding_model, info.dimensions or 0
        return self.store.put(work.new, vectors, embedding_model=model, dimensions=dimensions)

    def _give_up(self, work: _Work, error: MofangError) -> None:
        work.missing = set()
        self._reports[work.place] = _failed(work.new.name, work.new.file.path, error)


def clean_name(name: str) -> str:
    """A relative path with "/" between its parts, composed characters, and nothing that leads out of a folder."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    kept = ("".join(c for c in part if c.isprintable()).strip() for part in parts)
    return "/".join(part for part in kept if part not in ("", ".", ".."))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _failed(name: str, path: Path, error: Exception) -> FileReport:
    if isinstance(error, OSError):
        error = Unreadable("knowledge.file_missing", path=path)
    if not isinstance(error, MofangError):
        _log.exception("loader failed on %s", name, exc_info=error)
        error = Unreadable("knowledge.loader_failed", name=name, why=error)
    return FileReport(name, "failed", error=error.message(), hint=error.hint(), code=error.code)
