"""The pool with engines that need no model, and a clock of its own."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mofang.engine import pool as pool_module
from mofang.engine import room
from mofang.engine.base import CALLER
from mofang.engine.echo import EchoEngine
from mofang.engine.pool import Pool
from mofang.engine.room import Guest
from mofang.errors import Busy, Conflict, EngineFailed, Invalid, TooLarge
from mofang.messages import Delta, Message, Progress, Sampling
from mofang.models.base import MemoryEstimate, ModelRef
from mofang.platform import Held, Memory
from mofang.settings import Settings
from mofang.settings import load as load_settings

SAY = [Message("user", "你好🙂世界")]


@dataclass
class Models:
    """Every name is an echo model whose manifest is `echo`."""

    echo: dict[str, Any] = field(default_factory=dict)
    needs: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes by name, where a model needs something else than `needs`; as much again for each slot."""

    def get(self, name: str) -> ModelRef:
        return ModelRef(name, Path(), "gguf", "chat", 0, manifest={"engine": "echo", "echo": self.echo})

    def resolve(self, name: str, kind: str) -> ModelRef:
        return self.get(name)

    def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate:
        total = self.sizes[ref.name] * (1 + n_slots) if ref.name in self.sizes else self.needs
        return MemoryEstimate(total, 0, 0, total)


class Engines:
    """A registry whose loads are counted, and wait for `gate` when there is one."""

    def __init__(self) -> None:
        self.loads = 0
        self.gate: asyncio.Event | None = None
        self.made: list[EchoEngine] = []
        self.fault: Exception | None = None
        self.slots: list[int] = []
        """The slots that each load was told to make."""

    def get(self, name: str) -> Callable[..., Any]:
        async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> EchoEngine:
            self.loads += 1
            self.slots.append(settings.n_slots)
            progress(Progress("load", 1, 2, "bytes"))
            if self.gate:
                await self.gate.wait()
            if self.fault:
                raise self.fault
            self.made.append(EchoEngine(ref, settings))
            return self.made[-1]

        return load


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    pool: Pool
    models: Models
    engines: Engines
    clock: Clock


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    models, engines, clock = Models(echo={"n_slots": 2}), Engines(), Clock()
    settings = load_settings(queue_limit=3, idle_unload_s=900)
    pool = Pool(settings, models, engines=engines, clock=clock)  # type: ignore[arg-type]
    yield Rig(pool, models, engines, clock)
    await pool.close()


async def _answer(pool: Pool, name: str = "m") -> str:
    async with pool.use(name, "chat") as engine:
        return "".join([delta.content async for delta in engine.chat(SAY, Sampling())])  # type: ignore[attr-defined]


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.005)


async def test_ten_at_once_are_one_load_and_all_hear_of_it(rig: Rig) -> None:
    rig.engines.gate = asyncio.Event()
    heard: list[Progress] = []

    async def use(progress: Callable[[Progress], None] | None) -> str:
        async with rig.pool.use("m", "chat", progress=progress) as engine:
            return engine.info().model

    tasks = [asyncio.create_task(use(heard.append)) for _ in range(3)]
    await _settle()
    assert rig.pool.loaded() == []
    rig.engines.gate.set()
    assert await asyncio.gather(*tasks) == ["m", "m", "m"]
    assert rig.engines.loads == 1
    assert [progress.done for progress in heard] == [1, 1, 1]
    assert [info.model for info in rig.pool.loaded()] == ["m"]


async def test_those_who_wait_for_a_load_are_bounded_too(rig: Rig) -> None:
    rig.engines.gate = asyncio.Event()
    tasks = [asyncio.create_task(_answer(rig.pool)) for _ in range(3)]
    await _settle()
    with pytest.raises(Busy):
        await _answer(rig.pool)
    rig.engines.gate.set()
    assert await asyncio.gather(*tasks) == ["你好🙂世界"] * 3


async def test_a_load_goes_on_when_the_one_who_asked_leaves(rig: Rig) -> None:
    rig.engines.gate = asyncio.Event()
    first = asyncio.create_task(_answer(rig.pool))
    second = asyncio.create_task(_answer(rig.pool))
    await _settle()
    first.cancel()
    await _settle()
    rig.engines.gate.set()
    assert await second == "你好🙂世界"
    assert rig.engines.loads == 1


async def test_a_failed_load_is_told_to_all_and_tried_again(rig: Rig) -> None:
    rig.engines.fault = EngineFailed("engine.load_failed", model="m", why="坏文件", log="x")
    results = await asyncio.gather(_answer(rig.pool), _answer(rig.pool), return_exceptions=True)
    assert [getattr(result, "code", result) for result in results] == ["load_failed"] * 2
    rig.engines.fault = None
    assert await _answer(rig.pool) == "你好🙂世界"


async def test_places_are_given_in_order_and_the_queue_is_bounded(rig: Rig) -> None:
    order: list[int] = []
    hold = [asyncio.Event() for _ in range(5)]

    async def use(number: int) -> None:
        async with rig.pool.use("m", "chat"):
            order.append(number)
            await hold[number].wait()

    await rig.pool.load("m")
    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(use(number)))
        await _settle()
    assert order == [0, 1]
    assert rig.pool.waiting() == {"m": 3}
    with pytest.raises(Busy) as caught:
        await _answer(rig.pool)
    assert caught.value.status == 429 and caught.value.retry_after_s >= 1
    hold[1].set()
    await _settle()
    assert order == [0, 1, 2]
    tasks[3].cancel()  # who leaves the queue does not hold up the next
    hold[0].set()
    await _settle()
    assert order == [0, 1, 2, 4]
    for event in hold:
        event.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert rig.pool.waiting() == {}
    assert await _answer(rig.pool) == "你好🙂世界"


async def test_a_turn_given_to_one_who_leaves_is_handed_on(rig: Rig) -> None:
    rig.models.echo["n_slots"] = 1
    hold = asyncio.Event()

    async def use() -> None:
        async with rig.pool.use("m", "chat"):
            await hold.wait()

    await rig.pool.load("m")
    running = asyncio.create_task(use())
    await _settle()
    leaver = asyncio.create_task(_answer(rig.pool))
    await _settle()
    last = asyncio.create_task(_answer(rig.pool))
    await _settle()
    running.add_done_callback(lambda _: leaver.cancel())
    hold.set()
    assert await asyncio.wait_for(last, 5) == "你好🙂世界"


async def test_idle_models_leave_and_come_back(rig: Rig) -> None:
    await _answer(rig.pool)
    rig.clock.now += 899
    await rig.pool.sweep()
    assert rig.pool.loaded()
    rig.clock.now += 2
    await rig.pool.sweep()
    assert rig.pool.loaded() == [] and not rig.engines.made[0].alive()
    assert await _answer(rig.pool) == "你好🙂世界"
    assert rig.engines.loads == 2


async def test_a_model_in_use_stays(rig: Rig) -> None:
    async with rig.pool.use("m", "chat"):
        rig.clock.now += 5000
        await rig.pool.sweep()
        assert rig.pool.loaded()
        with pytest.raises(Conflict) as caught:
            await rig.pool.unload("m")
        assert caught.value.status == 409
    await rig.pool.unload("m")
    assert rig.pool.loaded() == []
    await rig.pool.unload("m")
    await rig.pool.unload("never there")


async def test_unloading_while_it_loads_ends_the_wait_with_an_error(rig: Rig) -> None:
    rig.engines.gate = asyncio.Event()
    waiting = asyncio.create_task(_answer(rig.pool))
    await _settle()
    await rig.pool.unload("m")
    with pytest.raises(EngineFailed) as caught:
        await waiting
    assert caught.value.code == "closed"


async def test_a_crash_is_told_once_and_the_next_request_is_answered(rig: Rig) -> None:
    rig.models.echo = {"crash_after": 2}
    said: list[Delta] = []
    with pytest.raises(EngineFailed) as caught:
        async with rig.pool.use("m", "chat") as engine:
            async for delta in engine.chat(SAY, Sampling()):  # type: ignore[attr-defined]
                said.append(delta)  # noqa: PERF401 (what came before the crash counts)
    assert caught.value.code == "engine_died" and "".join(delta.content for delta in said) == "你好"
    rig.models.echo = {}
    assert await _answer(rig.pool) == "你好🙂世界"
    assert rig.engines.loads == 2


async def test_three_crashes_in_a_minute_stop_the_restarts_for_a_while(rig: Rig) -> None:
    rig.models.echo = {"crash_after": 0}
    for _ in range(3):
        with pytest.raises(EngineFailed, match="echo"):
            await _answer(rig.pool)
        rig.clock.now += 5
    for _ in range(2):
        with pytest.raises(EngineFailed) as caught:
            await _answer(rig.pool)
        assert caught.value.code == "keeps_crashing"
        assert caught.value.values["seconds"] == 50 and "echo" in str(caught.value)
    assert rig.engines.loads == 3
    rig.models.echo = {}
    rig.clock.now += 51
    assert await _answer(rig.pool) == "你好🙂世界"


async def test_slow_crashes_do_not_stop_the_restarts(rig: Rig) -> None:
    rig.models.echo = {"crash_after": 0}
    for _ in range(6):
        with pytest.raises(EngineFailed) as caught:
            await _answer(rig.pool)
        assert caught.value.code == "engine_died"
        rig.clock.now += 31


async def test_closing_the_pool_ends_streams_with_an_error(rig: Rig) -> None:
    async with rig.pool.use("m", "chat") as engine, aclosing(engine.chat(SAY, Sampling())) as deltas:  # type: ignore
        await anext(deltas)
        await rig.pool.close()
        with pytest.raises(EngineFailed):
            async for _ in deltas:
                pass
    with pytest.raises(EngineFailed):
        await _answer(rig.pool)
    await rig.pool.close()


async def test_a_model_beyond_memory_is_refused_before_loading(rig: Rig) -> None:
    rig.models.needs = 10**15
    with pytest.raises(TooLarge) as caught:
        await _answer(rig.pool)
    assert caught.value.values["needed"] == "1000000.0"
    assert rig.engines.loads == 0


async def test_the_pool_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines()
    pool = Pool(load_settings(idle_unload_s=0.2), Models(), engines=engines)  # type: ignore[arg-type]
    await _answer(pool)
    for _ in range(100):
        if not pool.loaded():
            break
        await asyncio.sleep(0.05)
    assert pool.loaded() == []
    await pool.close()
    assert pool_module.CRASHES == 3


# ---- the memory of all together ----

GB = 10**9


def _pool(rig: Rig, **settings: Any) -> Pool:
    """A pool of its own budget over the rig's models, engines and clock."""
    return Pool(load_settings(**settings), rig.models, engines=rig.engines, clock=rig.clock)  # type: ignore[arg-type]


def _names(pool: Pool) -> list[str]:
    return [info.model for info in pool.loaded()]


async def test_for_one_more_the_longest_idle_leave_and_no_more_than_must(rig: Rig) -> None:
    rig.models.sizes = {"a": GB, "b": GB, "c": GB, "big": 2 * GB}
    pool = _pool(rig, memory_budget_mb=6000, n_slots=1)
    for name in ("a", "b", "c"):
        await _answer(pool, name)
        rig.clock.now += 10
    assert _names(pool) == ["a", "b", "c"]
    await _answer(pool, "a")
    rig.clock.now += 10
    await _answer(pool, "big")
    assert _names(pool) == ["a", "big"], "4 of 6 GB: the two that were idle longest left, not the last used"
    assert [info.estimated_bytes for info in pool.loaded()] == [2 * GB, 4 * GB]
    await pool.close()


async def test_who_is_in_use_or_pinned_stays_and_the_newcomer_hears_who_holds_the_memory(rig: Rig) -> None:
    rig.models.sizes = {"a": GB, "b": GB, "c": 2 * GB}
    pool = _pool(rig, memory_budget_mb=5000, n_slots=1, pinned_models="b, nobody")
    await pool.load("b")
    async with pool.use("a", "chat"):
        with pytest.raises(TooLarge) as caught:
            await _answer(pool, "c")
        assert caught.value.code == "no_room" and caught.value.status == 413
        assert caught.value.values["holders"] in ("a 2.0 GB, b 2.0 GB", "b 2.0 GB, a 2.0 GB")
        assert (caught.value.values["needed"], caught.value.values["available"]) == ("4.0", "1.0")
        assert sorted(_names(pool)) == ["a", "b"], "nobody left in vain"
    with pytest.raises(TooLarge):
        await _answer(pool, "c")
    assert sorted(_names(pool)) == ["a", "b"], "a alone would not have been enough"
    await pool.unload("b")
    assert await _answer(pool, "c") and _names(pool) == ["c"]
    await pool.close()


async def test_two_loads_at_once_do_not_share_the_same_room(rig: Rig) -> None:
    rig.models.sizes = {"a": GB, "b": GB}
    pool = _pool(rig, memory_budget_mb=3000, n_slots=1)
    rig.engines.gate = asyncio.Event()
    both = [asyncio.create_task(_answer(pool, name)) for name in ("a", "b")]
    await _settle()
    rig.engines.gate.set()
    results = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(getattr(result, "code", result) for result in results) == ["no_room", "你好🙂世界"]
    await pool.close()


async def test_a_failed_load_gives_its_room_back(rig: Rig) -> None:
    rig.models.sizes = {"a": GB, "b": GB}
    pool = _pool(rig, memory_budget_mb=3000, n_slots=1)
    rig.engines.fault = EngineFailed("engine.load_failed", model="a", why="坏文件", log="x")
    with pytest.raises(EngineFailed):
        await _answer(pool, "a")
    rig.engines.fault = None
    assert await _answer(pool, "b")
    await pool.close()


async def test_slots_are_as_many_as_fit_and_a_notice_says_when_they_are_few(rig: Rig) -> None:
    rig.models.sizes = {"small": GB, "large": 2 * GB}
    pool = _pool(rig, memory_budget_mb=9000)
    roomy = await pool.load("small")
    assert (rig.engines.slots, roomy.notices, roomy.estimated_bytes) == ([4], (), 5 * GB)
    tight = await pool.load("large")
    assert rig.engines.slots == [4, 1] and _names(pool) == ["small", "large"]
    assert len(tight.notices) == 1 and "1" in tight.notices[0] and "4" in tight.notices[0]
    await pool.close()


async def test_chosen_slots_are_not_made_fewer(rig: Rig) -> None:
    rig.models.sizes = {"a": GB}
    pool = _pool(rig, memory_budget_mb=3000, n_slots=3)
    with pytest.raises(TooLarge) as caught:
        await pool.load("a")
    assert caught.value.values["needed"] == "4.0"
    await pool.close()


def test_free_memory_counts_promises_and_what_comes_back() -> None:
    machine = Memory(total=32 * GB, available=10 * GB)
    untouched = Guest("a", needs=3 * GB, held=Held(resident=GB, private=GB))
    mapped = Guest("b", needs=GB, held=Held(resident=2 * GB, private=0))
    assert room.free(machine, 0, []) == 9 * GB, "1/32 stays free"
    assert room.free(machine, 0, [untouched]) == 7 * GB, "2 of its 3 GB are still to come"
    assert room.free(machine, 0, [mapped]) == 7 * GB, "its mapped file counts, though the system could take it"
    assert room.free(machine, 4 * GB, [untouched, mapped]) == -GB


# ---- how long they stay ----


async def test_the_last_wish_for_how_long_wins(rig: Rig) -> None:
    async def answer(keep_alive: float | None) -> None:
        async with rig.pool.use("m", "chat", keep_alive=keep_alive):
            pass

    async def gone_after(seconds: float) -> bool:
        rig.clock.now += seconds
        await rig.pool.sweep()
        return not rig.pool.loaded()

    await answer(60)
    assert rig.pool.loaded()[0].unloads_in_s == 60
    await answer(None)
    assert not await gone_after(59) and await gone_after(2), "who wishes nothing leaves the wish as it is"
    await answer(None)
    assert rig.pool.loaded()[0].unloads_in_s == 900, "and it ends with the model"
    await answer(math.inf)
    assert rig.pool.loaded()[0].unloads_in_s is None and not await gone_after(10**9)
    await answer(60)
    async with rig.pool.use("m", "chat"):
        assert not await gone_after(10**6), "in use"
        assert (rig.pool.loaded()[0].running, rig.pool.loaded()[0].idle_s) == (1, 0.0)
    assert not await gone_after(59)
    assert rig.pool.loaded()[0].idle_s == 59


async def test_keep_alive_0_unloads_after_the_answer_and_not_under_the_next(rig: Rig) -> None:
    async with rig.pool.use("m", "chat"):
        async with rig.pool.use("m", "chat", keep_alive=0):
            pass
        await _settle()
        assert rig.pool.loaded(), "somebody else is still answered"
    await _settle()
    assert not rig.pool.loaded() and not rig.engines.made[0].alive()


async def test_a_pinned_model_stays_until_it_is_unloaded(rig: Rig) -> None:
    info = await rig.pool.load("m", pin=True, keep_alive=0)
    assert info.pinned and info.unloads_in_s is None
    rig.clock.now += 10**6
    await rig.pool.sweep()
    assert rig.pool.loaded()
    await rig.pool.unload("m")
    await rig.pool.load("m")
    assert not rig.pool.loaded()[0].pinned
    await rig.pool.load("m", pin=True)
    assert not (await rig.pool.load("m", pin=False)).pinned


async def test_a_close_under_way_is_waited_for_before_the_next_load(rig: Rig) -> None:
    await _answer(rig.pool)
    gate, closed = asyncio.Event(), rig.engines.made[0].close

    async def slow() -> None:
        await gate.wait()
        await closed()

    rig.engines.made[0].close = slow  # type: ignore[method-assign]
    leaving = asyncio.create_task(rig.pool.unload("m"))
    await _settle()
    leaving.cancel()  # who asked leaves; the close goes on
    again = asyncio.create_task(_answer(rig.pool))
    await _settle()
    assert rig.engines.loads == 1 and not again.done()
    gate.set()
    assert await again == "你好🙂世界" and rig.engines.loads == 2


async def test_callers_are_served_in_turn(rig: Rig) -> None:
    rig.models.echo["n_slots"] = 1
    hold, order = asyncio.Event(), []
    await rig.pool.load("m")

    async def use(caller: str) -> None:
        CALLER.set(caller)
        async with rig.pool.use("m", "chat"):
            order.append(caller)
            await hold.wait()

    tasks = [asyncio.create_task(use(caller)) for caller in "xxxy"]
    await _settle()
    assert rig.pool.loaded()[0].waiting == 3
    hold.set()
    await asyncio.gather(*tasks)
    assert order == ["x", "x", "y", "x"], "one each in turn, y before the last x"


async def test_a_model_is_loaded_anew_beside_itself(rig: Rig) -> None:
    """Who came before is answered by the old engine, who comes from then on by the new one; the old one leaves with its
    last answer, and until then its memory counts."""
    await rig.pool.load("m", keep_alive=60)
    async with rig.pool.use("m", "chat") as old:
        rig.engines.gate = asyncio.Event()
        reload = asyncio.create_task(rig.pool.load("m", reload=True))
        await _settle()
        async with rig.pool.use("m", "chat") as still:
            assert still is old and rig.engines.loads == 2 and not reload.done()
        rig.engines.gate.set()
        assert (await reload).model == "m"
        async with rig.pool.use("m", "chat") as new:
            assert new is rig.engines.made[1] and new is not old
            assert [info.running for info in rig.pool.loaded()] == [1]
        assert old.alive() and "".join([delta.content async for delta in old.chat(SAY, Sampling())]) == "你好🙂世界"  # type: ignore[attr-defined]
    await _settle()
    assert not old.alive() and new.alive()
    assert rig.pool.loaded()[0].unloads_in_s == pytest.approx(60), "what was wished holds for the new one"


async def test_a_reload_that_fails_changes_nothing(rig: Rig) -> None:
    assert await _answer(rig.pool)
    rig.engines.fault = EngineFailed("engine.load_failed", model="m", why="broken", log="-")
    with pytest.raises(EngineFailed):
        await rig.pool.load("m", reload=True)
    assert await _answer(rig.pool) == "你好🙂世界" and rig.engines.loads == 2 and len(rig.engines.made) == 1


async def test_a_reload_without_room_for_both_waits_for_nobody(rig: Rig) -> None:
    """An idle model leaves first; one that answers somebody stays, and the reload is refused."""
    rig.models.needs = 600_000_000
    rig.pool._settings = rig.pool._settings.model_copy(update={"memory_budget_mb": 1000})
    assert await _answer(rig.pool)
    async with rig.pool.use("m", "chat") as old:
        with pytest.raises(TooLarge):
            await rig.pool.load("m", reload=True)
        assert old.alive()
    await rig.pool.load("m", reload=True)
    assert not old.alive() and await _answer(rig.pool) == "你好🙂世界" and rig.engines.loads == 2


async def test_unloading_ends_a_reload_too(rig: Rig) -> None:
    await _answer(rig.pool)
    rig.engines.gate = asyncio.Event()
    reload = asyncio.create_task(rig.pool.load("m", reload=True))
    await _settle()
    await rig.pool.unload("m")
    with pytest.raises(EngineFailed):
        await reload
    assert rig.pool.loaded() == [] and not any(engine.alive() for engine in rig.engines.made)


async def test_copies_are_refused_where_there_is_one(rig: Rig) -> None:
    with pytest.raises(Invalid) as raised:
        await rig.pool.load("m", replicas=(2, 0))
    assert raised.value.code == "one_copy"
