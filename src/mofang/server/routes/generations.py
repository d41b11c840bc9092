"""Answers that live in the server, whoever watches: start, look, follow, stop."""

import asyncio
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Header, Query, Response

from mofang.errors import Invalid
from mofang.server import attached, sse
from mofang.server.answer import question_of
from mofang.server.backend import Backend
from mofang.server.faults import fit, interrupted
from mofang.server.routes.here import Here, Lang
from mofang.wire import GenerationRequest, Tool

router = APIRouter(tags=["generations"])


@router.post("/v1/generations", status_code=202)
async def begin(body: GenerationRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """Store the new turns and start the answer; it goes on when the client leaves."""
    return await start(body, backend, lang)


async def start(body: GenerationRequest, backend: Backend, lang: str) -> dict[str, Any]:
    """The same, for whoever else begins an answer."""
    if body.n not in (None, 1):
        raise Invalid("server.one_answer", param="n")
    if body.parent_id is not None and body.conversation_id is None:
        raise Invalid("server.parent_needs_conversation", param="parent_id")
    request, system = await _with_defaults(body, backend, lang)
    request = request.model_copy(update={"tools": await _functions(request, backend, lang)})
    turns = await attached.named(backend.files, [message.to_message() for message in body.messages])
    await backend.engines.admit(request.model, "chat")  # a refusal is this request's answer, not an event of a lost one
    return await backend.generations.begin(
        replace(question_of(request), prefix=request.prefix or ""),
        turns=turns,
        system=system,
        conversation_id=body.conversation_id,
        parent_id=body.parent_id,
        lang=lang,
    )


async def _with_defaults(body: GenerationRequest, backend: Backend, lang: str) -> tuple[GenerationRequest, str]:
    """The request over its conversation's own choices: model, knowledge, sampling, system prompt, prefix, tools.

    An answer that goes on from its own text is in the middle of it: it is given no tools.
    """
    if body.conversation_id is None:
        return body, body.system or ""
    kept = await asyncio.to_thread(backend.store.conversation, body.conversation_id)
    given = body.model_dump(exclude_unset=True, exclude_none=True)
    defaults = {**kept["sampling"], "model": kept["model"], "knowledge": kept["knowledge"]}
    defaults |= {"prefix": kept["prefix"], "tools": [] if given.get("prefix") else kept["tools"]}
    merged = fit(GenerationRequest, {**defaults, **given}, field="sampling", lang=lang)
    return merged, kept["system"] if body.system is None else body.system


async def _functions(request: GenerationRequest, backend: Backend, lang: str) -> list[Tool] | None:
    """The tools in OpenAI's shape, those of ours that are named in front."""
    if request.tools is None:
        return None
    names = [tool for tool in request.tools if isinstance(tool, str)]
    shapes = [tool for tool in request.tools if not isinstance(tool, str)]
    return [*await backend.tools.functions(names, lang), *shapes]


@router.get("/v1/generations/{generation_id}")
async def look(generation_id: str, backend: Here) -> dict[str, Any]:
    """Its state and its text so far."""
    return await backend.generations.get(generation_id)


@router.post("/v1/generations/{generation_id}/stop")
async def stop(generation_id: str, backend: Here) -> dict[str, Any]:
    """Stop it; its text is kept. Answers once it has stopped; one that has ended stays as it ended."""
    return await backend.generations.stop(generation_id)


@router.get("/v1/generations/{generation_id}/events", responses=sse.OPENAPI)
async def events(
    generation_id: str,
    backend: Here,
    lang: Lang,
    after: int = Query(default=-1, ge=-1),
    last_event_id: int | None = Header(default=None, ge=0),
) -> Response:
    """Everything after event number `after` (a browser's Last-Event-ID counts too), then what comes, to the end."""
    start = max(after, -1 if last_event_id is None else last_event_id)
    source = sse.numbered(await backend.generations.follow(generation_id, start))
    return sse.EventStream(source, farewell=sse.event({"type": "error", "error": interrupted(lang)}))
