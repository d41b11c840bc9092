"""Conversations: trees of turns and answers, kept until someone deletes them."""

import asyncio
import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Body, Query, Response

from mofang.server import exchange
from mofang.server.faults import fit
from mofang.server.routes.here import Here, Lang
from mofang.wire import ConversationRequest, MessageRequest, NewConversation, SamplingFields

router = APIRouter(tags=["conversations"])

FILES = {"json": ("json", "application/json"), "markdown": ("md", "text/markdown")}
"""Format → suffix and media type."""


def _fields(body: ConversationRequest, lang: str) -> dict[str, Any]:
    """What the request sets; its sampling is checked now, so that no later answer fails on it."""
    fields = body.model_dump(exclude_none=True, exclude={"greeting"})
    if body.sampling:
        fit(SamplingFields, body.sampling, field="sampling", lang=lang)
    return fields


@router.get("/v1/conversations")
def list_conversations(backend: Here, query: str = Query(default="", max_length=200)) -> dict[str, Any]:
    """All of them without their messages, last touched first; with a query those whose title or messages hold each of
    its words, with the message where."""
    return {"object": "list", "data": backend.store.conversations(query)}


@router.post("/v1/conversations/import", status_code=201)
def import_conversations(body: Annotated[Any, Body()], backend: Here, lang: Lang) -> dict[str, Any]:
    """Conversations from a file: our own export, ChatGPT's conversations.json, or OpenAI's messages. All or none of
    them, as new ones."""
    found = exchange.read(body, lang)
    data = backend.store.import_conversations(found)
    return {"object": "list", "data": data, "skipped_messages": sum(one.skipped for one in found)}


@router.get(
    "/v1/conversations/{conversation_id}/export",
    response_class=Response,
    responses={200: {"content": {kind: {"schema": {}} for _, kind in FILES.values()}}},
)
def export(
    conversation_id: str,
    backend: Here,
    lang: Lang,
    format: Literal["json", "markdown"] = "json",
    leaf: str | None = None,
) -> Response:
    """As a file: the whole tree as JSON, or as Markdown the path down to `leaf` (without it: to the newest message)."""
    conversation = backend.store.conversation(conversation_id)
    if format == "json":
        text = json.dumps(exchange.json_of([conversation]), ensure_ascii=False, indent=1)
    else:
        text = exchange.markdown_of(conversation, exchange.path_to(conversation, leaf), lang)
    suffix, kind = FILES[format]
    title = re.sub(r'[\\/:*?"<>|\x00-\x1f\s]+', " ", conversation["title"])  # what no file system takes
    name = title.strip(" .")[:80] or conversation_id
    plain = f'filename="conversation.{suffix}"'  # for clients that do not read RFC 5987
    headers = {"Content-Disposition": f"attachment; {plain}; filename*=UTF-8''{quote(f'{name}.{suffix}', safe='')}"}
    return Response(text, media_type=f"{kind}; charset=utf-8", headers=headers)


@router.post("/v1/conversations", status_code=201)
def create(body: NewConversation, backend: Here, lang: Lang) -> dict[str, Any]:
    """An empty one, or one that the model has greeted. Without a title it takes one from its first turn."""
    return backend.store.create_conversation(_fields(body, lang), body.greeting or "")


@router.get("/v1/conversations/{conversation_id}")
def read(conversation_id: str, backend: Here) -> dict[str, Any]:
    """With every message of its tree."""
    return backend.store.conversation(conversation_id)


@router.patch("/v1/conversations/{conversation_id}")
def change(conversation_id: str, body: ConversationRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """Fields that are not named, or null, stay as they are."""
    return backend.store.change_conversation(conversation_id, _fields(body, lang))


@router.post("/v1/conversations/{conversation_id}/messages", status_code=201)
def add_message(conversation_id: str, body: MessageRequest, backend: Here) -> dict[str, Any]:
    """A message that a person wrote: a turn, or another version of a turn or an answer. Nothing is generated."""
    return backend.store.add_message(conversation_id, **body.model_dump())


@router.delete("/v1/conversations/{conversation_id}", status_code=204)
async def delete(conversation_id: str, backend: Here) -> None:
    """With its messages, and the files that only it referred to; an answer that is being written is stopped first."""
    await backend.generations.stop_conversation(conversation_id)
    await asyncio.to_thread(backend.store.delete_conversation, conversation_id)
    await asyncio.to_thread(backend.files.forget)
