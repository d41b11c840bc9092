"""OpenAI's Responses API: POST /v1/responses and /v1/responses/input_tokens. Nothing is kept between requests."""

from typing import Any

from fastapi import APIRouter, Request, Response

from mofang.server import sse
from mofang.server.answer import question_of
from mofang.server.deliver import deliver
from mofang.server.dialects.responses import ResponsesRequest, ResponseTeller, to_chat
from mofang.server.routes.here import Here, Lang
from mofang.server.routes.tokens import counted

router = APIRouter(tags=["openai"])


@router.post("/v1/responses", responses=sse.OPENAPI)
async def responses(body: ResponsesRequest, request: Request, backend: Here, lang: Lang) -> Response:
    """An answer as output items, whole or streamed."""
    question = question_of(to_chat(body))
    return await deliver(
        question, ResponseTeller(body), stream=body.stream, request=request, backend=backend, lang=lang
    )


@router.post("/v1/responses/input_tokens")
async def input_tokens(body: ResponsesRequest, request: Request, backend: Here) -> dict[str, Any]:
    """Tokens of the prompt that /v1/responses would make of it."""
    n_tokens = await counted(question_of(to_chat(body)), request, backend)
    return {"object": "response.input_tokens", "input_tokens": n_tokens}
