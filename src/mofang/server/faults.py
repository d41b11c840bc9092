"""Every failure as OpenAI's error JSON with a true HTTP status, in the language that the client asked for.

MofangError, a request that does not fit its model (named by field, the nearest known field beside it), a route that
does not exist; and what nobody expected: 500, without internals, under a reference that the log has too.
"""

import asyncio
import difflib
import errno
import json
import logging
import math
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

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


class AnthropicFaultReply(BaseModel):
    """The body of every error answer of Anthropic's routes."""

    type: Literal["error"]
    error: Fault


ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""HTTP status → Anthropic's name for it. Source: Anthropic API reference, Errors."""

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


def anthropic_fault(error: Mapping[str, Any], status: int) -> dict[str, Any]:
    """The body of an error on the routes that speak Anthropic's API; what `fault` says beyond it stays beside it."""
    kind = ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {**error, "type": kind}}


BODIES: dict[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {"/v1/messages": anthropic_fault}
"""Routes (and what lies below them) whose errors have a shape of their own; everything else has OpenAI's."""


class FaultResponse(JSONResponse):
    """An error, in the shape of the route that is answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        shape = next((BODIES[at] for at in BODIES if path == at or path.startswith(at + "/")), None)
        if shape is not None:
            self.body = self.render(shape(json.loads(bytes(self.body))["error"], self.status_code))
            self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def reply(error: MofangError, lang: str) -> JSONResponse:
    headers = {}
    if isinstance(error, (Busy, Leaving)):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return FaultResponse({"error": fault(error, lang)}, error.status, headers)


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
    "union_tag_invalid": "server.why_tag",
    "less_than": "server.why_less",
    "finite_number": "server.why_number",
    "keep_alive": "server.why_keep_alive",
}
"""pydantic's type of an error → our sentence for it; the placeholders are pydantic's own `ctx`."""


def explain(errors: Sequence[Mapping[str, Any]], request: Request, lang: str) -> Invalid:
    """One error for the first thing that does not fit."""
    first = _worst(errors)
    kind, place = first["type"], tuple(first["loc"])
    if kind == "json_invalid":
        return Invalid("server.bad_json", at=place[-1], why=first.get("ctx", {}).get("error", ""))
    if place == ("body",):
        kept = request.headers.get("content-type", "")
        if "json" not in kept and kind == "model_attributes_type":
            return Invalid("server.not_json", found=kept or "-")
        return Invalid("server.not_an_object") if kind != "missing" else Invalid("server.no_body")
    inside = place[1:] if place[0] in ("body", "query", "path", "header") else place
    field, known = _walk(_body_type(request), inside)
    if kind == "extra_forbidden":
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
        first = _worst(error.errors())
        at, known = _walk(model, first["loc"])
        place = f"{field}.{at}"
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
            raise Invalid("server.unknown_field", param=place, field=place, near=near[0] if near else "-") from error
        why = _why(first, lang)
        raise Invalid("server.bad_field", param=place, field=place, value=_shown(first["input"]), why=why) from error


def _worst(errors: Sequence[Any]) -> Any:
    """The first error; where a field may be several things, that of the branch which fits furthest."""
    same = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    deepest = max(same, key=lambda error: len(error["loc"]))
    tried_branches = any(not _is_step(step) for step in deepest["loc"])
    return deepest if tried_branches else errors[0]


def _is_step(step: str | int) -> bool:
    """Whether a step of pydantic's `loc` is the caller's field, not the name of a branch of a union."""
    name = str(step)
    return name not in ("str", "int", "bool", "float") and "[" not in name and not name[:1].isupper()


def _why(error: Mapping[str, Any], lang: str) -> str:
    key = WHY.get(error["type"])
    return say(key, lang=lang, **error.get("ctx", {})) if key else str(error["msg"])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _body_type(request: Request) -> Any:
    field = getattr(request.scope.get("route"), "body_field", None)
    return field.field_info.annotation if field else None


def _walk(annotation: Any, place: Sequence[str | int]) -> tuple[str, list[str]]:
    """`place` as the caller would write it (messages.0.role), and the fields of the model that its last step stands in.

    pydantic's `loc` also names the branches of unions that it tried, and the tags of those that `type` tells apart.
    """
    found, inside, shown, in_list = _models(annotation), [], [], False
    for step in place:
        if isinstance(step, int):
            shown.append(str(step))
            in_list = True
            continue
        if not _is_step(step):
            continue
        tagged = [model for model in found if step in _tags(model)] if in_list and len(found) > 1 else []
        in_list = False
        if tagged:
            found = tagged
            continue
        shown.append(step)
        inside = found
        found = [
            model for one in found if step in one.model_fields for model in _models(one.model_fields[step].annotation)
        ]
    known = [about.alias or name for one in inside for name, about in one.model_fields.items()]
    return ".".join(shown), list(dict.fromkeys(known))


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["type"].annotation) if "type" in model.model_fields else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every model that a value of this annotation may be made of: through unions, lists and Annotated."""
    if _is_model(annotation):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
