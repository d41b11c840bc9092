"""From files to committed documents: read → split → embed in batches → one transaction a document.

Files are read ahead in windows, so that the total is known and small files share batches. What cannot be read fails
alone and is reported; the others go on.
"""

import asyncio
import hashlib
import time
import unicodedata
from collections import deque
from collections.abc import AsyncGenerator, Callable, Container, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, aclosing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from mofang.engine.base import Embedder
from mofang.errors import MofangError, TooLarge
from mofang.knowledge import SPLITTERS
from mofang.knowledge.archive import Source, path_of, unpacked
from mofang.knowledge.base import AddReport, Chunk, FileReport, ParsedDocument
from mofang.knowledge.loaders import explained, parse
from mofang.knowledge.passage import digest
from mofang.knowledge.space import out_of_space
from mofang.knowledge.split.sentence import LIMIT
from mofang.knowledge.store import NewVersion, StagedFile, Store, Vector, check_embedder
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


class _Meter:
    """Progress of one stage, with the rate over the last steps. `total` may grow while files are read ahead."""

    def __init__(self, report: Report, stage: str, unit: str, total: int = 0) -> None:
        self.total = total
        self._report, self._stage, self._unit = report, stage, unit
        self._done = 0
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=20)

    def step(self, n: int, detail: str = "") -> None:
        self._done += n
        now = time.monotonic()
        first, done = self._marks[0]
        rate = (self._done - done) / (now - first) if now - first > 0.2 else 0.0
        self._marks.append((now, self._done))
        self._report(Progress(self._stage, self._done, self.total, self._unit, rate, detail))


class _Work:
    """A file that was read and waits for its vectors."""

    def __init__(self, place: int, new: NewVersion) -> None:
        self.place = place
        """Of the file in the report."""
        self.new = new
        self.limit = LIMIT
        self.n_embedded = 0
        self.wanted = _by_digest(new)
        self.missing = dict(self.wanted)
        """What still has to be embedded, in the order of the text: digest → number of the chunk."""

    def recut(self, chunks: list[Chunk], limit: int) -> None:
        self.limit = limit
        self.new = replace(self.new, chunks=chunks)
        self.wanted = _by_digest(self.new)
        self.missing = dict(self.wanted)

    def got(self, known: Container[bytes]) -> None:
        self.missing = {key: i for key, i in self.missing.items() if key not in known}


def _by_digest(new: NewVersion) -> dict[bytes, int]:
    return {digest(text): i for i, text in enumerate(new.passages())}


class Ingest:
    """One call of `add`. `open_embedder` is entered only when something has to be embedded."""

    def __init__(
        self, store: Store, open_embedder: OpenEmbedder, report: Report, *, splitter: str, limit_bytes: int | None
    ) -> None:
        self.store = store
        self._open_embedder = open_embedder
        self._report = report
        self._split: Callable[[ParsedDocument, int], list[Chunk]] = SPLITTERS.get(splitter)
        self._limit_bytes = limit_bytes
        self._stack = AsyncExitStack()
        self._embedder: Embedder | None = None
        self._embedding = _Meter(report, "embed", "passages")
        self._reports: dict[int, FileReport] = {}
        self._vectors: dict[bytes, Vector] = {}
        """Of the window at hand."""

    async def run(self, files: Sequence[tuple[str, Path]]) -> AddReport:
        """Raises what opening the embedder raises, and Conflict when it is not the base's own."""
        began = time.monotonic()
        with ExitStack() as opened:
            given = await asyncio.to_thread(opened.enter_context, unpacked(files))
            async with self._stack, aclosing(self._windows(given.files)) as windows:
                async for window in windows:
                    try:
                        await self._commit(window)
                    finally:
                        for work in window:
                            self.store.discard(work.new.file)
        archives = [_archive(name, told) for name, told in given.told.items()]
        reports = archives + [self._reports[place] for place in range(len(given.files))]
        if any(report.status == "replaced" for report in reports):
            await asyncio.to_thread(self.store.sweep)
        return AddReport(reports, time.monotonic() - began)

    # ---- reading ----

    async def _windows(self, files: Sequence[tuple[str, Source]]) -> AsyncGenerator[list[_Work], None]:
        await asyncio.to_thread(self.store.sweep)
        known = await asyncio.to_thread(self.store.digests_of_files)
        meter = _Meter(self._report, "read", "files", len(files))
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
                    ready, window = window, []
                    yield ready
            if window:
                ready, window = window, []
                yield ready
        finally:
            for work in window:
                self.store.discard(work.new.file)

    def _read(self, place: int, name: str, path: Source, known: str | None) -> _Work | None:
        """Blocking. None when there is nothing left to do: the report says why."""
        staged: StagedFile | None = None
        try:
            if known is not None and _sha256(path) == known:
                self._reports[place] = FileReport(name, "unchanged")
                return None
            staged = self.store.stage(path)
            document = parse(staged.path, name, limit_bytes=self._limit_bytes)
            return _Work(place, NewVersion(name, staged, document, self._split(document, LIMIT)))
        except Exception as error:  # whatever a format's library raises: this file fails, and the report says so
            if staged is not None:
                self.store.discard(staged)
            self._reports[place] = _failed(name, path_of(path), out_of_space(error, self.store.folder) or error)
            return None

    # ---- embedding and committing ----

    async def _commit(self, window: list[_Work]) -> None:
        wanted: set[bytes] = set().union(*(work.wanted for work in window))
        self._vectors = await asyncio.to_thread(self.store.vectors, wanted)
        for work in window:
            work.got(self._vectors)
        self._embedding.total += len(wanted) - len(self._vectors)
        waiting = await self._put_ready(window)
        while waiting:
            await self._embed(waiting)
            waiting = await self._put_ready(waiting)

    async def _embed(self, waiting: list[_Work]) -> None:
        """One batch, from the first works that wait. A failure fails the works that are in it."""
        batch: dict[bytes, str] = {}
        inside: list[_Work] = []
        for work in waiting:
            if len(batch) >= BATCH:
                break
            inside.append(work)
            before = len(batch)
            wanted = islice(work.missing.items(), BATCH - len(batch))
            batch.update((key, work.new.passage(i)) for key, i in wanted)
            work.n_embedded += len(batch) - before
        embedder = await self._embedder_now()
        try:
            vectors = await embedder.embed(list(batch.values()), "passage")
        except TooLarge:
            await self._shorten(inside, embedder)
            return
        except MofangError as error:
            for work in inside:
                self._give_up(work, error)
            return
        self._vectors.update(zip(batch, np.asarray(vectors, dtype=np.float32), strict=True))
        for work in waiting:
            for key in batch:
                work.missing.pop(key, None)
        self._embedding.step(len(batch), inside[0].new.name)

    async def _embedder_now(self) -> Embedder:
        if self._embedder is None:
            embedder = await self._stack.enter_async_context(self._open_embedder())
            model, dimensions = await asyncio.to_thread(self.store.embedder)
            name = self.store.folder.name
            check_embedder(name, model, dimensions, embedder.info().model, embedder.dimensions)
            self._embedder = embedder
        return self._embedder

    async def _shorten(self, works: list[_Work], embedder: Embedder) -> None:
        """A batch was too large. Embed one by one; a document with too large a passage is cut anew, half as long."""
        for work in works:
            work.n_embedded = 0
            try:
                for key, i in list(work.missing.items()):
                    vectors = await embedder.embed([work.new.passage(i)], "passage")
                    self._vectors[key] = np.asarray(vectors[0], dtype=np.float32)
                    del work.missing[key]
                    work.n_embedded += 1
                    self._embedding.step(1, work.new.name)
            except TooLarge as error:
                if work.limit // 2 < MIN_LIMIT:
                    self._give_up(work, error)
                    continue
                limit = work.limit // 2
                work.recut(await asyncio.to_thread(self._split, work.new.document, limit), limit)
                work.got(self._vectors)
                self._embedding.total += len(work.missing)
            except MofangError as error:
                self._give_up(work, error)

    async def _put_ready(self, works: list[_Work]) -> list[_Work]:
        """Commit the works that lack nothing; returns those that still wait."""
        for work in works:
            if not work.missing and work.place not in self._reports:
                self._reports[work.place] = await self._put(work)
        return [work for work in works if work.missing]

    async def _put(self, work: _Work) -> FileReport:
        new = work.new
        if work.limit != LIMIT:
            notes = (*new.document.notes, say("knowledge.smaller_chunks", limit=work.limit))
            new = replace(new, document=replace(new.document, notes=notes))
        embedder = (self._embedder.info().model, self._embedder.dimensions) if self._embedder else None
        vectors = {key: self._vectors[key] for key in work.wanted}
        try:
            status = await asyncio.to_thread(self.store.put, new, vectors, embedder)
        except (MofangError, OSError) as error:
            return _failed(new.name, new.file.path, out_of_space(error, self.store.folder) or error)
        return FileReport(new.name, status, len(new.chunks), work.n_embedded, notes=new.document.notes)

    def _give_up(self, work: _Work, error: MofangError) -> None:
        work.missing = {}
        self._reports[work.place] = _failed(work.new.name, work.new.file.path, error)


def clean_name(name: str) -> str:
    """A relative path with "/" between its parts, composed characters, and nothing that leads out of a folder."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    kept = ("".join(c for c in part if c.isprintable()).strip() for part in parts)
    return "/".join(part for part in kept if part not in ("", ".", ".."))


def _sha256(path: Source) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _archive(name: str, told: tuple[str, ...] | MofangError) -> FileReport:
    if isinstance(told, MofangError):
        return _failed(name, Path(name), told)
    return FileReport(name, "unpacked", notes=told)


def _failed(name: str, path: Path, error: Exception) -> FileReport:
    fault = explained(name, path, error)
    return FileReport(name, "failed", error=fault.message(), hint=fault.hint(), code=fault.code)
