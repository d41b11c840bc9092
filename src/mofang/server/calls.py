"""Calls of tools that a model asked for: a person decides about each, it is made once, its result is stored.

Each is a task of its own, as answers are (generate.py): it goes on when the page that asked is closed, and with the last
result of an answer's calls that answer may go on by itself.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mofang.errors import MofangError
from mofang.server.store import Store
from mofang.server.tools import Tools
from mofang.settings import Settings
from mofang.strings import say
from mofang.wire import ToolDecision

log = logging.getLogger("mofang.server")

GoOn = Callable[[str], Awaitable[Any]]
"""Begins the answer below a message."""


class Calls:
    """Every call that was decided about."""

    def __init__(self, tools: Tools, store: Store, settings: Settings) -> None:
        self._tools, self._store, self._settings = tools, store, settings
        self._running: dict[str, asyncio.Task[None]] = {}
        """By the message of the result."""
        self._stopped: set[str] = set()
        """Of those that somebody stopped, until they have settled."""

    async def start(self) -> None:
        """Own up to what the last process left unfinished."""
        await asyncio.to_thread(self._store.lose_calls, say("tools.interrupted", lang=self._settings.lang))

    async def close(self) -> None:
        """End what runs; each has a result that says so."""
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())

    async def stop(self, conversation_id: str, message_id: str) -> dict[str, Any]:
        """End a call that takes too long: its message, settled. One that has settled stays as it is. Raises NotFound."""
        await asyncio.to_thread(self._store.message, conversation_id, message_id)
        if task := self._running.get(message_id):
            self._stopped.add(message_id)
            task.cancel()
            await asyncio.wait({task})
        return await asyncio.to_thread(self._store.message, conversation_id, message_id)

    async def decide(
        self, conversation_id: str, decision: ToolDecision, *, lang: str, go_on: GoOn | None
    ) -> dict[str, Any]:
        """The message of the result, as far as it has come within the decision's `wait_s`. Raises NotFound, Conflict."""
        message, call = await asyncio.to_thread(
            self._store.claim_call, conversation_id, decision.message_id, decision.call_id
        )
        made = decision.decision == "run"
        task = asyncio.create_task(self._settle(message["id"], call["function"] if made else None, lang, go_on))
        self._running[message["id"]] = task
        task.add_done_callback(lambda _: self._forget(message["id"]))
        done, _ = await asyncio.wait({task}, timeout=decision.wait_s)
        for settled in done:
            settled.result()  # what kept it from being stored
        return await asyncio.to_thread(self._store.message, conversation_id, message["id"])

    def _forget(self, message_id: str) -> None:
        del self._running[message_id]
        self._stopped.discard(message_id)

    async def _settle(self, message_id: str, function: Mapping[str, str] | None, lang: str, go_on: GoOn | None) -> None:
        """Make the call (None: it was refused), store what came of it, and begin what follows."""
        began = time.perf_counter()
        text, outcome = say("tools.refused", lang=lang), "refused"
        try:
            if function is not None:
                result = await self._tools.call(function["name"], function["arguments"], lang)
                text, outcome = result.text, "failed" if result.failed else "done"
        except asyncio.CancelledError:  # somebody stopped it, or the gateway ends
            known = ("tools.stopped", "stopped") if message_id in self._stopped else ("tools.interrupted", "failed")
            text, outcome, go_on = say(known[0], lang=lang), known[1], None
        seconds = time.perf_counter() - began
        last = await asyncio.to_thread(self._store.settle_call, message_id, text, outcome, seconds)
        if last is None or go_on is None:
            return
        try:
            await go_on(last)
        except MofangError as failure:  # the conversation waits for somebody to ask on
            log.warning("the answer after the tools' results could not begin: %s", failure)
