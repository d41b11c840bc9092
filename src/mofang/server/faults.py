"""Every failure as OpenAI's error JSON with a true HTTP status, in the language that the client asked for.

MofangError, a request that does not fit its model (named by field, the nearest known field beside it), a route that
does not exist; and what nobody expected: 500, without internals, under a reference that the log has too.
"""

import asyncio
import difflib
import errno
import logging
import math
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mofang.errors import Busy, EngineFailed, Invalid, Leaving, MofangError, NoSpace, NotFound
from mofang.server.sse import ClientGone
from mofang.settings import Settings
from mofang.strings import say
from mofang.wire import Fault

log = logging.getLogger("mofang.server")

SHOWN_CHARS = 80
"""Of a wrong value, in its error message."""
CLIENT_GONE = 499
"""nginx's status for a client that left; nobody reads it, logs show it."""


class FaultReply(BaseModel):
    """The body of every error answer."""

    error: Fault


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": FaultReply, "description": "The request cannot be answered; `error.code` says why."},
    "5XX": {"model": FaultReply, "description": "The gateway or a model failed; `error.code` says how."},
}


def language(headers: Mapping[str, str], settings: Settings) -> str:
    """The first of Accept-Language's choices that we speak (RFC 9110, 12.5.4), or this machine's."""
    choices = []
    for position, part in enumerate(headers.get("accept-language", "").split(",")):
        tag, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            weight = 0.0
        choices.append((-weight, position, tag.strip().lower().split("-")[0]))
    spoken = [tag for weight, _, tag in sorted(choices) if tag in ("zh", "en") and weight < 0]
    return spoken[0] if spoken else settings.lang


def fault(error: MofangError, lang: str) -> dict[str, Any]:
    """What stands inside {"error": …}."""
    return {
        "message": error.message(lang),
        "type": error.type,
        "param": getattr(error, "param", None),
        "code": error.code,
        "hint": error.hint(lang) or None,
    }


def interrupted(lang: str) -> dict[str, Any]:
    """What an answer is told that the gateway cannot finish because it ends."""
    return fault(EngineFailed("server.interrupted"), lang)


def reply(error: MofangError, lang: str) -> JSONResponse:
    headers = {}
    if isinstance(error, (Busy, Leaving)):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": fault(error, lang)}, error.status, headers)


def understood(error: Exception, settings: Settings) -> MofangError | None:
    """An error of ours for what the system said, where it is the user's business; None: a fault of ours."""
    if isinstance(error, MofangError):
        return error
    full_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    full_database = isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
    if full_disk or full_database:
        return NoSpace("server.disk_full", path=settings.home)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return Invalid("server.broken_text")  # JSON can escape half a character (\ud800); nothing can store or send it
    return None


def internal(error: Exception, settings: Settings) -> MofangError:
    """The answer to what nobody expected; the traceback goes to the log under the same reference."""
    known = understood(error, settings)
    if known:
        return known
    reference = secrets.token_hex(4)
    log.error("unexpected error, reference %s", reference, exc_info=error)
    return MofangError("server.internal", reference=reference, log=Path(settings.home, "logs"))


class LastResort:
    """ASGI: what no handler caught becomes a 500 with our error body, or a cut connection once an answer has begun."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except (Exception, asyncio.CancelledError) as error:
            if started or scope["type"] != "http":
                raise
            wanted = language(Request(scope).headers, self._settings)
            if isinstance(error, asyncio.CancelledError):  # the server ends before its answer does
                await reply(EngineFailed("server.interrupted"), wanted)(scope, receive, send)
                raise
            await reply(internal(error, self._settings), wanted)(scope, receive, send)


def install(app: FastAPI, settings: Settings) -> None:
    """Make `app` answer its errors in our shape."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, MofangError)
        return reply(error, language(request.headers, settings))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        lang = language(request.headers, settings)
        return reply(explain(error.errors(), request, lang), lang)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = reply(_from_http(error, request), language(request.headers, settings))
        answer.status_code = error.status_code
        answer.headers.update(error.headers or {})
        return answer

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(MofangError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(ClientDisconnect, gone)


def _from_http(error: HTTPException, request: Request) -> MofangError:
    where = {"method": request.method, "path": request.url.path}
    if error.status_code == 404:
        return NotFound("server.route_not_found", **where)
    if error.status_code == 405:
        return Invalid("server.method_not_allowed", **where)
    return Invalid("server.bad_body", why=error.detail)


# ---- requests that do not fit ----

WHY = {
    "missing": "server.why_missing",
    "string_type": "server.why_string",
    "int_type": "server.why_integer",
    "int_parsing": "server.why_integer",
    "int_from_float": "server.why_integer",
    "float_type": "server.why_number",
    "float_parsing": "server.why_number",
    "bool_type": "server.why_boolean",
    "bool_parsing": "server.why_boolean",
    "list_type": "server.why_list",
    "dict_type": "server.why_object",
    "model_type": "server.why_object",
    "model_attributes_type": "server.why_object",
    "greater_than": "server.why_greater",
    "greater_than_equal": "server.why_at_least",
    "less_than_equal": "server.why_at_most",
    "string_too_short": "server.why_too_short",
    "string_too_long": "server.why_too_long",
    "too_short": "server.why_too_few",
    "literal_error": "server.why_choice",
    "string_pattern_mismatch": "server.why_pattern",
    "keep_alive": "server.why_keep_alive",
}
"""pydantic's type of an error → our sentence for it; the placeholders are pydantic's own `ctx`."""


def explain(errors: Sequence[Mapping[str, Any]], request: Request, lang: str) -> Invalid:
    """One error for the first thing that does not fit."""
    first = errors[0]
    kind, place = first["type"], tuple(first["loc"])
    if kind == "json_invalid":
        return Invalid("server.bad_json", at=place[-1], why=first.get("ctx", {}).get("error", ""))
    if place == ("body",):
        kept = request.headers.get("content-type", "")
        if "json" not in kept and kind == "model_attributes_type":
            return Invalid("server.not_json", found=kept or "-")
        return Invalid("server.not_an_object") if kind != "missing" else Invalid("server.no_body")
    field = _dotted(place[1:] if place[0] in ("body", "query", "path", "header") else place)
    if kind == "extra_forbidden":
        known = _known_fields(_body_type(request), place[1:])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        if near:
            return Invalid("server.unknown_field", param=field, field=field, near=near[0])
        return Invalid("server.foreign_field", param=field, field=field, known=", ".join(sorted(known)))
    return Invalid(
        "server.bad_field", param=field, field=field, value=_shown(first.get("input")), why=_why(first, lang)
    )


def fit(model: type[BaseModel], value: Any, *, field: str, lang: str) -> Any:
    """`value` as `model`, for a part of a request that pydantic has not checked yet. Raises Invalid naming the part."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = _dotted((field, *first["loc"]))
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), model.model_fields, n=1, cutoff=0.5)
            raise Invalid("server.unknown_field", param=place, field=place, near=near[0] if near else "-") from error
        why = _why(first, lang)
        raise Invalid("server.bad_field", param=place, field=place, value=_shown(first["input"]), why=why) from error


def _why(error: Mapping[str, Any], lang: str) -> str:
    key = WHY.get(error["type"])
    return say(key, lang=lang, **error.get("ctx", {})) if key else str(error["msg"])


def _dotted(place: Sequence[str | int]) -> str:
    """messages.0.role; the names that pydantic gives to the branches of a union are left out."""
    branches = {"str", "int", "bool", "float"}
    return ".".join(str(step) for step in place if str(step) not in branches and "[" not in str(step))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _body_type(request: Request) -> Any:
    field = getattr(request.scope.get("route"), "body_field", None)
    return field.field_info.annotation if field else None


def _known_fields(annotation: Any, place: Sequence[str | int]) -> list[str]:
    """The fields of the model that the last step of `place` stands in."""
    for step in place[:-1]:
        if isinstance(step, int):
            annotation = next((arg for arg in get_args(annotation) if _is_model(arg)), None)
        elif _is_model(annotation) and step in annotation.model_fields:
            annotation = annotation.model_fields[step].annotation
    candidates = [annotation, *get_args(annotation)]
    return [name for one in candidates if _is_model(one) for name in one.model_fields]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
