"""What tuning measures with: a model in real llama.cpp servers, doing each kind of work (mofang.engine.tune)."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from mofang.engine.agreement import Agreement, agreement
from mofang.engine.base import ChatEngine
from mofang.engine.llama.engine import start
from mofang.engine.llama.provider import Provider
from mofang.engine.profile import Choices
from mofang.engine.texts import passages
from mofang.errors import MofangError
from mofang.messages import Delta, Sampling, Timings
from mofang.models.base import ModelRef
from mofang.settings import Settings

CONTEXT, FRESH, ANSWER, QUOTED = 512, 256, 20, 40
"""Tokens of: the context that answers are measured at; a prompt; an answer; an answer that quotes."""
FORCED = 60
"""Tokens that two are led along, to see whether they expect the same."""
SOURCE, COPIED = 96, 32
"""Tokens of a text, and of its beginning that is said again before an answer is measured: models take the hint, and go
on quoting."""
CROWD_CONTEXT = 64
"""Tokens that each of several answers at once goes on from."""
KIND_SLOTS = {"answer": 0, "prompt": 1, "quoting": 2}
"""Each kind of work has a slot of its own, so that its context is read once."""


class Servers:
    """mofang.engine.tune.Arena over llama.cpp servers of one model."""

    def __init__(self, ref: ModelRef, config: Settings, provider: Provider) -> None:
        self._ref = ref
        self._config = config.model_copy(update={"n_ctx": 2 * CONTEXT, "save_slots": False})
        self._provider = provider

    @asynccontextmanager
    async def enter(self, choices: Choices) -> AsyncIterator["Loaded"]:
        config = self._config.model_copy(update={"n_slots": choices.n_slots or len(KIND_SLOTS)})
        engine = await start(
            self._ref, config, self._provider, choices, progress=lambda progress: None, log_name="tune"
        )
        try:
            yield await Loaded.of(cast(ChatEngine, engine))
        finally:
            await engine.close()


class Loaded:
    """mofang.engine.tune.Contestant over an engine."""

    def __init__(self, engine: ChatEngine, ids: list[int]) -> None:
        self.engine = engine
        self._ids = ids
        self._fresh = 0
        self._works = {"prompt": self._prompt, "answer": self._answer, "quoting": self._quoting}

    @classmethod
    async def of(cls, engine: ChatEngine) -> "Loaded":
        ids: list[int] = []
        while len(ids) < 2 * CONTEXT:
            ids += await engine.tokenize("\n\n".join(passages()))
        return cls(engine, ids)

    async def measure(self, kind: str) -> float:
        return await self._works[kind]()

    async def together(self, count: int) -> float:
        async def answer(slot: int) -> int:
            start = 31 * slot
            last = await self._last(self._ids[start : start + CROWD_CONTEXT], ANSWER, slot=slot)
            return last.usage.completion_tokens if last.usage else 0

        began = time.perf_counter()
        said = await asyncio.gather(*(answer(slot) for slot in range(count)))
        return sum(said) / (time.perf_counter() - began)

    async def agrees(self, other: object) -> Agreement:
        assert isinstance(other, Loaded)
        # A text that neither has in its cache: what is there was rounded by the batch that it was computed in.
        ids = (await self.engine.tokenize(passages()[2]))[: FORCED + 8]
        return await agreement(other.engine, self.engine, ids)

    async def _prompt(self) -> float:
        last = await self._last(self._new(FRESH), 1, slot=KIND_SLOTS["prompt"], cached=False)
        return _timings(last).prompt_per_second

    def _new(self, n_tokens: int) -> list[int]:
        """A text that has not been measured with: speculation knows an old one by heart."""
        self._fresh += 1
        start = 37 * self._fresh % (len(self._ids) - n_tokens)
        return self._ids[start : start + n_tokens]

    async def _answer(self) -> float:
        """The continuation of a long text."""
        last = await self._last(self._ids[:CONTEXT], ANSWER, slot=KIND_SLOTS["answer"])
        return _timings(last).predicted_per_second

    async def _quoting(self) -> float:
        """A text that stands in the prompt, said again: what an answer from documents does."""
        source = self._new(SOURCE)
        last = await self._last([*source, *source[:COPIED]], QUOTED, slot=KIND_SLOTS["quoting"], cached=False)
        return _timings(last).predicted_per_second

    async def _last(self, prompt: list[int], n: int, *, slot: int, cached: bool = True) -> Delta:
        """The last piece of an answer: what the server counted and measured."""
        options = {"id_slot": slot, "cache_prompt": cached, "ignore_eos": True}
        last = Delta()
        async for delta in self.engine.complete(prompt, Sampling(max_tokens=n, temperature=0.0, options=options)):
            last = delta
        return last


def _timings(last: Delta) -> Timings:
    if last.timings is None:
        raise MofangError("engine.no_timings")
    return last.timings
