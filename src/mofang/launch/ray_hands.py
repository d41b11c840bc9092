"""Hands of an ingest on a Ray cluster (mofang.knowledge.ingest.Hands).

    driver       stages files in the shared home, forms batches, commits; holds all that decides anything
      _read      tasks: a staged file's document and chunks; Ray begins those of a lost worker again, anywhere
      Desk       actors: the base's embedding model, one for each machine or GPU; a batch that was at a lost desk is asked
                 of another one, and the desk comes back as soon as it has its model again

Plain tasks and actors, and not Ray Data: whether a passage is embedded at all depends on the base (known passages keep
their vectors) and on what other files said just before; a passage that is too long sends its document back to be cut
anew; and a document is committed when the last of its batches is there. A dataset's plan knows no way back and no such
order, and its pools of actors hold on to dead ones (ray#62746). All the driver keeps is one window of passages.

Neither kind takes cores from Ray's books, as replicas do not (mofang.launch.ray_serve): where all cores are another's they
would wait for ever. Ray spreads them over its machines; a GPU is taken.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from mofang.engine import ENGINES, engine_name
from mofang.engine.base import EngineInfo, Purpose, Vectors
from mofang.errors import EngineFailed, MofangError
from mofang.knowledge.ingest import Cut, Cutting, Report, cut
from mofang.knowledge.loaders import explained
from mofang.launch import ray_cluster
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.settings import Settings
from mofang.strings import language, say, speaking

N_FILES = 64
"""Files that are staged and read ahead at most."""
BATCHES_A_DESK = 2
"""One that is computed, and one that waits for it."""
TRIES = 3
"""So often is a file read whose reader is lost, a batch embedded whose desk is: it may be what kills them."""
PATIENCE_S, PAUSE_S = 60.0, 0.25
"""How long a lost desk is waited for while there is no other, and between two looks."""
VISIBLE_S = 5.0
"""How long a file may take to show on another machine of a network's file system."""


class RayHands:
    """Connected from `open` on, for as long as `stack` is."""

    n_files = N_FILES

    def __init__(
        self, model: str, settings: Settings, cluster: str, workers: int, report: Report, stack: ExitStack
    ) -> None:
        self._model = model
        self._settings = settings
        self._cluster = cluster
        self._workers = workers
        self._report = report
        self._stack = stack
        self._reader: Any = None
        self._fault: Exception | None = None
        self._room = asyncio.Semaphore(1)
        self.n_batches = 1

    def open(self) -> None:
        """Blocks, in the main thread, where Ray wants to be begun."""
        if self._fault:
            raise self._fault
        if self._reader is None:
            try:
                self._connect()
            except Exception as error:
                self._fault = error  # many files ask
                raise

    def _connect(self) -> None:
        self._stack.enter_context(ray_cluster.connected(self._cluster))
        nodes = ray_cluster.nodes()
        self._room = asyncio.Semaphore(max(1, int(sum(node.get("CPU", 0) for node in nodes))))
        count, _ = ray_cluster.crew(self._workers)
        self._report(Progress("notice", 0, detail=say("launch.ray_workers", n=count, nodes=len(nodes))))
        self._reader = ray.remote(_read).options(
            num_cpus=0, max_retries=TRIES, scheduling_strategy="SPREAD", runtime_env=ray_cluster.runtime_env()
        )

    async def read(self, path: Path, name: str, cutting: Cutting) -> Cut:
        async with self._room:
            try:
                found = await self._reader.remote(path, name, cutting, language())
            except RayError as error:
                why = ray_cluster.last_line(error)
                raise EngineFailed("launch.ray_reader_lost", name=name, times=TRIES + 1, why=why) from error
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    @asynccontextmanager
    async def embedder(self) -> AsyncIterator["Desks"]:
        """The model at all desks that could load it. Raises what they say when none could."""
        ref = await asyncio.to_thread(ModelStore(self._settings).resolve, self._model, "embedding")
        count, on_gpu = ray_cluster.crew(self._workers)
        threads = self._settings.n_threads or ray_cluster.share(count)
        settings = self._settings.model_copy(update={"n_threads": threads})
        hired = ray.remote(Desk).options(
            num_cpus=0,
            num_gpus=int(on_gpu),
            max_restarts=-1,
            max_concurrency=1,
            scheduling_strategy="SPREAD",
            runtime_env=ray_cluster.runtime_env(),
        )
        desks = Desks(ref.name, [hired.remote(ref, settings) for _ in range(count)], self._report)
        try:
            await desks.open(self._settings.load_timeout_s)
            self.n_batches = BATCHES_A_DESK * desks.count
            yield desks
        finally:
            await desks.close()


class Desks:
    """mofang.knowledge.ingest.Embeds over the desks; each is among the idle once for every batch that it may hold."""

    def __init__(self, model: str, desks: Sequence[Any], report: Report) -> None:
        self._model = model
        self._desks = desks
        self._report = report
        self._idle: asyncio.Queue[Any] = asyncio.Queue()
        self._about: tuple[EngineInfo, int] | None = None
        self._seats: set[asyncio.Task[None]] = set()
        self._gone: EngineFailed | None = None
        """Why nothing can be embedded any more."""
        self.count = 0

    async def open(self, timeout_s: float) -> None:
        """Wait until every desk has its model, or so long. One that has none is told of and left out."""
        seats = [asyncio.create_task(self._seat(desk)) for desk in self._desks]
        await asyncio.wait(seats, timeout=timeout_s)
        faults = [error for seat in seats if seat.done() and (error := seat.exception())]
        self.count = sum(seat.done() for seat in seats) - len(faults)
        for seat in seats:
            self._watch(seat)  # some may come later
        if not self.count:
            raise faults[0] if faults else EngineFailed("launch.ray_no_desk", model=self._model, seconds=int(timeout_s))

    def info(self) -> EngineInfo:
        assert self._about
        return self._about[0]

    @property
    def dimensions(self) -> int:
        assert self._about
        return self._about[1]

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        """Raises what the model says of the texts, or EngineFailed when desk after desk was lost over them."""
        lost: Exception | None = None
        for _ in range(TRIES):
            desk = await self._free()
            try:
                found = await desk.embed.remote(texts, purpose)
            except RayTaskError as error:
                self._idle.put_nowait(desk)
                raise EngineFailed("engine.failed", model=self._model, why=ray_cluster.last_line(error)) from error
            except RayError as error:
                lost = error
                self._watch(asyncio.create_task(self._seat(desk, places=1)))
                continue
            self._idle.put_nowait(desk)
            if not isinstance(found, MofangError):
                return found  # type: ignore[no-any-return]
            if not isinstance(found, EngineFailed):
                raise found
            lost = found  # the model's own process died: the desk starts another one
        why = lost.message() if isinstance(lost, MofangError) else ray_cluster.last_line(lost)
        raise EngineFailed("launch.ray_desk_lost", model=self._model, times=TRIES, why=why) from lost

    async def close(self) -> None:
        for seat in self._seats:
            seat.cancel()
        await asyncio.gather(*self._seats, return_exceptions=True)
        for desk in self._desks:
            ray.kill(desk)

    async def _free(self) -> Any:
        """A desk with room. Raises when none has come for so long: nothing that is still asked will wait again."""
        if self._gone is None:
            try:
                return await asyncio.wait_for(self._idle.get(), PATIENCE_S)
            except TimeoutError:
                self._gone = EngineFailed("launch.ray_no_desk", model=self._model, seconds=int(PATIENCE_S))
        raise self._gone

    def _watch(self, seat: "asyncio.Task[None]") -> None:
        """Hold on to it, and tell of a desk that does not come."""
        self._seats.add(seat)
        seat.add_done_callback(self._seated)

    def _seated(self, seat: "asyncio.Task[None]") -> None:
        self._seats.discard(seat)
        if not seat.cancelled() and (fault := seat.exception()):
            self._report(Progress("notice", 0, detail=str(fault)))

    async def _seat(self, desk: Any, places: int = BATCHES_A_DESK) -> None:
        """Once it has its model it is among the idle. A desk that is lost comes back where Ray finds room for it."""
        while True:
            try:
                found = await desk.ready.remote()
                break
            except (RayTaskError, ActorDiedError) as error:  # it cannot be there at all
                raise EngineFailed("engine.failed", model=self._model, why=ray_cluster.last_line(error)) from error
            except RayError:
                await asyncio.sleep(PAUSE_S)
        if isinstance(found, MofangError):
            raise found
        self._about = self._about or found
        for _ in range(places):
            self._idle.put_nowait(desk)


# ---- on the cluster's machines ----


def _read(path: Path, name: str, cutting: Cutting, lang: str) -> Cut | Exception:
    """What `cut` returns, or raises: in our words where a library's error may not travel."""
    try:
        with speaking(lang):
            _await_file(path)
            return cut(path, name, cutting)
    except OSError as error:
        return error
    except Exception as error:
        return _plain(explained(name, path, error))


class Desk:
    """An embedding model in a process of the cluster. Errors of ours are returned: they travel whole."""

    def __init__(self, ref: ModelRef, settings: Settings) -> None:
        self._ref, self._settings = ref, settings
        self._engine: Any = None

    async def ready(self) -> tuple[EngineInfo, int] | MofangError:
        try:
            engine = await self._loaded()
            return engine.info(), engine.dimensions
        except MofangError as error:
            return _plain(error)

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors | MofangError:
        try:
            vectors: Vectors = await (await self._loaded()).embed(texts, purpose)
            return vectors
        except MofangError as error:
            return _plain(error)

    async def _loaded(self) -> Any:
        """The engine; another one where its process is gone."""
        if self._engine is None or not self._engine.alive():
            if self._engine is not None:
                await self._engine.close()
            await asyncio.to_thread(_await_file, self._ref.path)
            load = ENGINES.get(engine_name(self._ref))
            self._engine = await load(self._ref, self._settings, progress=lambda _: None)
        return self._engine


def _plain(error: MofangError) -> MofangError:
    """With words in place of a library's errors, which may not travel."""
    error.values.update({name: str(it) for name, it in error.values.items() if not isinstance(it, int | float)})
    return error


def _await_file(path: Path) -> None:
    """Raises MofangError where this machine does not see it, also after a while."""
    until = time.monotonic() + VISIBLE_S
    while not path.exists():
        if time.monotonic() > until:
            raise MofangError("launch.ray_no_home", why=f"{socket.gethostname()}: {path.parent}")
        time.sleep(0.1)
