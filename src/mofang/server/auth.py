"""Who may talk to the gateway: the key, and protection from web pages that a browser on this machine has open.

A page elsewhere can make a browser send requests to 127.0.0.1: under a name of its own that resolves here (DNS
rebinding, seen in Host) or directly (seen in Origin). Both are refused; cors.py knows the pages that are wanted.

Without MOFANG_API_KEY the gateway is its machine's own (launch/local.py binds it nowhere else) and needs no key; a
request that brings one of ours is held to it all the same. With MOFANG_API_KEY everyone needs it or a stored key.
"""

import hmac
import ipaddress
import math
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mofang.engine.base import CALLER
from mofang.errors import Denied, Forbidden, Leaving, MofangError
from mofang.server import cors
from mofang.server.backend import Backend
from mofang.server.faults import language, reply
from mofang.server.keys import PREFIX, Key, digest
from mofang.server.visit import current

OPEN = frozenset({"/", "/healthz"})
"""Paths that need no key: they tell nothing but that we are alive and where the workbench is."""
WHILE_LEAVING = frozenset({"/metrics"})
FORWARDED = ("forwarded", "x-forwarded-for")
"""Headers of a proxy: it is on this machine, but whoever asks through it is not."""
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
    """ASGI: lets in who may come in, and says whose request it is."""

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self._app = app
        self._backend = backend
        self._settings = backend.settings
        self._key = digest(self._settings.api_key.get_secret_value()) if self._settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        wanted_page = origin is not None and cors.allows(self._settings, origin)

        async def readable(message: Message) -> None:
            if message["type"] == "http.response.start" and origin is not None and wanted_page:
                cors.add(MutableHeaders(scope=message), origin)
            await send(message)

        try:
            self._check_names(scope, headers, wanted_page)
            if wanted_page and cors.is_preflight(scope["method"], headers):
                await cors.preflight(headers)(scope, receive, readable)
                return
            if scope["path"] not in OPEN:
                self._identify(headers)
                self._check_leaving(scope["path"])
        except MofangError as refusal:
            await reply(refusal, language(Request(scope).headers, self._settings))(scope, receive, readable)
            return
        await self._app(scope, receive, readable)

    def _check_names(self, scope: Scope, headers: Headers, wanted_page: bool) -> None:
        """Raise Forbidden for a name that is not ours, and for a page that may not act."""
        try:
            host = host_name(headers.get("host", ""))
            origin = urlsplit(headers.get("origin", "")).hostname or ""
        except ValueError as error:  # urlsplit: brackets that do not match
            raise Forbidden("server.foreign_host", host=headers.get("host", "")) from error
        local = is_loopback(self._settings.host)
        if local and not is_loopback(host) and host != self._settings.host.lower():
            raise Forbidden("server.foreign_host", host=headers.get("host", ""))
        acts = scope["method"] not in READING or cors.is_preflight(scope["method"], headers)
        if "origin" in headers and acts and not wanted_page and not same_name(origin, host):
            raise Forbidden("server.foreign_origin", origin=headers["origin"])

    def _identify(self, headers: Headers) -> None:
        """Whose request this is, for whatever it starts. Raises Denied."""
        key = self._key_of(headers)
        current().key = key
        if key is not None:
            CALLER.set(key.id)

    def _key_of(self, headers: Headers) -> Key | None:
        """The stored key that was given; None: the owner."""
        given = _given(headers)
        if self._key is None and not given.startswith(PREFIX):
            if any(name in headers for name in FORWARDED):
                raise Denied("server.no_key")
            return None
        if not given:
            raise Denied("server.wrong_key" if "authorization" in headers else "server.no_key")
        if self._key is not None and hmac.compare_digest(digest(given), self._key):
            return None
        return self._backend.keys.find(given)

    def _check_leaving(self, path: str) -> None:
        if self._backend.leaving and path not in WHILE_LEAVING:
            raise Leaving("server.leaving", retry_after_s=max(1, math.ceil(self._settings.shutdown_grace_s)))


def _given(headers: Headers) -> str:
    """The key of the request: Authorization: Bearer, or x-api-key as Anthropic's clients send it; "" without one."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and given.strip():
        return given.strip()
    return headers.get("x-api-key", "").strip()


def check_owner() -> None:
    """Raise Forbidden unless the request is the owner's. A dependency of the routes that manage."""
    key = current().key
    if key is not None:
        raise Forbidden("keys.owner_only", id=key.id)
