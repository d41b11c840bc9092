"""No JSON body beyond the limit is held in memory, whether it says how long it is or comes in chunks."""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mofang.errors import MofangError, TooLarge
from mofang.server import uploads
from mofang.server.faults import language, reply
from mofang.settings import Settings


class BodyLimit:
    """ASGI: reads a body before the routes do, up to the setting `body_limit_mb`. Uploads have a limit of their own."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else None
        has_body = headers is not None and ("content-length" in headers or "transfer-encoding" in headers)
        if headers is None or not has_body or uploads.STREAMED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(headers, receive)
        except MofangError as refusal:
            answer = reply(refusal, language(Request(scope).headers, self._settings))
            answer.headers["Connection"] = "close"  # the rest of the body is not worth reading
            await answer(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> list[Message]:
        """The messages that bring the body. Raises TooLarge as soon as it is known."""
        limit = self._settings.body_limit_mb * 1_000_000
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > limit:
            raise self._refusal(int(said))
        messages, found = [], 0
        while True:
            message = await receive()
            messages.append(message)
            found += len(message.get("body", b""))
            if found > limit:
                raise self._refusal(found)
            if not message.get("more_body"):  # the end, or a client that left
                return messages

    def _refusal(self, found: int) -> TooLarge:
        return TooLarge("server.body_too_large", found=f"{found / 1e6:.1f}", limit=self._settings.body_limit_mb)


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def again() -> Message:
        return next(waiting, None) or await receive()

    return again
