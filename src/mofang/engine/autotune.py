"""Tunes a model briefly by itself, in an idle moment after its first load, and says so.

A tuning that somebody's request meets is broken off and tried again later: nobody waits for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mofang.engine import profile, tune
from mofang.engine.llama.provider import tuned
from mofang.errors import MofangError
from mofang.models.base import ModelRef
from mofang.platform import memory
from mofang.settings import Settings

_log = logging.getLogger(__name__)

IDLE_S = 20.0
"""So long nobody must have asked anything."""
LOOK_S = 0.2
SPARE = 3
"""Memory that must be free, as a multiple of the model's size: two servers are loaded beside the one that answers."""

Idle = Callable[[], float]
"""Seconds for which nobody has been asking."""


class AutoTuner:
    """One for a pool. `reload` is called with a model's name when it is to be loaded anew, by its profile."""

    def __init__(self, settings: Settings, idle: Idle, reload: Callable[[str], Awaitable[None]]) -> None:
        self._settings = settings
        self._idle = idle
        self._reload = reload
        self._seen: set[str] = set()
        self._queue: asyncio.Queue[ModelRef] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.tuning = ""
        """The model that is being measured now."""

    def loaded(self, ref: ModelRef) -> None:
        """A model was loaded. Cheap; a model is looked at once in a process."""
        wanted = self._settings.auto_tune and ref.format == "gguf" and ref.kind in ("chat", "base")
        if not wanted or ref.name in self._seen:
            return
        self._seen.add(ref.name)
        self._queue.put_nowait(ref)
        self._task = self._task or asyncio.create_task(self._work(), name="tune models")

    def n_slots(self, ref: ModelRef) -> int:
        """How many answers at once suit this model here, as far as it has been measured. Reads a small file."""
        if ref.format != "gguf" or not ref.path.is_file():
            return profile.AUTO_SLOTS
        try:
            _, known = tuned(self._settings, ref)
        except MofangError:  # no build to run it with: that is told when it is started
            return profile.AUTO_SLOTS
        return (known and known.choices.n_slots) or profile.AUTO_SLOTS

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _work(self) -> None:
        while True:
            ref = await self._queue.get()
            try:
                if not await self._known(ref):
                    await self._tune(ref)
            except MofangError as error:
                _log.warning("%s was not tuned: %s", ref.name, error)
            except Exception:
                _log.exception("%s was not tuned", ref.name)
            finally:
                self.tuning = ""

    async def _known(self, ref: ModelRef) -> bool:
        return (await asyncio.to_thread(tuned, self._settings, ref))[1] is not None

    async def _tune(self, ref: ModelRef) -> None:
        while True:
            while self._idle() < IDLE_S or memory().available < SPARE * ref.size_bytes:  # noqa: ASYNC110 (a clock)
                await asyncio.sleep(LOOK_S)
            found = await self._undisturbed(ref)
            if found is not None:
                break
        _log.info("%s was tuned in an idle moment (%.0f s): %s", ref.name, found.seconds, found.choices.words() or "-")
        if found.choices.words():
            await self._reload(ref.name)

    async def _undisturbed(self, ref: ModelRef) -> profile.Profile | None:
        """The profile; None when somebody came and it was broken off."""
        _log.info("%s is being tuned: nobody has asked anything for %.0f s", ref.name, IDLE_S)
        self.tuning = ref.name
        limit = tune.BRIEF * tune.budget(ref)
        work = asyncio.create_task(tune.tune_model(ref, self._settings, budget_s=limit, brief=True))
        try:
            while not (await asyncio.wait({work}, timeout=LOOK_S))[0]:
                if self._idle() < IDLE_S:
                    _log.info("the tuning of %s was broken off: somebody asked", ref.name)
                    return None
            return work.result()
        finally:
            self.tuning = ""
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
