"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens. Errors have Anthropic's shape here."""

from typing import Any

from fastapi import APIRouter, Request, Response

from mofang.server import sse
from mofang.server.answer import question_of
from mofang.server.deliver import deliver
from mofang.server.dialects.messages import CountRequest, MessagesRequest, MessageTeller, to_chat
from mofang.server.faults import AnthropicFaultReply
from mofang.server.routes.here import Here, Lang
from mofang.server.routes.tokens import counted

FAULTS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicFaultReply, "description": "The request cannot be answered."},
    "5XX": {"model": AnthropicFaultReply, "description": "The gateway or a model failed."},
}
router = APIRouter(tags=["anthropic"], responses=FAULTS)


@router.post("/v1/messages", responses=sse.OPENAPI)
async def messages(body: MessagesRequest, request: Request, backend: Here, lang: Lang) -> Response:
    """An answer as content blocks, whole or streamed."""
    question = question_of(to_chat(body))
    return await deliver(question, MessageTeller(body), stream=body.stream, request=request, backend=backend, lang=lang)


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountRequest, request: Request, backend: Here) -> dict[str, int]:
    """Tokens of the prompt that /v1/messages would make of it."""
    return {"input_tokens": await counted(question_of(to_chat(body)), request, backend)}
