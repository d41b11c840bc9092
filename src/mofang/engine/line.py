"""Who has one of a model's places, and who waits for one: fair between callers, in order within a caller, bounded.

Knows nothing of models and engines: it counts places. A place that comes free goes to the next caller in turn, so that
one with a hundred requests does not hold up another with one.
"""

import asyncio
from collections import deque

Turn = asyncio.Future[None]


class Full(Exception):
    """No room to wait."""


class Line:
    """`limit` requests may wait. Nobody gets a place before `open`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.n_slots = 0
        """Places; 0 while there is no engine."""
        self._lines: dict[str, deque[Turn]] = {}
        """Callers in the order of their turns; none has an empty line."""

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def idle(self) -> bool:
        return not (self.running or self._lines)

    async def enter(self, caller: str) -> None:
        """Take a place, waiting for it if need be; `leave` gives it back.

        Raises Full for one more than may wait. When the line is full and another caller has more than one request
        more in it, that caller's newest gives way instead: Full is then raised there.
        """
        if self.running < self.n_slots and not self._lines:
            self.running += 1
            return
        if self.waiting >= self.limit:
            self._make_way(caller)
        turn: Turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # our turn came while we were leaving: hand it on
            else:
                self._remove(caller, turn)
            raise

    def leave(self) -> None:
        """Give a place back, to whoever is next."""
        self.running -= 1
        self._admit()

    def open(self, n_slots: int) -> None:
        """There are so many places now; 0: none until the next `open`. Who has one keeps it."""
        self.n_slots = n_slots
        self._admit()

    def fail(self, error: Exception) -> None:
        """Tell everybody who waits that it was in vain."""
        lines, self._lines = self._lines, {}
        for turn in (turn for line in lines.values() for turn in line if not turn.done()):
            turn.set_exception(error)

    def _admit(self) -> None:
        while self._lines and self.running < self.n_slots:
            caller = next(iter(self._lines))
            line = self._lines.pop(caller)
            turn = line.popleft()
            if line:
                self._lines[caller] = line  # behind the others
            if not turn.done():
                self.running += 1
                turn.set_result(None)

    def _make_way(self, caller: str) -> None:
        longest = max(self._lines, key=lambda one: len(self._lines[one]))
        if len(self._lines[longest]) <= len(self._lines.get(caller, ())) + 1:
            raise Full
        newest = self._lines[longest][-1]
        self._remove(longest, newest)
        if not newest.done():
            newest.set_exception(Full())

    def _remove(self, caller: str, turn: Turn) -> None:
        line = self._lines.get(caller)
        if line and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[caller]
