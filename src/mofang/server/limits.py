"""How much a key may use: requests and tokens a minute, and requests at the same time.

A minute is the sixty seconds before now, not a fixed one: in no sixty seconds is more let in than the limit says. (A
token bucket that starts full lets twice as much through in its first minute.) Tokens are known only when an answer
ends, so they are counted afterwards, and a key that has used up its minute is refused until enough of it is past.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mofang.errors import Busy
from mofang.server.keys import Key

WINDOW_S = 60.0
BUSY_RETRY_S = 1.0
"""When to come back after too many at the same time: an answer's end is not known, a second is soon enough."""


@dataclass
class Window:
    """What was used in the last sixty seconds: (time, amount), oldest first. Times are seconds of one clock."""

    uses: deque[tuple[float, int]] = field(default_factory=deque)
    total: int = 0

    def forget(self, now: float) -> None:
        while self.uses and self.uses[0][0] + WINDOW_S <= now:
            self.total -= self.uses.popleft()[1]

    def add(self, now: float, amount: int) -> None:
        if amount:
            self.uses.append((now, amount))
            self.total += amount

    def room_in(self, limit: int, now: float) -> float:
        """Seconds until less than `limit` is used; 0: now."""
        over = self.total - limit
        if over < 0:
            return 0.0
        for at, amount in self.uses:
            over -= amount
            if over < 0:
                return at + WINDOW_S - now  # above 0, or it would be forgotten
        return WINDOW_S

    def empty_in(self, now: float) -> float:
        """Seconds until the whole limit is free again."""
        return max(0.0, self.uses[-1][0] + WINDOW_S - now) if self.uses else 0.0


@dataclass
class _Use:
    """One key's use."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    running: int = 0


class Meter:
    """The use of every key, in memory: a restart forgives at most a minute. Lives in the event loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def check(self, key: Key) -> None:
        """Raise Busy if the key may not ask now; its `code` names the limit."""
        use, now, limits = self._use(key), self._clock(), key.limits
        if limits.concurrent is not None and use.running >= limits.concurrent:
            raise Busy("keys.concurrent_limit", retry_after_s=BUSY_RETRY_S, id=key.id, limit=limits.concurrent)
        if limits.requests_per_minute is not None:
            wait = use.requests.room_in(limits.requests_per_minute, now)
            if wait:
                values = {"limit": limits.requests_per_minute, "seconds": math.ceil(wait)}
                raise Busy("keys.request_limit", retry_after_s=wait, id=key.id, **values)
        if limits.tokens_per_minute is not None:
            wait = use.tokens.room_in(limits.tokens_per_minute, now)
            if wait:
                values = {"limit": limits.tokens_per_minute, "used": use.tokens.total, "seconds": math.ceil(wait)}
                raise Busy("keys.token_limit", retry_after_s=wait, id=key.id, **values)

    def begin(self, key: Key, *, again: bool = False) -> None:
        """Count a request and hold its place until `end`; `again`: only the place, the request was counted before.

        Raises Busy, and counts nothing then.
        """
        use = self._use(key)
        if not again:
            self.check(key)
            use.requests.add(self._clock(), 1)
        use.running += 1

    def end(self, key: Key, tokens: int) -> None:
        """Give the place back and count what the answer took."""
        use = self._use(key)
        use.running -= 1
        use.tokens.add(self._clock(), tokens)

    def headers(self, key: Key) -> dict[str, str]:
        """OpenAI's x-ratelimit-* headers, for the limits that the key has."""
        use, now = self._use(key), self._clock()
        shown: dict[str, str] = {}
        kinds = (
            ("requests", key.limits.requests_per_minute, use.requests),
            ("tokens", key.limits.tokens_per_minute, use.tokens),
        )
        for kind, limit, window in kinds:
            if limit is not None:
                shown[f"x-ratelimit-limit-{kind}"] = str(limit)
                shown[f"x-ratelimit-remaining-{kind}"] = str(max(0, limit - window.total))
                shown[f"x-ratelimit-reset-{kind}"] = f"{math.ceil(window.empty_in(now))}s"
        return shown

    def _use(self, key: Key) -> _Use:
        use = self._uses.setdefault(key.id, _Use())
        now = self._clock()
        use.requests.forget(now)
        use.tokens.forget(now)
        return use
