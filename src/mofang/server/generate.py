"""Answers that live in the server: they go on when the page that asked is closed, and are there when it comes back.

Each is a task: queue → load → ground → stream → store. What is written is stored at least every second, so a killed
process loses at most that; at the next start, what was left running becomes an error that keeps its text.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from mofang.errors import TooLarge
from mofang.messages import Delta, Message
from mofang.server.answer import Answer, Question, answering
from mofang.server.events import Event, EventLog, on_this_loop
from mofang.server.faults import fault, internal, interrupted
from mofang.server.rooms import Rooms
from mofang.server.store import Store, new_id

log = logging.getLogger("mofang.server")

SAVE_EVERY_S = 0.5
"""Half of the second that a kill may cost, since a save takes time too."""


@dataclass(eq=False)
class _Running:
    """One answer under way."""

    id: str
    message_id: str
    question: Question
    lang: str
    answer: Answer = field(default_factory=Answer)
    events: EventLog = field(default_factory=EventLog)
    task: "asyncio.Task[None] | None" = None
    stopped_by_user: bool = False
    began: float = field(default_factory=time.perf_counter)
    first_token_ms: float | None = None
    """From the request to the model's first word: waiting, loading and reading are in it."""
    waits: bool = False
    """Its model finds no room in memory until another answer has ended."""
    ending: bool = False
    """The result is being stored; nothing may cut that short."""

    @property
    def model(self) -> str:
        return self.answer.info.model if self.answer.info else self.question.model

    def message(self) -> dict[str, Any]:
        """What the store keeps of the answer."""
        choice, info = self.answer.choice(), self.answer.info
        extra = {
            "tool_calls": choice.tool_calls or None,
            "finish_reason": choice.finish_reason,
            "n_ctx": info.n_ctx if info else None,
            "first_token_ms": self.first_token_ms,
            "files": self.answer.files or None,
        }
        return {
            "content": choice.content,
            "reasoning": choice.reasoning,
            "extra": {name: value for name, value in extra.items() if value is not None},
            "sources": self.answer.cited_sources(),
            "usage": self.answer.usage,
            "timings": self.answer.timings_shape,
            "model": self.model,
        }


class Generations:
    """Every answer of this server, running or remembered."""

    def __init__(self, rooms: Rooms, store: Store) -> None:
        self._rooms = rooms
        self._store = store
        self._running: dict[str, _Running] = {}

    async def start(self) -> None:
        """Own up to what the last process left unfinished."""
        left = await asyncio.to_thread(self._store.interrupt_running, interrupted(self._rooms.settings.lang))
        if left:
            log.warning("%d answers were interrupted by the end of the last process", left)
        await asyncio.to_thread(self._store.forget_old)

    async def close(self) -> None:
        """End every answer with an explicit error, its text kept."""
        for running in list(self._running.values()):
            await self._end(running)

    @property
    def n_running(self) -> int:
        return len(self._running)

    async def begin(
        self,
        question: Question,
        *,
        turns: Sequence[Message],
        system: str,
        conversation_id: str | None,
        parent_id: str | None,
        lang: str,
    ) -> dict[str, Any]:
        """Store the turns, start the answer, return the generation. `question.messages` is made here."""
        shape, history = await asyncio.to_thread(
            self._store.begin,
            model=question.model,
            turns=turns,
            conversation_id=conversation_id,
            parent_id=parent_id,
        )
        opening = [Message("system", system)] if system else []
        asked = replace(question, messages=[*opening, *history])
        running = _Running(shape["id"], shape["message_id"], asked, lang)
        running.events.append({"type": "queued"})
        self._running[running.id] = running
        running.task = asyncio.create_task(self._run(running), name=running.id)
        return shape

    async def get(self, generation_id: str) -> dict[str, Any]:
        """Its state; of a running one, the text up to this moment. Raises NotFound."""
        shape = await asyncio.to_thread(self._store.generation, generation_id)
        running = self._running.get(generation_id)
        return {**shape, **_now(running)} if running and shape["status"] in ("queued", "running") else shape

    async def stop(self, generation_id: str) -> dict[str, Any]:
        """Stop it, its text kept, and wait until it has; one that has ended stays as it ended."""
        await self.get(generation_id)  # NotFound: it is not, or not the asker's
        running = self._running.get(generation_id)
        if running:
            running.stopped_by_user = True
            await self._end(running)
        return await self.get(generation_id)

    async def stop_conversation(self, conversation_id: str) -> None:
        for generation_id in await asyncio.to_thread(self._store.running, conversation_id):
            await self.stop(generation_id)

    async def follow(self, generation_id: str, after: int) -> AsyncGenerator[tuple[int, Event], None]:
        """Its events after number `after`: from memory while it runs, from the store afterwards. Raises NotFound."""
        running = self._running.get(generation_id)
        if running:
            await self.get(generation_id)
            return running.events.follow(after)
        events = await asyncio.to_thread(self._store.events, generation_id)
        if events is None:  # interrupted, or the log was dropped: what the store knows, as short a log as can be
            events = _retold(await asyncio.to_thread(self._store.generation, generation_id))
            return _list_events(events, max(-1, min(after, len(events) - 2)))
        return _list_events(events, after)

    # ---- one answer ----

    async def _end(self, running: _Running) -> None:
        assert running.task is not None
        if not running.ending:
            running.task.cancel()
        await asyncio.wait({running.task})

    async def _run(self, running: _Running) -> None:
        status, error = "done", None
        try:
            async with self._saving(running):
                while not await self._write(running):
                    await self._others_end(running)
        except asyncio.CancelledError:
            status, error = ("stopped", None) if running.stopped_by_user else ("error", interrupted(running.lang))
        except Exception as failure:
            status, error = "error", fault(internal(failure, self._rooms.settings), running.lang)
        running.ending = True
        await self._finish(running, status, error)

    async def _write(self, running: _Running) -> bool:
        """Follow the answer to its end. False: its model has no room beside those that answer now, and might have it
        once one of them has ended."""
        try:
            source = answering(self._rooms, running.question, running.answer, on_this_loop(running.events.append))
            async with aclosing(source) as deltas:
                given = bool(running.question.prefix)  # the first piece is then not the model's
                async for delta in deltas:
                    if delta.content or delta.reasoning or delta.tool_calls:
                        if running.first_token_ms is None and not given:
                            running.first_token_ms = round(1000 * (time.perf_counter() - running.began), 1)
                        given = False
                    _tell(running.events, delta)
        except TooLarge as error:
            if error.code != "no_room" or running.answer.info or not self._others(running):
                raise
            return False
        return True

    def _others(self, running: _Running) -> list[_Running]:
        """The answers that this one may wait for: not those that wait themselves, or they would wait for each other."""
        return [other for other in self._running.values() if other is not running and not other.waits and other.task]

    async def _others_end(self, running: _Running) -> None:
        """Wait for the first of the others to end; this one holds nothing meanwhile."""
        running.waits = True
        running.events.append({"type": "queued"})
        try:
            tasks = [other.task for other in self._others(running) if other.task]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.waits = False

    async def _finish(self, running: _Running, status: str, error: dict[str, Any] | None) -> None:
        """The store first, then the last event: who sees the end finds it stored."""
        reason = running.answer.choice().finish_reason if status == "done" else None
        _name_calls(running.answer.choice().tool_calls)
        message = running.message()
        last: Event = {"type": status, "message_id": running.message_id}
        if status == "error":
            last |= {"error": error}
        else:
            last |= {"finish_reason": reason, **{name: message[name] for name in ("usage", "timings", "sources")}}
        try:
            await asyncio.to_thread(
                self._store.finish,
                running.id,
                status=status,
                message=message,
                finish_reason=reason,
                error=error,
                events=[*running.events.events, last],
            )
        except Exception as failure:  # such as a full disk: the watchers must be told, not left waiting
            last = {"type": "error", "message_id": running.message_id}
            last |= {"error": fault(internal(failure, self._rooms.settings), running.lang)}
        finally:
            running.events.append(last)
            running.events.close()
            self._running.pop(running.id, None)

    @asynccontextmanager
    async def _saving(self, running: _Running) -> AsyncIterator[None]:
        """Store what is written, twice a second, for the length of the block."""

        async def save() -> None:
            saved: tuple[int, int] | None = None
            while True:
                await asyncio.sleep(SAVE_EVERY_S)
                choice = running.answer.choice()
                size = (len(choice.content), len(choice.reasoning))
                if running.answer.info and size != saved:
                    try:
                        await asyncio.to_thread(self._store.save_partial, running.id, running.message())
                        saved = size
                    except (sqlite3.Error, OSError) as failure:  # tried again; the last save tells the watchers
                        log.warning("answer %s could not be saved yet: %s", running.id, failure)

        saver = asyncio.create_task(save())
        try:
            yield
        finally:
            saver.cancel()
            await asyncio.wait({saver})


def _name_calls(calls: list[dict[str, Any]]) -> None:
    """Each by an id of its own, also where the model's server gave none or one twice: people decide about calls by it."""
    seen: set[str] = set()
    for call in calls:
        if not call["id"] or call["id"] in seen:
            call["id"] = new_id("call")
        seen.add(call["id"])


def _tell(events: EventLog, delta: Delta) -> None:
    if delta.progress is not None:
        events.append({"type": "prompt", "done": delta.progress.done, "total": delta.progress.total})
    if delta.content or delta.reasoning or delta.tool_calls:
        piece: Event = {"type": "delta", "content": delta.content, "reasoning": delta.reasoning}
        events.append({**piece, "tool_calls": delta.tool_calls} if delta.tool_calls else piece)


def _now(running: _Running) -> dict[str, Any]:
    """State and text of a running answer; the store knows them a moment later."""
    message = running.message()
    kept = ("content", "reasoning", "sources", "model")
    return {"status": "running" if running.answer.info else "queued", **{name: message[name] for name in kept}}


def _retold(shape: dict[str, Any]) -> list[Event]:
    """The events of an answer whose log is gone: its sources, its text at once, its end."""
    events: list[Event] = []
    if shape["sources"]:
        events.append({"type": "sources", "sources": shape["sources"]})
    if shape["content"] or shape["reasoning"]:
        events.append({"type": "delta", "content": shape["content"], "reasoning": shape["reasoning"]})
    last: Event = {"type": shape["status"], "message_id": shape["message_id"]}
    names = ("error",) if shape["status"] == "error" else ("finish_reason", "usage", "timings", "sources")
    return [*events, {**last, **{name: shape[name] for name in names}}]


async def _list_events(events: Sequence[Event], after: int) -> AsyncGenerator[tuple[int, Event], None]:
    for seq in range(max(0, after + 1), len(events)):
        yield seq, events[seq]
