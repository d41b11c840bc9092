"""Between the routes and the models: every use of a model by a request passes here, whatever the route.

So the key's models and limits hold on all of them, and what is measured is complete. What the server does of its own
(a knowledge base's embedder) goes to the pool directly.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from mofang.engine.base import Engine, EngineInfo, Kind
from mofang.errors import Busy, EngineFailed, Forbidden
from mofang.server.journal import Journal
from mofang.server.limits import Meter
from mofang.server.metrics import Metrics, process
from mofang.server.rooms import Engines, Models, Report
from mofang.server.visit import Visit, current


class Gate:
    """`Engines` for the routes. What it does not know itself (a pool's further abilities) it hands through."""

    def __init__(self, engines: Engines, models: Models, metrics: Metrics, journal: Journal, meter: Meter) -> None:
        self._engines = engines
        self._models = models
        self._metrics = metrics
        self._journal = journal
        self.meter = meter
        self.busy: Counter[int | str] = Counter()
        """Requests that hold a place, by `process`."""
        self.n_open = 0
        """Uses of a model that have begun and not ended, waiting ones too."""
        self._crashed: dict[str, int] = {}
        """Of each model, the last process that was seen dead, or the engine's id where it has none of its own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engines, name)

    async def admit(self, name: str, kind: Kind) -> None:
        """Raise what `use` would raise of a key (Forbidden, Busy), before anything is begun."""
        visit = current()
        if visit.key is None:
            return
        await self._permit(visit, name, kind)
        if not visit.counted:
            with self._counting_refusals(visit):
                self.meter.check(visit.key)

    @asynccontextmanager
    async def use(
        self, name: str, kind: Kind, *, progress: Report | None = None, **options: Any
    ) -> AsyncIterator[Engine]:
        visit = current()
        await self._permit(visit, name, kind)
        self._begin(visit)
        try:
            async with self._engines.use(name, kind, progress=progress, **options) as engine:
                info = engine.info()
                visit.model = info.model
                self.busy[process(info)] += 1
                try:
                    yield engine
                except EngineFailed:
                    self._note_crash(info, engine)
                    raise
                finally:
                    self.busy[process(info)] -= 1
        finally:
            self._end(visit)

    async def load(self, name: str, kind: Kind | None = None, **options: Any) -> EngineInfo:
        await self._permit(current(), name, kind)
        return await self._engines.load(name, kind, **options)

    async def unload(self, name: str) -> None:
        await self._permit(current(), name, None)
        await self._engines.unload(name)

    def loaded(self) -> Sequence[EngineInfo]:
        return self._engines.loaded()

    def waiting(self) -> dict[str, int]:
        return self._engines.waiting()

    async def close(self) -> None:
        await self._engines.close()

    # ---- one visit ----

    async def _permit(self, visit: Visit, name: str, kind: Kind | None) -> None:
        """A key's models are meant by their own names: "auto" is allowed where the model that it means is."""
        if visit.key is None or visit.key.permits(name):
            return
        meant = name
        if kind is not None:
            meant = (await asyncio.to_thread(self._models.resolve, name, kind)).name
        self.check_permitted(meant)

    def check_permitted(self, model: str) -> None:
        """Raise Forbidden when the request's key may not use `model`, a model's own name."""
        key = current().key
        if key is not None and not key.permits(model):
            self._metrics.refused.labels("model_denied", key.id).inc()
            raise Forbidden("keys.model_denied", id=key.id, model=model, models=", ".join(key.models))

    def _begin(self, visit: Visit) -> None:
        """A request counts once, however many models it uses."""
        if visit.uses == 0 and visit.key is not None:
            with self._counting_refusals(visit):
                self.meter.begin(visit.key, again=visit.counted)
            visit.counted = True
        visit.uses += 1
        self.n_open += 1

    @contextmanager
    def _counting_refusals(self, visit: Visit) -> Iterator[None]:
        try:
            yield
        except Busy as refusal:
            visit.counted = True  # its answer carries the limits' headers
            assert visit.key is not None
            self._metrics.refused.labels(refusal.code, visit.key.id).inc()
            raise

    def _end(self, visit: Visit) -> None:
        visit.uses -= 1
        self.n_open -= 1
        if visit.uses:
            return
        tally = visit.settle()
        if visit.key is not None:
            self.meter.end(visit.key, tally.usage.prompt_tokens + tally.usage.completion_tokens)
        if visit.model is not None:
            self._metrics.answered(visit.model, visit, tally)
        if visit.over:  # a generation: its request was answered long ago
            self._journal.answer(visit)

    def _note_crash(self, info: EngineInfo, engine: Engine) -> None:
        """Several requests may see one crash."""
        dead = info.pid or id(engine)
        if not engine.alive() and self._crashed.get(info.model) != dead:
            self._crashed[info.model] = dead
            self._metrics.crashes.labels(info.model).inc()
