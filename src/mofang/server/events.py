"""An append-only log of events that any number of watchers follow, each from where it wants.

Kept in memory while the work that writes it runs; whoever writes it stores the result. Belongs to one event loop.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from mofang.messages import Progress

Event = dict[str, Any]
T = TypeVar("T")

PROGRESS_EVERY_S = 0.2
"""Progress of one stage is told at most this often: a download reports thousands of times a second."""


class EventLog:
    """Events numbered from 0. After `close` it takes no more, and followers end when they have seen the last."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False
        self._changed = asyncio.Event()

    def append(self, event: Event) -> int:
        """The event's number."""
        self.events.append(event)
        self._wake()
        return len(self.events) - 1

    def close(self) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        # A fresh Event each time: every waiter holds the one that it waits for, none can miss or steal a wake-up.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def follow(self, after: int = -1) -> AsyncGenerator[tuple[int, Event], None]:
        """(number, event) of everything after number `after`: what is there at once, the rest as it comes."""
        seq = max(0, after + 1)
        while True:
            changed = self._changed
            while seq < len(self.events):
                yield seq, self.events[seq]
                seq += 1
            if self.closed:
                return
            if changed is self._changed:
                await changed.wait()


def on_this_loop(call: Callable[[T], object]) -> Callable[[T], None]:
    """`call`, safe to use from any thread: it runs in the event loop that is running now."""
    loop = asyncio.get_running_loop()

    def anywhere(value: T) -> None:
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            call(value)
        else:
            loop.call_soon_threadsafe(call, value)

    return anywhere


def thinned(tell: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """`tell`, but for one stage at most every PROGRESS_EVERY_S; a new stage and the end of one always pass."""
    last: tuple[str, float] = ("", 0.0)

    def maybe(progress: Progress) -> None:
        nonlocal last
        finished = bool(progress.total) and progress.done >= progress.total
        if progress.stage != last[0] or finished or time.monotonic() - last[1] >= PROGRESS_EVERY_S:
            last = (progress.stage, time.monotonic())
            tell(progress)

    return maybe
