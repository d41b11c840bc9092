"""The line before a model: fair between callers, in order within one, never beyond its bounds."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.engine.line import Full, Line

CALLERS = ("a", "b", "c")
ARRIVE = st.tuples(st.just("arrive"), st.sampled_from(CALLERS))
OTHER = st.tuples(st.sampled_from(["leave", "give up", "open"]), st.integers(0, 30))


@dataclass
class Scene:
    """A line, and what became of everybody who came to it."""

    line: Line
    tasks: dict[int, "asyncio.Task[None]"] = field(default_factory=dict)
    caller: dict[int, str] = field(default_factory=dict)
    running: list[int] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    async def arrive(self, caller: str) -> int:
        number = len(self.tasks)
        self.caller[number] = caller

        async def enter() -> None:
            try:
                await self.line.enter(caller)
            except Full:
                self.refused.append(number)
            else:
                self.running.append(number)
                self.served.append(number)

        self.tasks[number] = asyncio.create_task(enter())
        await settle()
        return number

    async def leave(self, at: int) -> None:
        if self.running:
            self.running.pop(at % len(self.running))
            self.line.leave()
            await settle()

    async def give_up(self, at: int) -> None:
        waiting = [number for number, task in self.tasks.items() if not task.done()]
        if waiting:
            self.tasks[waiting[at % len(waiting)]].cancel()
            await settle()

    def waiting(self) -> list[int]:
        return [number for number, task in self.tasks.items() if not task.done()]


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


@given(
    limit=st.integers(1, 6), n_slots=st.integers(1, 3), steps=st.lists(st.one_of(ARRIVE, ARRIVE, OTHER), max_size=60)
)
def test_whatever_happens_the_line_keeps_its_word(limit: int, n_slots: int, steps: list[tuple[str, str | int]]) -> None:
    asyncio.run(_keeps_its_word(limit, n_slots, steps))


async def _keeps_its_word(limit: int, n_slots: int, steps: list[tuple[str, str | int]]) -> None:
    scene = Scene(Line(limit))
    scene.line.open(n_slots)
    for what, which in steps:
        before, waited = set(scene.served), Counter(scene.caller[number] for number in scene.waiting())
        if what == "arrive":
            await scene.arrive(str(which))
        elif what == "leave":
            await scene.leave(int(which))
        elif what == "give up":
            await scene.give_up(int(which))
        else:  # the engine goes and comes back
            scene.line.open(0)
            await settle()
            scene.line.open(n_slots)
            await settle()
        assert len(scene.running) == scene.line.running <= n_slots
        assert scene.line.waiting == len(scene.waiting()) <= limit
        assert not scene.waiting() or scene.line.running == n_slots, "nobody waits beside a free place"
        new = [scene.caller[number] for number in scene.served if number not in before]
        assert not (what == "leave" and waited) or len(new) == 1
        for caller in CALLERS:
            served = [number for number in scene.served if scene.caller[number] == caller]
            assert served == sorted(served), "in order within a caller"
    while scene.running or scene.waiting():
        left = Counter(scene.caller[number] for number in scene.waiting())
        n_before = len(scene.served)
        for _ in range(len(left)):  # one round: everybody who waits is served once
            await scene.leave(0)
        round_ = [scene.caller[number] for number in scene.served[n_before:]]
        assert sorted(round_) == sorted(left), "in one round each caller has one turn"
        if not left:
            await scene.leave(0)
    assert (scene.line.running, scene.line.waiting, scene.line.idle) == (0, 0, True)
    given_up = [number for number, task in scene.tasks.items() if task.cancelled()]
    assert sorted([*scene.served, *scene.refused, *given_up]) == sorted(scene.tasks), "everybody heard something"


async def test_one_with_many_does_not_hold_up_one_with_one() -> None:
    scene = Scene(Line(10))
    scene.line.open(1)
    for _ in range(5):
        await scene.arrive("busy")
    other = await scene.arrive("other")
    await scene.leave(0)
    await scene.leave(0)
    assert other in scene.served


async def test_in_a_full_line_the_newest_of_the_longest_gives_way() -> None:
    scene = Scene(Line(4))
    scene.line.open(1)
    for _ in range(5):
        await scene.arrive("busy")
    more = await scene.arrive("busy")
    assert scene.refused == [more], "one caller alone may fill the line, and no more"
    for _ in range(2):
        await scene.arrive("other")
    assert scene.refused == [more, 4, 3]
    last = await scene.arrive("other")
    assert scene.refused[-1] == last, "two and two: nobody gives way any more"


async def test_who_waits_for_an_engine_hears_that_there_is_none() -> None:
    line = Line(4)
    waiting = [asyncio.create_task(line.enter(caller)) for caller in "abb"]
    await settle()
    assert line.waiting == 3
    line.fail(LookupError("gone"))
    assert [type(result) for result in await asyncio.gather(*waiting, return_exceptions=True)] == [LookupError] * 3
    assert line.idle


async def test_a_turn_that_comes_while_its_owner_leaves_goes_on() -> None:
    line = Line(4)
    line.open(1)
    await line.enter("a")
    first, second = (asyncio.create_task(line.enter("b")) for _ in range(2))
    await settle()
    line.leave()
    first.cancel()  # in the same step in which its turn came
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 5)
    assert line.running == 1
