"""Who may talk to the gateway: the key, and protection from web pages that a browser on this machine has open.

A page elsewhere can make a browser send requests to 127.0.0.1: under a name of its own that resolves here (DNS
rebinding, seen in Host) or directly (seen in Origin). Both are refused. There is no CORS: no other page may read us.
"""

import hmac
import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mofang.errors import Denied, Forbidden, MofangError
from mofang.server.faults import language, reply
from mofang.settings import Settings

OPEN = frozenset({"/", "/healthz"})
"""Paths that need no key: they tell nothing but that we are alive and where the workbench is."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "localhost.localdomain")


def host_name(header: str) -> str:
    """The name in a Host header, without its port; brackets of IPv6 removed."""
    return (urlsplit(f"//{header}").hostname or "").lower() if header.isprintable() else ""


def same_name(one: str, other: str) -> bool:
    """Whether two names mean the same machine: equal, or both this one."""
    return one == other or (is_loopback(one) and is_loopback(other))


class Doorkeeper:
    """ASGI: lets in who may come in, and puts a request id on every answer."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._key = settings.api_key.get_secret_value().encode() if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{secrets.token_hex(8)}"

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, named)
        else:
            wanted = language(Request(scope).headers, self._settings)
            await reply(refusal, wanted)(scope, receive, named)

    def _refusal(self, scope: Scope) -> MofangError | None:
        headers = Headers(scope=scope)
        try:
            host = host_name(headers.get("host", ""))
            origin = urlsplit(headers.get("origin", "")).hostname or ""
        except ValueError:  # urlsplit: brackets that do not match
            return Forbidden("server.foreign_host", host=headers.get("host", ""))
        local = is_loopback(self._settings.host)
        if local and not is_loopback(host) and host != self._settings.host.lower():
            return Forbidden("server.foreign_host", host=headers.get("host", ""))
        if "origin" in headers and scope["method"] not in READING and not same_name(origin, host):
            return Forbidden("server.foreign_origin", origin=headers["origin"])
        if self._key is not None and scope["path"] not in OPEN and not self._has_key(headers):
            return Denied("server.wrong_key" if {"authorization", "x-api-key"} & set(headers) else "server.no_key")
        return None

    def _has_key(self, headers: Headers) -> bool:
        # x-api-key is where Anthropic's clients put it
        said = headers.get("authorization") or f"Bearer {headers.get('x-api-key', '')}"
        scheme, _, given = said.partition(" ")
        assert self._key is not None
        return hmac.compare_digest(given.strip().encode(), self._key) and scheme.lower() == "bearer"
