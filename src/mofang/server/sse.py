"""Server-sent events (WHATWG HTML, 9.2) whose source is closed for certain, and work that ends when its client leaves.

An ASGI server keeps calling us after a client is gone, and an async generator that nobody finishes is closed "some
time"; here both are explicit, since a generation that nobody reads costs a whole machine. Knows nothing of engines.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PING_EVERY_S = 15.0
"""Silence after which a comment line is sent, so that proxies keep the connection; clients skip it."""


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


@asynccontextmanager
async def until_client_leaves(receive: Receive) -> AsyncIterator[None]:
    """The block is cancelled when the client disconnects, and ClientGone is raised. The body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


_BREAKS = re.compile("[\x85\u2028\u2029]")
"""Line breaks of Unicode that JSON lets stand, and at which many a client's line reader cuts."""


def dumps(value: Any) -> str:
    """Compact JSON on one line; Chinese stays readable."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def event(data: Any, seq: int | None = None) -> bytes:
    """One message: JSON never holds a bare line break, so one data line is enough."""
    number = "" if seq is None else f"id: {seq}\n"
    return f"{number}data: {dumps(data)}\n\n".encode()


def named(data: dict[str, Any]) -> bytes:
    """A message that says its type in `event:` too, as OpenAI's responses and Anthropic's messages do."""
    return f"event: {data['type']}\n".encode() + event(data)


DONE = b"data: [DONE]\n\n"

_EVENT = {
    "type": "object",
    "description": "One server-sent event of the stream; `data` is JSON, or [DONE].",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}, "id": {"type": "string"}},
}
OPENAPI: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}
"""What a route that answers with events declares."""


async def numbered(events: AsyncGenerator[tuple[int, Any], None]) -> AsyncGenerator[bytes, None]:
    """A log's events on the wire, each with its number as id."""
    async with aclosing(events):
        async for seq, data in events:
            yield event(data, seq)


def closing(source: AsyncIterator[Any]) -> aclosing[AsyncGenerator[Any, None]]:
    """`aclosing` for the engines' iterators, which promise `aclose` in words."""
    return aclosing(cast(AsyncGenerator[Any, None], source))


class EventStream(Response):
    """Sends what `source` yields and closes it, whether it ends, fails or its client leaves.

    `farewell` is the last event when the server ends before the source does: a stream never just stops. It is made
    then, where it depends on what was sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        *,
        farewell: bytes | Callable[[], bytes] = b"",
        first: bytes | None = None,
    ) -> None:
        super().__init__()
        self._farewell = farewell
        self._source = source
        self._first = first
        del self.headers["content-length"]
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source):
            try:
                async with until_client_leaves(receive):
                    await self._send_all(send)
            except ClientGone:
                return
            except asyncio.CancelledError:  # the server ends
                last = self._farewell() if callable(self._farewell) else self._farewell
                await send({"type": "http.response.body", "body": last, "more_body": False})
                raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        sent_at = time.monotonic()

        async def put(piece: bytes) -> None:
            nonlocal sent_at
            sent_at = time.monotonic()
            await send({"type": "http.response.body", "body": piece, "more_body": True})

        async def ping() -> None:
            while True:
                await asyncio.sleep(PING_EVERY_S)
                if time.monotonic() - sent_at >= PING_EVERY_S:
                    await put(b": ping\n\n")

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pinger = asyncio.create_task(ping())
        try:
            if self._first is not None:
                await put(self._first)
            async for piece in self._source:
                await put(piece)
        finally:
            pinger.cancel()


async def opened(
    source: AsyncGenerator[bytes, None], receive: Receive, *, farewell: bytes | Callable[[], bytes]
) -> EventStream:
    """A stream that has its first event: whatever fails before it is raised here and can still be an HTTP status."""
    try:
        async with until_client_leaves(receive):
            first = await anext(source)
    except BaseException:
        await source.aclose()
        raise
    return EventStream(source, farewell=farewell, first=first)
