"""What the routes stand on: `Backend`, and `LocalBackend`, which has everything in this process.

Under Ray another Backend holds a handle to Serve in place of the pool; the routes are the same.
"""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, cast

from mofang import platform
from mofang.engine.base import Embedder, Engine, Kind
from mofang.knowledge.ingest import Ingester
from mofang.models.base import ModelRef
from mofang.models.catalogue import CatalogueEntry
from mofang.registry import Registry
from mofang.server import pulls
from mofang.server.access import Access, Guarded
from mofang.server.calls import Calls
from mofang.server.files import Files
from mofang.server.gate import Gate
from mofang.server.generate import Generations
from mofang.server.history import History
from mofang.server.jobs import Jobs
from mofang.server.journal import Journal
from mofang.server.keys import Keys
from mofang.server.limits import Meter
from mofang.server.metrics import Metrics
from mofang.server.neighbours import Neighbours
from mofang.server.rooms import Engines, Library, Models, Report, Rooms
from mofang.server.shelf import Presets, Shelf, shelves
from mofang.server.store import Store
from mofang.server.tools import Tools
from mofang.settings import Settings


class Backend(Rooms, Protocol):
    """The rooms, and what the server keeps of its own."""

    leaving: bool
    """The gateway is about to end: what runs goes on for a while, what is new is refused."""

    @property
    def engines(self) -> Gate: ...
    @property
    def library(self) -> Guarded: ...
    @property
    def models(self) -> Models: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def history(self) -> History: ...
    @property
    def journal(self) -> Journal: ...
    @property
    def store(self) -> Store: ...
    @property
    def personas(self) -> Shelf: ...
    @property
    def presets(self) -> Presets: ...
    @property
    def generations(self) -> Generations: ...
    @property
    def tools(self) -> Tools: ...
    @property
    def calls(self) -> Calls: ...
    @property
    def jobs(self) -> Jobs: ...
    @property
    def neighbours(self) -> Neighbours: ...
    @property
    def uploads(self) -> Path:
        """Folder of files on their way into a knowledge base."""
        ...

    def catalogue(self) -> Sequence[CatalogueEntry]: ...
    def examine(self) -> Sequence[Any]:
        """What this machine has and lacks (launch.doctor's findings), in the asker's language; blocks."""
        ...

    def ingester(self, launcher: str, **options: Any) -> Ingester | None:
        """Who takes documents in (launch.INGESTING); None: this process. Raises UnknownName, MissingExtra, Invalid."""
        ...

    async def pull(self, name: str, kind: Kind, source: str | None, progress: Report) -> ModelRef:
        """Bring a model; "auto": the default of `kind` whose source answers."""
        ...

    def discard_pull(self, name: str, kind: Kind) -> None:
        """Delete what a pull that was broken off has brought; blocks."""
        ...

    async def start(self) -> None: ...
    async def close(self) -> None: ...


class LocalBackend:
    """Everything in this process: model files and documents under `settings.home`, engines as children.

    Parts can be given, which is how tests and other launchers replace them. The store opens here, so that whoever
    makes a backend hears of a database of a newer version (Conflict) before anything is served.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        models: Models | None = None,
        engines: Engines | None = None,
        library: Library | None = None,
        doctor: Callable[[Settings], Sequence[Any]] = lambda settings: (),
        ingesting: Registry | None = None,
    ) -> None:
        """ingesting: the ways to take documents in; None: this process is the only one."""
        self.settings = settings
        self.uploads = settings.home / "uploads"
        self.jobs = Jobs(settings, settings.home / "jobs.json", pulls.lasting(self))
        self.neighbours = Neighbours()
        self.leaving = False
        self.models = models or _models(settings)
        pool = engines or _engines(settings, self.models)
        self.store = Store(settings.home / "server.db")
        self.library = Guarded(library or _library(settings, pool), Access(self.store.database))
        self.keys = Keys(self.store.database)
        self.personas, self.presets = shelves(self.store.database)
        self.files = Files(settings.home / "files", self.store.database)
        self.metrics, self.journal = Metrics(), Journal()
        self.engines = Gate(pool, self.models, self.metrics, self.journal, Meter())
        self.metrics.watch(self.engines, self.engines.busy)
        self.generations = Generations(self, self.store)
        self.tools = Tools(self, settings.home)
        self.calls = Calls(self.tools, self.store, settings)
        self.history = History(self._standing)
        self._doctor = doctor
        self._ingesting = ingesting

    async def start(self) -> None:
        self.history.start()
        await asyncio.to_thread(self.jobs.restore)
        await self.calls.start()
        await self.generations.start()
        await asyncio.to_thread(self.files.start)
        await asyncio.to_thread(shutil.rmtree, self.uploads, ignore_errors=True)  # what a killed process left

    async def close(self) -> None:
        await self.history.close()
        await self.jobs.close()
        await self.calls.close()
        await self.generations.close()
        await self.tools.close()
        await self.engines.close()
        await asyncio.to_thread(self.keys.flush)
        await asyncio.to_thread(self.library.close)
        await asyncio.to_thread(self.store.close)

    @property
    def n_answering(self) -> int:
        """Answers under way, also those whose request has left."""
        return max(self.engines.n_open, self.generations.n_running)

    def _standing(self) -> dict[str, float]:
        return {
            **self.metrics.totals(),
            "running": self.n_answering,
            "waiting": sum(self.engines.waiting().values()),
            "memory_available_bytes": platform.memory().available,
        }

    def examine(self) -> Sequence[Any]:
        return self._doctor(self.settings)

    def ingester(self, launcher: str, **options: Any) -> Ingester | None:
        return self._ingesting.get(launcher)(self.settings, **options) if self._ingesting else None

    def catalogue(self) -> Sequence[CatalogueEntry]:
        from mofang.models import catalogue

        return catalogue.load().entries

    async def pull(self, name: str, kind: Kind, source: str | None, progress: Report) -> ModelRef:
        from mofang.models.pull import pull, pull_default
        from mofang.models.store import ModelStore

        assert isinstance(self.models, ModelStore)
        if name == "auto":
            return await pull_default(self.models, kind, progress=progress)
        return await pull(self.models, name, source=source, progress=progress)

    def discard_pull(self, name: str, kind: Kind) -> None:
        from mofang.models import catalogue
        from mofang.models.pull import discard
        from mofang.models.store import ModelStore

        assert isinstance(self.models, ModelStore)
        names = [entry.name for entry in catalogue.load().defaults(kind)] if name == "auto" else [name]
        for one in names:
            discard(self.models, one)


def _models(settings: Settings) -> Models:
    from mofang.models.store import ModelStore

    return ModelStore(settings)


def _engines(settings: Settings, models: Models) -> Engines:
    from mofang.engine.pool import Pool

    return Pool(settings, models)


def _library(settings: Settings, engines: Engines) -> Library:
    from mofang.knowledge.library import Library as LocalLibrary

    def embedder(name: str) -> AbstractAsyncContextManager[Embedder]:
        return cast(AbstractAsyncContextManager[Embedder], engines.use(name, "embedding"))

    def reranker(name: str) -> AbstractAsyncContextManager[Engine]:
        return engines.use(name, "reranker")

    return LocalLibrary(settings.home / "knowledge", embedder, settings=settings, reranker=reranker)
