"""The models in memory: loaded on demand, shared by requests, queued for, unloaded when idle, restarted after a crash.

A model has as many places as its engine has slots; whoever finds none waits (engine.line), and when too many wait the
next one is refused (Busy). One load at a time for a model, whoever asked; it goes on when the one who asked leaves.
All models share one budget of memory (engine.room): for one more, those that were idle longest leave. Unloading a
model that answers somebody is refused (Conflict): it would break an answer that was promised. A model that is to be
loaded anew is loaded beside itself: whoever asks from then on is answered by the new one, and the one before leaves with
the last of its own.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from mofang.engine import ENGINES, engine_name, room
from mofang.engine.autotune import AutoTuner
from mofang.engine.base import CALLER, Adaptable, Engine, EngineInfo, Kind, Scalable
from mofang.engine.line import Full, Line
from mofang.errors import Busy, Conflict, EngineFailed, Invalid, MofangError, TooLarge
from mofang.messages import Progress
from mofang.models.base import MemoryEstimate, ModelRef
from mofang.platform import held, memory
from mofang.registry import Registry
from mofang.settings import Settings
from mofang.strings import say

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

    def __init__(self, limit: int, pinned: bool) -> None:
        self.engine: Engine | None = None
        self.loading: asyncio.Task[Engine] | None = None
        self.closing: asyncio.Task[None] | None = None
        self.reports: list[Report] = []
        self.line = Line(limit)
        self.pinned = pinned
        self.keep_s: float | None = None
        """How long to stay when idle, as the last request that cared wished it; None: as the settings say."""
        self.needs = 0
        """Bytes of memory that it was let in with; 0 once it has left."""
        self.notices: tuple[str, ...] = ()
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
        self.follows: _Place | None = None
        """Whom it is to come after; that one stays until it has."""

    def heir(self) -> "_Place":
        """An empty place that is to follow this one."""
        place = _Place(self.line.limit, self.pinned)
        place.seconds, place.follows = self.seconds, self
        return place

    @property
    def in_use(self) -> bool:
        return not self.line.idle or (self.loading is not None and not self.loading.done())


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
        self._beside: list[tuple[str, _Place]] = []
        """By the names of their models: those that are loaded to follow another one, and those that were followed and
        still answer."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._replacing = asyncio.Lock()
        """Held while a model is loaded beside itself."""
        self._deciding = asyncio.Lock()
        """Held while somebody decides who fits into memory."""
        self._sweeper: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        """A model's time to leave may have come nearer."""
        self._closed = False
        self._asked_at = clock()
        """When somebody last asked something."""
        self._tuner = AutoTuner(settings, self._idle_s, self._renew_idle)

    @asynccontextmanager
    async def use(
        self, name: str, kind: Kind, *, progress: Report | None = None, keep_alive: float | None = None
    ) -> AsyncIterator[Engine]:
        """The loaded model for the length of the block. "auto" is the default of that kind.

        `keep_alive`: seconds that it stays in memory afterwards, if nobody asks; infinity: for ever; None: as before.
        Raises NotFound, Invalid (wrong kind), Busy, TooLarge (does not fit memory), MissingSystem, EngineFailed.
        """
        asked = await asyncio.to_thread(self._models.resolve, name, kind)
        ref = await self._base(asked)
        async with self._place(ref.name).door:
            await self._renew(asked, ref)
        place = self._place(ref.name)  # another one, if the model was loaded anew while we waited
        await self._enter(ref, place, progress)
        began = self._clock()
        try:
            # It may have died while we waited.
            yield adapted(await self._ready(ref, place, progress), asked)
        except EngineFailed as error:
            place.last_words = str(error.values.get("why", ""))
            raise
        finally:
            place.seconds += (self._clock() - began - place.seconds) / 4
            self._touch(place, keep_alive)
            place.line.leave()
            if place.line.idle:
                place.idle.set()

    async def load(
        self,
        name: str,
        kind: Kind | None = None,
        *,
        pin: bool | None = None,
        keep_alive: float | None = None,
        reload: bool = False,
        replicas: tuple[int, int] | None = None,
    ) -> EngineInfo:
        """Load a model without using it. `pin`: whether it stays in memory until it is unloaded; None: as before.

        `reload`: as it lies on disk now, also where it is in memory; answers under way end as they began. `replicas`:
        how many copies, and how many at most when there is much to do; Invalid where there is one.
        """
        if kind:
            ref = await asyncio.to_thread(self._models.resolve, name, kind)
        else:
            ref = await asyncio.to_thread(self._models.get, name)
        ref = await self._base(ref)
        engine = await (self._renewed(ref) if reload else self._ready(ref, self._place(ref.name), None))
        place = self._place(ref.name)
        if replicas:
            await _scale(engine, *replicas)
            place.line.open(engine.info().n_slots)
        place.pinned = place.pinned if pin is None else pin
        self._touch(place, keep_alive)
        return self._info(place, engine)

    async def unload(self, name: str) -> None:
        """Take a model out of memory and unpin it; nothing happens when it is not there.

        Raises Conflict while it is in use.
        """
        place = self._places.get(name)
        if place is None:
            return
        if place.line.running or (place.line.waiting and not place.loading):
            raise Conflict("engine.in_use", model=name, running=place.line.running, waiting=place.line.waiting)
        place.pinned = False
        loads = {one.loading for one in self._all(name) if one.loading}
        for load in loads:
            load.cancel()
        if loads:
            await asyncio.wait(loads)
        await self._empty(place)

    def loaded(self) -> list[EngineInfo]:
        return [
            self._info(place, place.engine) for place in self._places.values() if place.engine and place.engine.alive()
        ]

    def waiting(self) -> dict[str, int]:
        """Requests that wait, by model."""
        waiting = {name: sum(place.line.waiting for place in self._all(name)) for name in self._places}
        return {name: count for name, count in waiting.items() if count}

    async def sweep(self) -> None:
        """Unload what has been idle for long enough."""
        for place in list(self._places.values()):
            due = self._due(place)
            if due is not None and due <= 0:
                await self._empty(place)

    async def close(self) -> None:
        """End every model. Safe to call twice."""
        self._closed = True
        await self._tuner.close()
        if self._sweeper:
            self._sweeper.cancel()
        places = [*self._places.items(), *self._beside]
        tasks = [*(place.loading for _, place in places if place.loading), *self._leaving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._places.clear()
        for name, place in places:
            place.line.fail(EngineFailed("engine.closed", model=name))
        await asyncio.gather(*(self._empty(place) for _, place in places))

    # ---- what is known of a place ----

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            self._places[name] = _Place(self._settings.queue_limit, name in self._settings.pinned)
        return self._places[name]

    def _all(self, name: str) -> list[_Place]:
        """Its place, and those beside it."""
        return [place for one, place in [*self._places.items(), *self._beside] if one == name]

    def _touch(self, place: _Place, keep_alive: float | None) -> None:
        """Somebody used it just now, and may have said how long it should stay."""
        place.used_at = self._asked_at = self._clock()
        place.keep_s = place.keep_s if keep_alive is None else keep_alive
        self._look.set()

    def _due(self, place: _Place) -> float | None:
        """Seconds until it is to leave memory, below 0 when that is over; None: not while things are as they are."""
        keep = place.keep_s if place.keep_s is not None else self._settings.idle_unload_s or math.inf
        if not place.engine or place.in_use or place.pinned or keep == math.inf:
            return None
        return place.used_at + keep - self._clock()

    def _info(self, place: _Place, engine: Engine) -> EngineInfo:
        due = self._due(place)
        return replace(
            engine.info(),
            estimated_bytes=place.needs,
            pinned=place.pinned,
            running=place.line.running,
            waiting=place.line.waiting,
            idle_s=0.0 if place.line.running else self._clock() - place.used_at,
            unloads_in_s=None if due is None else max(0.0, due),
            notices=place.notices,
        )

    # ---- tuning in idle moments ----

    def _idle_s(self) -> float:
        """Seconds for which nobody has been asking anything."""
        busy = any(place.in_use for place in self._places.values())
        return 0.0 if busy else self._clock() - self._asked_at

    async def _renew_idle(self, name: str) -> None:
        """Load a model anew, as it was tuned, if it is there and nobody uses it; who comes meanwhile waits a moment."""
        place = self._places.get(name)
        if place and place.engine and not place.in_use:
            pinned, keep_s = place.pinned, place.keep_s
            with suppress(Conflict):
                await self.unload(name)
                await self.load(name)
                place.pinned, place.keep_s = pinned, keep_s

    # ---- the queue ----

    async def _enter(self, ref: ModelRef, place: _Place, progress: Report | None) -> None:
        """Take one of the model's places, waiting for the model and for our turn."""
        loading = None if place.line.n_slots else self._start_loading(ref, place)
        with _hearing(place, progress if loading else None):
            try:
                await place.line.enter(CALLER.get())
            except Full as full:
                seconds = max(1, round(place.seconds / (place.line.n_slots or self._settings.least_slots)))
                waiting = place.line.waiting
                raise Busy("engine.queue_full", model=ref.name, waiting=waiting, retry_after_s=seconds) from full

    # ---- loading ----

    async def _base(self, asked: ModelRef) -> ModelRef:
        """The model whose process answers: an adapter's base, else the model itself."""
        return await asyncio.to_thread(self._models.get, asked.base) if asked.base else asked

    async def _renew(self, asked: ModelRef, ref: ModelRef) -> None:
        """Unload a base that was loaded before the adapter came, once all who use it or wait for it are done."""
        while asked.base:
            place = self._place(ref.name)
            engine = place.engine
            if engine is None or not isinstance(engine, Adaptable) or engine.knows(asked):
                return
            if place.line.idle:
                await self.unload(ref.name)
            else:
                await _left(place)

    async def _renewed(self, ref: ModelRef) -> Engine:
        """A newly loaded engine for all who come from now on. Those before them are answered by the one that is there,
        which leaves with the last of them.

        Where memory does not hold both, an idle one leaves first. Raises what a load raises; then, but for that case, all
        is as it was.
        """
        async with self._replacing:
            before = self._place(ref.name)
            if before.engine is None:
                return await self._ready(ref, before, None)
            heir = before.heir()
            self._beside.append((ref.name, heir))
            try:
                engine = await self._ready(ref, heir, None)
            except TooLarge:
                if before.in_use:
                    raise
                await self._empty(before)
                return await self._ready(ref, before, None)
            except BaseException:
                if heir.loading:
                    heir.loading.cancel()
                self._see_off(ref.name, heir)
                raise
            finally:
                self._beside.remove((ref.name, heir))
            heir.follows, heir.keep_s, self._places[ref.name] = None, before.keep_s, heir
            self._see_off(ref.name, before)
            return engine

    def _see_off(self, name: str, place: _Place) -> None:
        """Empty a place that nobody enters any more, once all who are there have left."""

        async def leave() -> None:
            while not place.line.idle:
                await _left(place)
            await self._empty(place)
            self._beside.remove((name, place))

        self._beside.append((name, place))
        task = asyncio.create_task(leave(), name=f"see off {name}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _ready(self, ref: ModelRef, place: _Place, progress: Report | None) -> Engine:
        """The model's engine, loading it if need be."""
        if place.engine and place.engine.alive() and not self._closed:
            return place.engine
        loading = self._start_loading(ref, place)
        with _hearing(place, progress):
            await asyncio.wait({loading})  # unlike awaiting it, this leaves the load alone when we are cancelled
        if loading.cancelled():
            raise EngineFailed("engine.closed", model=ref.name)
        return loading.result()

    def _start_loading(self, ref: ModelRef, place: _Place) -> "asyncio.Task[Engine]":
        """The load that is under way, or a new one. Whoever waits in line hears how it ended."""
        if self._closed:
            raise EngineFailed("engine.closed", model=ref.name)

        def ended(task: "asyncio.Task[Engine]") -> None:
            place.loading = None
            error = EngineFailed("engine.closed", model=ref.name) if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                place.line.fail(error)

        if place.loading is None:
            place.loading = asyncio.create_task(self._load(ref, place), name=f"load {ref.name}")
            place.loading.add_done_callback(ended)
        return place.loading

    async def _load(self, ref: ModelRef, place: _Place) -> Engine:
        await self._bury(place)
        self._check_crashes(ref, place)
        wanted = self._settings.n_slots or await asyncio.to_thread(self._tuner.n_slots, ref)
        n_slots = await self._make_room(ref, place, wanted)

        def report(progress: Progress) -> None:
            for each in list(place.reports):
                each(progress)

        load = self._engines.get(engine_name(ref))
        settings = self._settings.model_copy(update={"n_slots": n_slots})
        try:
            engine: Engine = await load(ref, settings, progress=report)
        except BaseException:
            place.needs = 0
            raise
        place.engine, place.used_at, place.keep_s = engine, self._clock(), None
        place.line.open(engine.info().n_slots)
        self._tuner.loaded(ref)
        self._sweeper = self._sweeper or asyncio.create_task(self._sweep_for_ever(), name="unload idle models")
        return engine

    async def _bury(self, place: _Place) -> None:
        """Put away an engine that died, and remember when; wait for one that is on its way out."""
        if place.engine:
            place.crashes.append(self._clock())
        await self._empty(place)

    async def _empty(self, place: _Place) -> None:
        """Close the engine. That goes on when the one who asked leaves, and what it held counts until it is done."""
        engine, place.engine = place.engine, None
        place.line.open(0)
        if engine:
            place.closing = asyncio.create_task(self._close(place, engine), name=f"close {engine.info().model}")
        if closing := place.closing:
            await asyncio.wait({closing})
            closing.result()

    async def _close(self, place: _Place, engine: Engine) -> None:
        try:
            await engine.close()
        finally:
            place.needs, place.closing = 0, None

    def _check_crashes(self, ref: ModelRef, place: _Place) -> None:
        """Raise EngineFailed when the model died too often of late to be started again."""
        recent = [at for at in place.crashes if self._clock() - at < CRASH_WINDOW_S]
        if len(recent) >= CRASHES:
            left = CRASH_WINDOW_S - (self._clock() - recent[0])
            values = {"times": len(recent), "seconds": max(1, round(left)), "why": place.last_words}
            raise EngineFailed("engine.keeps_crashing", model=ref.name, **values)

    # ---- memory ----

    async def _make_room(self, ref: ModelRef, place: _Place, wanted: int) -> int:
        """See that the model fits, others leaving for it; the number of its slots.

        Where nobody chose that number, it is what fits once there is room for one, and a notice says when that is
        less than `wanted`. Raises TooLarge.
        """
        async with self._deciding:
            needs = await asyncio.to_thread(self._needs, ref, wanted)
            least = min(needs.values())
            guests = self._guests(place)
            leaving = room.leavers(least, self._left(guests), guests)
            for name in leaving or ():
                other = self._places[name]
                if not (other.in_use or other.pinned):  # as it was before we began to wait
                    _log.info("%s leaves memory for %s", name, ref.name)
                    await self._empty(other)
            left = self._left(self._guests(place))
            if least > left:
                raise self._too_large(ref, least, left, place)
            n_slots = max(number for number, bytes_ in needs.items() if bytes_ <= left)
            place.needs = needs[n_slots]
        short = len(needs) > n_slots and ref.kind in ("chat", "base")
        place.notices = (say("engine.few_slots", n_slots=n_slots, wanted=wanted),) if short else ()
        return n_slots

    def _needs(self, ref: ModelRef, wanted: int) -> dict[int, int]:
        """Bytes of memory by the number of slots, as far as there is a choice."""
        numbers = (wanted,) if self._settings.n_slots else range(1, wanted + 1)
        return {number: self._models.memory(ref, self._settings.n_ctx, number).total for number in numbers}

    def _guests(self, newcomer: _Place) -> list[room.Guest]:
        """Who takes memory beside the newcomer."""
        return [
            room.Guest(
                name,
                place.needs,
                held(place.engine.info().pid if place.engine else None),
                stays=place.in_use or place.pinned or place is newcomer.follows or place not in self._places.values(),
                used_at=place.used_at,
            )
            for name, place in [*self._places.items(), *self._beside]
            if place is not newcomer and (place.engine or place.needs)
        ]

    def _left(self, guests: Sequence[room.Guest]) -> int:
        return room.free(memory(), self._settings.memory_budget_mb * 1_000_000, guests)

    def _too_large(self, ref: ModelRef, needed: int, left: int, place: _Place) -> TooLarge:
        """The refusal, with what holds the memory."""
        guests = self._guests(place)
        values = {"model": ref.name, "needed": _gb(needed), "available": _gb(max(0, left))}
        if not guests:
            return TooLarge("engine.model_too_large", **values)
        holders = ", ".join(f"{guest.name} {_gb(guest.bytes)} GB" for guest in guests)
        return TooLarge("engine.no_room", **values, holders=holders)

    async def _sweep_for_ever(self) -> None:
        while True:
            self._look.clear()
            try:
                await self.sweep()
            except MofangError:
                _log.exception("a model could not be unloaded")
            dues = [due for place in self._places.values() if (due := self._due(place)) is not None]
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), max(0.02, min(dues)) if dues else None)


@contextmanager
def _hearing(place: _Place, progress: Report | None) -> Iterator[None]:
    """`progress` hears of the load for the length of the block."""
    if progress is None:
        yield
        return
    place.reports.append(progress)
    try:
        yield
    finally:
        place.reports.remove(progress)


def adapted(engine: Engine, asked: ModelRef) -> Engine:
    """What answers for `asked`: the engine itself, or the engine with an adapter."""
    if not asked.base:
        return engine
    if not isinstance(engine, Adaptable):
        raise Invalid("engine.takes_no_adapters", param="model", model=asked.name, engine=engine.info().engine)
    return engine.adapted(asked)


async def _left(place: _Place) -> None:
    """Wait until the next time that nobody is there."""
    place.idle.clear()
    await place.idle.wait()


async def _scale(engine: Engine, replicas: int, max_replicas: int) -> None:
    if not isinstance(engine, Scalable):
        raise Invalid("engine.one_copy", param="replicas", model=engine.info().model)
    await engine.scale(replicas, max_replicas)


def _gb(bytes_: int) -> str:
    return f"{bytes_ / 1e9:.1f}"
