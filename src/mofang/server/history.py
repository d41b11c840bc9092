"""The last hour of this gateway, one row every few seconds: what a page draws that was not open all the time."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

EVERY_S: Final = 5.0
KEPT: Final = 720
"""Rows: one hour."""
COUNTED: Final = ("prompt_tokens", "completion_tokens", "requests")
"""What only ever grows; told a second."""


class History:
    """`look` tells how things stand: the totals of COUNTED, and whatever else a row holds as it is."""

    def __init__(self, look: Callable[[], Mapping[str, float]]) -> None:
        self._look = look
        self._rows: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._before: tuple[float, Mapping[str, float]] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.note(time.time())
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            self.note(time.time())

    def note(self, at: float) -> None:
        """A row for the time since the last one; the first call has none yet."""
        now = self._look()
        if self._before and at > self._before[0]:
            begun, before = self._before
            rates = {f"{name}_per_s": max(0.0, now[name] - before[name]) / (at - begun) for name in COUNTED}
            rest = {name: value for name, value in now.items() if name not in COUNTED}
            self._rows.append({"at": at, **rates, **rest})
        self._before = at, now

    def rows(self, after: float = 0) -> list[dict[str, Any]]:
        """Those later than `after` (seconds since 1970), the oldest first."""
        return [row for row in self._rows if row["at"] > after]
