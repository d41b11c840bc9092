"""One request from its arrival to the end of what it started: whose it is, and what it came to.

`VISIT` is set by the outermost layer (record.py) for the request's task, and tasks started on the way inherit it. An
answer that outlives its request (generations) therefore still knows its visit. Holds numbers; holds words only where
the setting `log_contents` asks for them.
"""

import secrets
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from mofang.messages import Delta, Usage
from mofang.server.keys import Key


@dataclass
class Tally:
    """What the engines did for one visit."""

    first_at: float | None = None
    """When the first piece came; seconds of time.perf_counter, as `last_at`."""
    last_at: float | None = None
    pieces: int = 0
    prompt_seen: int = 0
    """Tokens of the prompt, as its reading was reported: all that is known of an answer that was cut short."""
    usages: dict[int, Usage] = field(default_factory=dict)
    finish_reason: str | None = None
    messages: Any = None
    content: list[str] | None = None
    """What was asked and said: None without `log_contents`."""

    def note(self, delta: Delta) -> None:
        if delta.progress is not None:
            self.prompt_seen = max(self.prompt_seen, int(delta.progress.total or 0))
        if delta.content or delta.reasoning or delta.tool_calls:
            self.last_at = time.perf_counter()
            self.first_at = self.first_at or self.last_at
            self.pieces += 1
            if self.content is not None:
                self.content.append(delta.reasoning + delta.content)
        if delta.usage:
            self.usages[delta.index] = delta.usage
        self.finish_reason = delta.finish_reason or self.finish_reason

    @property
    def usage(self) -> Usage:
        """The tokens used. A cut answer has no count of its engine's: each piece is one token, as llama.cpp sends."""
        if not self.usages:
            return Usage(self.prompt_seen, self.pieces)
        usages = self.usages.values()
        return Usage(
            max(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            max(usage.cached_tokens for usage in usages),
        )


@dataclass(eq=False)
class Visit:
    """See the module."""

    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(8)}")
    method: str = ""
    began: float = field(default_factory=time.perf_counter)
    key: Key | None = None
    """The stored key that the request brought; None: the owner."""
    route: str = "-"
    """The route's template, such as /v1/models/{name}: a path may hold names, and there is no end of paths."""
    model: str | None = None
    with_contents: bool = False
    tally: Tally = field(default_factory=Tally)
    """Of the use under way."""
    done: list[Tally] = field(default_factory=list)
    """Of the uses before it: a request may use one model after another."""
    counted: bool = False
    """The request was counted against its key's limits, or refused by them."""
    uses: int = 0
    """Engines in use or waited for."""
    over: bool = False
    """The request was answered; an answer may still be under way."""

    def note(self, delta: Delta) -> None:
        self.tally.note(delta)

    def asked(self, messages: Any) -> None:
        """Keep the words of the request, where the setting asks for it."""
        if self.with_contents:
            self.tally.messages = messages
            self.tally.content = []

    def settle(self) -> Tally:
        """What was done since the last settling; it is counted once."""
        done, self.tally = self.tally, Tally()
        self.done.append(done)
        return done

    @property
    def tallies(self) -> list[Tally]:
        return [*self.done, self.tally]


VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)


def current() -> Visit:
    """This task's visit; one that nobody reads, outside requests."""
    return VISIT.get() or Visit()


def note_tokens(prompt_tokens: int) -> None:
    """What a route that only reads (embeddings, rerank) took."""
    current().tally.usages[0] = Usage(prompt_tokens, 0)


def words(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Messages as the log keeps them."""
    return [{"role": message.role, "content": message.text} for message in messages]
