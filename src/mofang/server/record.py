"""The outermost layer: every request is a visit, is counted, and leaves a line in the log; refused ones too."""

import asyncio
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mofang.engine.base import CALLER
from mofang.server.backend import Backend
from mofang.server.faults import CLIENT_GONE
from mofang.server.visit import VISIT, Visit


class Recorder:
    """ASGI: begins a visit, names it in the answer, and records how it ended."""

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self._app = app
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(method=scope["method"], with_contents=self._backend.settings.log_contents)
        status, complete = CLIENT_GONE, False

        async def noting(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = visit.id
                headers.setdefault("X-Content-Type-Options", "nosniff")
                if visit.key is not None and visit.counted:
                    headers.update(self._backend.engines.meter.headers(visit.key))
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                complete = True
            await send(message)

        here, caller = VISIT.set(visit), CALLER.set("")
        try:
            await self._app(scope, receive, noting)
        finally:
            VISIT.reset(here)
            CALLER.reset(caller)
            visit.route = getattr(scope.get("route"), "path", "-")
            self._end(visit, status, gone=status == CLIENT_GONE or not complete)

    def _end(self, visit: Visit, status: int, *, gone: bool) -> None:
        self._backend.metrics.request(visit, status)
        self._backend.journal.request(visit, status, client_gone=gone)
        visit.over = True
        if visit.key is not None and self._backend.keys.touch(visit.key):
            with suppress(RuntimeError):  # the loop ends: closing the backend writes it
                asyncio.get_running_loop().run_in_executor(None, self._backend.keys.flush)
