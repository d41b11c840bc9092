"""Below the text: how it is cut into tokens, and which token a model expects next."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from mofang.engine.base import ChatEngine
from mofang.server import sse
from mofang.server.routes.here import Here
from mofang.wire import NextTokenRequest, TokenizeRequest

router = APIRouter(tags=["tokens"])


@router.post("/v1/tokenize")
async def tokenize(body: TokenizeRequest, request: Request, backend: Here) -> dict[str, Any]:
    """Token ids of a text, nothing added."""
    async with sse.until_client_leaves(request.receive), backend.engines.use(body.model, "chat") as engine:
        return {"model": engine.info().model, "tokens": await engine.tokenize(body.text)}


@router.post("/v1/next_token")
async def next_token(body: NextTokenRequest, request: Request, backend: Here) -> dict[str, Any]:
    """The likeliest next tokens with the logarithms of their probabilities, before any sampler."""
    async with sse.until_client_leaves(request.receive), backend.engines.use(body.model, "chat") as engine:
        assert isinstance(engine, ChatEngine)
        found = await engine.next_token(body.prompt, forced=body.forced, n_top=body.n_top)
        return {"model": engine.info().model, **asdict(found)}
