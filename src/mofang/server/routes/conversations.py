"""Conversations: trees of turns and answers, kept until someone deletes them."""

import asyncio
from typing import Any

from fastapi import APIRouter

from mofang.server.faults import fit
from mofang.server.routes.here import Here, Lang
from mofang.wire import ConversationRequest, SamplingFields

router = APIRouter(tags=["conversations"])


def _fields(body: ConversationRequest, lang: str) -> dict[str, Any]:
    """What the request sets; its sampling is checked now, so that no later answer fails on it."""
    fields = body.model_dump(exclude_none=True)
    if body.sampling:
        fit(SamplingFields, body.sampling, field="sampling", lang=lang)
    return fields


@router.get("/v1/conversations")
def list_conversations(backend: Here) -> dict[str, Any]:
    """All of them without their messages, last touched first."""
    return {"object": "list", "data": backend.store.conversations()}


@router.post("/v1/conversations", status_code=201)
def create(body: ConversationRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """An empty one. Without a title it takes one from its first turn."""
    return backend.store.create_conversation(_fields(body, lang))


@router.get("/v1/conversations/{conversation_id}")
def read(conversation_id: str, backend: Here) -> dict[str, Any]:
    """With every message of its tree."""
    return backend.store.conversation(conversation_id)


@router.patch("/v1/conversations/{conversation_id}")
def change(conversation_id: str, body: ConversationRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """Fields that are not named, or null, stay as they are."""
    return backend.store.change_conversation(conversation_id, _fields(body, lang))


@router.delete("/v1/conversations/{conversation_id}", status_code=204)
async def delete(conversation_id: str, backend: Here) -> None:
    """With its messages; an answer that is being written is stopped first."""
    await backend.generations.stop_conversation(conversation_id)
    await asyncio.to_thread(backend.store.delete_conversation, conversation_id)
