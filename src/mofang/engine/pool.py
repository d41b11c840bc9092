"""The models in memory: loaded on demand, shared by requests, queued for, unloaded when idle, restarted after a crash.

A model has as many places as its engine has slots; whoever finds none waits in order, and when too many wait the
next one is refused (Busy). One load at a time for a model, whoever asked; it goes on when the one who asked leaves.
Unloading a model that answers somebody is refused (Conflict): it would break an answer that was promised.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from mofang.engine import ENGINES, engine_name
from mofang.engine.base import Adaptable, Engine, EngineInfo, Kind
from mofang.errors import Busy, Conflict, EngineFailed, Invalid, MofangError, TooLarge
from mofang.messages import Progress
from mofang.models.base import MemoryEstimate, ModelRef
from mofang.platform import memory
from mofang.registry import Registry
from mofang.settings import Settings

_log = logging.getLogger(__name__)

CRASHES, CRASH_WINDOW_S = 3, 60.0
"""So many crashes in so many seconds, and a model is not started again until they are that long ago."""
SECONDS_A_PLACE = 2.0
"""How long a request takes, as long as none has ended; for Retry-After."""

Report = Callable[[Progress], None]


class Models(Protocol):
    """What the pool asks of the models on disk."""

    def resolve(self, name: str, kind: Kind) -> ModelRef: ...
    def get(self, name: str) -> ModelRef: ...
    def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate: ...


class _Place:
    """One model's place in memory, empty or not."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.loading: asyncio.Task[Engine] | None = None
        self.reports: list[Report] = []
        self.running = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.arriving = 0
        """Requests that wait for the model to load."""
        self.used_at = 0.0
        self.seconds = SECONDS_A_PLACE
        """How long a request takes, the latest counting most."""
        self.crashes: deque[float] = deque(maxlen=CRASHES)
        self.door = asyncio.Lock()
        """Held while the model makes room for an adapter that came after it; whoever arrives then waits."""
        self.idle = asyncio.Event()
        """Set whenever the last one leaves."""
        self.last_words = ""
        """What the log said when it crashed."""


class Pool:
    """See the module. `clock` gives seconds; tests bring their own."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        *,
        engines: Registry = ENGINES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._models = models
        self._engines = engines
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    @asynccontextmanager
    async def use(self, name: str, kind: Kind, *, progress: Report | None = None) -> AsyncIterator[Engine]:
        """The loaded model for the length of the block. "auto" is the default of that kind.

        Raises NotFound, Invalid (wrong kind), Busy, TooLarge (does not fit memory), MissingSystem, EngineFailed.
        """
        asked = await asyncio.to_thread(self._models.resolve, name, kind)
        ref = await self._base(asked)
        place = self._places.setdefault(ref.name, _Place())
        if place.arriving >= self._settings.queue_limit:
            raise self._busy(ref, place, place.arriving, self._settings.n_slots)
        place.arriving += 1
        try:
            async with place.door:
                await self._renew(asked, ref, place)
            engine = await self._ready(ref, place, progress)
        finally:
            place.arriving -= 1
        await self._enter(ref, place, engine.info().n_slots)
        began = self._clock()
        try:
            # It may have died or left memory while we waited.
            yield _adapted(engine if engine.alive() else await self._ready(ref, place, progress), asked)
        except EngineFailed as error:
            place.last_words = str(error.values.get("why", ""))
            raise
        finally:
            place.seconds += (self._clock() - began - place.seconds) / 4
            self._leave(place)

    async def load(self, name: str, kind: Kind | None = None) -> EngineInfo:
        """Load a model without using it."""
        if kind:
            ref = await asyncio.to_thread(self._models.resolve, name, kind)
        else:
            ref = await asyncio.to_thread(self._models.get, name)
        ref = await self._base(ref)
        place = self._places.setdefault(ref.name, _Place())
        return (await self._ready(ref, place, None)).info()

    async def unload(self, name: str) -> None:
        """Take a model out of memory; nothing happens when it is not there. Raises Conflict while it is in use."""
        place = self._places.get(name)
        if place is None:
            return
        if place.running or place.waiting:
            raise Conflict("engine.in_use", model=name, running=place.running, waiting=len(place.waiting))
        if place.loading:
            place.loading.cancel()
            await asyncio.wait({place.loading})
        engine, place.engine = place.engine, None
        if engine:
            await engine.close()

    def loaded(self) -> list[EngineInfo]:
        return [place.engine.info() for place in self._places.values() if place.engine and place.engine.alive()]

    def waiting(self) -> dict[str, int]:
        """Requests that wait, by model."""
        return {name: len(place.waiting) for name, place in self._places.items() if place.waiting}

    async def sweep(self) -> None:
        """Unload what has been idle for too long."""
        limit = self._settings.idle_unload_s
        for name, place in list(self._places.items()):
            idle = not (place.running or place.waiting or place.loading)
            if limit and place.engine and idle and self._clock() - place.used_at >= limit:
                with suppress(Conflict):  # somebody came in between
                    await self.unload(name)

    async def close(self) -> None:
        """End every model. Safe to call twice."""
        self._closed = True
        if self._sweeper:
            self._sweeper.cancel()
        loads = [place.loading for place in self._places.values() if place.loading]
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        engines = [place.engine for place in self._places.values() if place.engine]
        self._places.clear()
        await asyncio.gather(*(engine.close() for engine in engines))

    # ---- loading ----

    async def _base(self, asked: ModelRef) -> ModelRef:
        """The model whose process answers: an adapter's base, else the model itself."""
        return await asyncio.to_thread(self._models.get, asked.base) if asked.base else asked

    async def _renew(self, asked: ModelRef, ref: ModelRef, place: _Place) -> None:
        """Unload a base that was loaded before the adapter came, once all who use it or wait for it are done."""
        while asked.base and (engine := place.engine) and isinstance(engine, Adaptable) and not engine.knows(asked):
            if place.running or place.waiting:
                place.idle.clear()
                await place.idle.wait()
            else:
                await self.unload(ref.name)

    async def _ready(self, ref: ModelRef, place: _Place, progress: Report | None) -> Engine:
        """The model's engine, loading it if need be."""
        if self._closed:
            raise EngineFailed("engine.closed", model=ref.name)
        if place.engine and place.engine.alive():
            place.used_at = self._clock()
            return place.engine
        loading = place.loading = place.loading or asyncio.create_task(self._load(ref, place), name=f"load {ref.name}")
        if progress:
            place.reports.append(progress)
        try:
            await asyncio.wait({loading})  # unlike awaiting it, this leaves the load alone when we are cancelled
        finally:
            if progress:
                place.reports.remove(progress)
        if loading.cancelled():
            raise EngineFailed("engine.closed", model=ref.name)
        return loading.result()

    async def _load(self, ref: ModelRef, place: _Place) -> Engine:
        try:
            await self._bury(place)
            self._check_crashes(ref, place)
            await asyncio.to_thread(self._check_memory, ref)

            def report(progress: Progress) -> None:
                for each in list(place.reports):
                    each(progress)

            load = self._engines.get(engine_name(ref))
            engine: Engine = await load(ref, self._settings, progress=report)
            if self._closed:
                await engine.close()
                raise EngineFailed("engine.closed", model=ref.name)
            place.engine, place.used_at = engine, self._clock()
            self._sweeper = self._sweeper or asyncio.create_task(self._sweep_for_ever(), name="unload idle models")
            return engine
        finally:
            place.loading = None

    async def _bury(self, place: _Place) -> None:
        """Put away an engine that died, and remember when."""
        dead, place.engine = place.engine, None
        if dead:
            place.crashes.append(self._clock())
            await dead.close()

    def _check_crashes(self, ref: ModelRef, place: _Place) -> None:
        """Raise EngineFailed when the model died too often of late to be started again."""
        recent = [at for at in place.crashes if self._clock() - at < CRASH_WINDOW_S]
        if len(recent) >= CRASHES:
            left = CRASH_WINDOW_S - (self._clock() - recent[0])
            values = {"times": len(recent), "seconds": max(1, round(left)), "why": place.last_words}
            raise EngineFailed("engine.keeps_crashing", model=ref.name, **values)

    def _check_memory(self, ref: ModelRef) -> None:
        """Say before loading what would not fit."""
        needed = self._models.memory(ref, self._settings.n_ctx, self._settings.n_slots).total
        available = memory().available
        if needed > available:
            raise TooLarge(
                "engine.model_too_large",
                model=ref.name,
                needed=f"{needed / 1e9:.1f}",
                available=f"{available / 1e9:.1f}",
            )

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(max(0.05, min(30.0, self._settings.idle_unload_s / 4 or 30.0)))
            try:
                await self.sweep()
            except MofangError:
                _log.exception("a model could not be unloaded")

    # ---- the queue ----

    async def _enter(self, ref: ModelRef, place: _Place, n_slots: int) -> None:
        """Take one of the model's places, waiting in order."""
        if place.running < n_slots and not place.waiting:
            place.running += 1
            return
        if len(place.waiting) >= self._settings.queue_limit:
            raise self._busy(ref, place, len(place.waiting), n_slots)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(place)  # our turn came while we were leaving: hand it on
            else:
                place.waiting.remove(turn)
            raise

    def _busy(self, ref: ModelRef, place: _Place, waiting: int, n_slots: int) -> Busy:
        """The refusal, with the time in which one of the waiting will have had its turn."""
        seconds = max(1, round(place.seconds / n_slots))
        return Busy("engine.queue_full", model=ref.name, waiting=waiting, retry_after_s=seconds)

    def _leave(self, place: _Place) -> None:
        """Give a place back: to the first who waits, who then holds it."""
        place.used_at = self._clock()
        while place.waiting:
            turn = place.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        place.running -= 1
        if not place.running:
            place.idle.set()


def _adapted(engine: Engine, asked: ModelRef) -> Engine:
    """What answers for `asked`: the engine itself, or the engine with an adapter."""
    if not asked.base:
        return engine
    if not isinstance(engine, Adaptable):
        raise Invalid("engine.takes_no_adapters", param="model", model=asked.name, engine=engine.info().engine)
    return engine.adapted(asked)
