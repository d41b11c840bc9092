"""From files to committed documents: read → split → embed in batches → one transaction a document.

Files are read ahead in windows, so that the total is known and small files share batches. What cannot be read fails
alone and is reported; the others go on.

Who reads and embeds are its `Hands`: this process (`Here`), or machines elsewhere (mofang.launch.ray_hands). They may do
many things at a time and lose some of them; what they find is committed here alone, in the order of the files, so that a
base comes out the same whoever worked for it.
"""

import asyncio
import hashlib
import time
import unicodedata
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from mofang.engine.base import EngineInfo, Purpose, Vectors
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
Cut = tuple[ParsedDocument, list[Chunk]]
A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cutting:
    """How files become chunks."""

    splitter: str = "sentence"
    limit_bytes: int | None = None


def cut(path: Path, name: str, cutting: Cutting) -> Cut:
    """A file's document and its chunks. Blocks. Raises what `parse` and a format's library raise."""
    document = parse(path, name, limit_bytes=cutting.limit_bytes)
    return document, SPLITTERS.get(cutting.splitter)(document, LIMIT)


class Embeds(Protocol):
    """The part of an Embedder that an ingest asks for."""

    @property
    def dimensions(self) -> int: ...
    def info(self) -> EngineInfo: ...
    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors: ...


class Hands(Protocol):
    """Who reads and embeds for an ingest."""

    @property
    def n_files(self) -> int:
        """Files that are under way at a time."""
        ...

    @property
    def n_batches(self) -> int:
        """Batches that are embedded at a time, once the embedder is open."""
        ...

    def open(self) -> None:
        """Called before a file is read, and at once again. Raises what no file is to blame for."""
        ...

    async def read(self, path: Path, name: str, cutting: Cutting) -> Cut:
        """What `cut` returns, and raises."""
        ...

    def embedder(self) -> AbstractAsyncContextManager[Embeds]:
        """Entered only when something has to be embedded."""
        ...


class Here:
    """Hands of this process, which is answering others meanwhile: one thing at a time."""

    n_files = n_batches = 1

    def __init__(self, open_embedder: Callable[[], AbstractAsyncContextManager[Embeds]]) -> None:
        self._open_embedder = open_embedder

    def open(self) -> None:
        pass

    async def read(self, path: Path, name: str, cutting: Cutting) -> Cut:
        return await asyncio.to_thread(cut, path, name, cutting)

    def embedder(self) -> AbstractAsyncContextManager[Embeds]:
        return self._open_embedder()


Ingester = Callable[[Store, Sequence[tuple[str, Path]], Cutting, Report], Awaitable[AddReport]]
"""Takes files into a base in place of this process; see mofang.launch.INGESTING."""


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


@dataclass(eq=False, slots=True)
class _Batch:
    """Passages that are being embedded, by their digests, and the works that asked for them."""

    texts: dict[bytes, str]
    works: list[_Work]
    vectors: "asyncio.Task[Vectors]"


class Ingest:
    """One call of `add`."""

    def __init__(self, store: Store, hands: Hands, cutting: Cutting, report: Report) -> None:
        self.store = store
        self._hands = hands
        self._cutting = cutting
        self._report = report
        self._split: Callable[[ParsedDocument, int], list[Chunk]] = SPLITTERS.get(cutting.splitter)
        self._stack = AsyncExitStack()
        self._embedder: Embeds | None = None
        self._embedding = _Meter(report, "embed", "passages")
        self._reports: dict[int, FileReport] = {}
        self._staged: set[StagedFile] = set()
        self._vectors: dict[bytes, Vector] = {}
        """Of the window at hand."""

    async def run(self, files: Sequence[tuple[str, Path]]) -> AddReport:
        """Raises what opening the embedder raises, and Conflict when it is not the base's own."""
        began = time.monotonic()
        with ExitStack() as opened:
            given = await _to_the_end(opened.enter_context, unpacked(files))
            try:
                async with self._stack, aclosing(self._windows(given.files)) as windows:
                    async for window in windows:
                        await self._commit(window)
                        self._discard(work.new.file for work in window)
            finally:
                self._discard(list(self._staged))
        archives = [_archive(name, told) for name, told in given.told.items()]
        reports = archives + [self._reports[place] for place in range(len(given.files))]
        if any(report.status == "replaced" for report in reports):
            await asyncio.to_thread(self.store.sweep)
        return AddReport(reports, time.monotonic() - began)

    def _discard(self, files: Iterable[StagedFile]) -> None:
        for file in files:
            self.store.discard(file)
            self._staged.discard(file)

    # ---- reading ----

    async def _windows(self, files: Sequence[tuple[str, Source]]) -> AsyncGenerator[list[_Work], None]:
        await asyncio.to_thread(self.store.sweep)
        known = await asyncio.to_thread(self.store.digests_of_files)
        meter = _Meter(self._report, "read", "files", len(files))
        named = [(clean_name(given) or path.name, path) for given, path in files]
        reads = (self._read(place, name, path, known.get(name)) for place, (name, path) in enumerate(named))
        names = iter(named)
        window: list[_Work] = []
        async with aclosing(_in_order(reads, self._hands.n_files)) as works:
            async for work in works:
                meter.step(1, next(names)[0])
                if work is None:
                    continue
                window.append(work)
                if sum(len(one.new.chunks) for one in window) >= WINDOW:
                    yield window
                    window = []
        if window:
            yield window

    async def _read(self, place: int, name: str, path: Source, known: str | None) -> _Work | None:
        """None when there is nothing left to do: the report says why."""
        try:
            if known is not None and await asyncio.to_thread(_sha256, path) == known:
                self._reports[place] = FileReport(name, "unchanged")
                return None
            staged = await _to_the_end(self._stage, path)
        except Exception as error:
            self._unread(place, name, path, error)
            return None
        self._hands.open()
        try:
            document, chunks = await self._hands.read(staged.path, name, self._cutting)
            return await asyncio.to_thread(_Work, place, NewVersion(name, staged, document, chunks))
        except Exception as error:  # whatever a format's library raises: this file fails, and the report says so
            self._discard([staged])
            self._unread(place, name, path, error)
            return None

    def _stage(self, path: Source) -> StagedFile:
        staged = self.store.stage(path)
        self._staged.add(staged)
        return staged

    def _unread(self, place: int, name: str, path: Source, error: Exception) -> None:
        self._reports[place] = _failed(name, path_of(path), out_of_space(error, self.store.folder) or error)

    # ---- embedding and committing ----

    async def _commit(self, window: list[_Work]) -> None:
        wanted: set[bytes] = set().union(*(work.wanted for work in window))
        self._vectors = await asyncio.to_thread(self.store.vectors, wanted)
        for work in window:
            work.got(self._vectors)
        self._embedding.total += len(wanted) - len(self._vectors)
        waiting = await self._put_ready(window)
        if waiting:
            await self._embed(waiting, await self._embedder_now())

    async def _embed(self, waiting: list[_Work], embedder: Embeds) -> None:
        """In batches, from the first works that wait, and commit those that lack nothing any more."""
        flying: deque[_Batch] = deque()
        try:
            while waiting:
                while len(flying) < self._hands.n_batches and (batch := self._batch(waiting, flying, embedder)):
                    flying.append(batch)
                await self._land(waiting, flying, embedder)
                waiting = await self._put_ready(waiting)
        finally:
            await _cancelled([batch.vectors for batch in flying])

    def _batch(self, waiting: list[_Work], flying: Iterable[_Batch], embedder: Embeds) -> _Batch | None:
        """The next one that is asked for; None when everything is."""
        asked = {key for batch in flying for key in batch.texts}
        texts: dict[bytes, str] = {}
        inside: list[_Work] = []
        for work in waiting:
            if len(texts) >= BATCH:
                break
            before = len(texts)
            open_ = ((key, i) for key, i in work.missing.items() if key not in asked)
            if taken := {key: work.new.passage(i) for key, i in islice(open_, BATCH - before)}:
                texts |= taken
                work.n_embedded += len(texts) - before
                inside.append(work)
        if not texts:
            return None
        return _Batch(texts, inside, asyncio.create_task(embedder.embed(list(texts.values()), "passage")))

    async def _land(self, waiting: list[_Work], flying: deque[_Batch], embedder: Embeds) -> None:
        """Take in the oldest batch. A failure fails the works that are in it; one that was too large waits for all others
        and is made smaller."""
        too_large: list[_Work] = []
        while flying:
            batch = flying[0]
            try:
                vectors = await batch.vectors
            except TooLarge:
                too_large += [work for work in batch.works if work not in too_large]
            except MofangError as error:
                for work in batch.works:
                    self._give_up(work, error)
            else:
                self._got(waiting, batch, vectors)
            flying.popleft()
            if not too_large:
                return
        await self._shorten(too_large, embedder)

    def _got(self, waiting: list[_Work], batch: _Batch, vectors: Vectors) -> None:
        self._vectors.update(zip(batch.texts, np.asarray(vectors, dtype=np.float32), strict=True))
        for work in waiting:
            for key in batch.texts:
                work.missing.pop(key, None)
        self._embedding.step(len(batch.texts), batch.works[0].new.name)

    async def _embedder_now(self) -> Embeds:
        if self._embedder is None:
            embedder = await self._stack.enter_async_context(self._hands.embedder())
            model, dimensions = await asyncio.to_thread(self.store.embedder)
            name = self.store.folder.name
            check_embedder(name, model, dimensions, embedder.info().model, embedder.dimensions)
            self._embedder = embedder
        return self._embedder

    async def _shorten(self, works: list[_Work], embedder: Embeds) -> None:
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


async def _to_the_end(call: Callable[[A], T], value: A) -> T:
    """What the call returns, made in a thread. Who is cancelled waits until it has ended: a thread cannot be called off, and
    what it makes has to be there by the time that all is cleared away."""
    running = asyncio.create_task(asyncio.to_thread(call, value))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):  # once more
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # is nobody's any more
        raise


async def _in_order(calls: Iterable[Coroutine[Any, Any, T]], n: int) -> AsyncGenerator[T, None]:
    """What the calls return, in their order; n of them are under way at a time."""
    waiting = iter(calls)
    flying: deque[asyncio.Task[T]] = deque()
    try:
        while True:
            flying.extend(asyncio.create_task(call) for call in islice(waiting, n - len(flying)))
            if not flying:
                return
            found = await flying[0]
            flying.popleft()
            yield found
    finally:
        await _cancelled(flying)


async def _cancelled(tasks: Sequence["asyncio.Task[T]"]) -> None:
    """Once they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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
