"""Other people's ways to ask for a chat answer, translated: into wire.ChatRequest, and back from Deltas.

Pure functions and small state machines: no HTTP, no engine. A dialect is a module here and a thin route that names it.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from mofang.messages import Delta
from mofang.server.answer import Answer

Event = dict[str, Any]


class Teller(Protocol):
    """How a dialect tells one answer. `answer` is what is known by then; a piece is already in it."""

    def piece(self, delta: Delta, answer: Answer) -> Iterator[Event]:
        """The stream's events for a piece."""
        ...

    def end(self, answer: Answer) -> Iterator[Event]:
        """The events after the last piece."""
        ...

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one body; after `piece` of every delta and `end`."""
        ...

    def failed(self, fault: dict[str, Any], status: int) -> Iterator[Event]:
        """The last events of a stream that breaks off; `fault` is what stands in our {"error": …}."""
        ...
