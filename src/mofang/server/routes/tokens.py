"""Below the text: how it is cut into tokens, what prompt a chat becomes, and which token a model expects next."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from mofang.engine.base import ChatEngine
from mofang.server import sse
from mofang.server.answer import Question, question_of
from mofang.server.backend import Backend
from mofang.server.routes.here import Here
from mofang.wire import ChatRequest, DetokenizeRequest, NextTokenRequest, TokenizeRequest

router = APIRouter(tags=["tokens"])


@router.post("/v1/tokenize")
async def tokenize(body: TokenizeRequest, request: Request, backend: Here) -> dict[str, Any]:
    """Token ids of a text; with pieces, the bytes that each stands for, and their text where they are whole
    characters."""
    choices = {"add_special": body.add_special, "parse_special": body.parse_special}
    async with sse.until_client_leaves(request.receive), backend.engines.use(body.model, "chat") as engine:
        assert isinstance(engine, ChatEngine)
        model = engine.info().model
        if not body.with_pieces:
            tokens = await engine.tokenize(body.text, **choices)
            return {"model": model, "count": len(tokens), "tokens": tokens}
        pieces = await engine.pieces(body.text, **choices)
        shown = [{"id": token, "piece": _whole(raw), "bytes": list(raw)} for token, raw in pieces]
        return {"model": model, "count": len(pieces), "tokens": [token for token, _ in pieces], "pieces": shown}


def _whole(raw: bytes) -> str | None:
    """The text of a token's bytes; None where they end within a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


@router.post("/v1/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request, backend: Here) -> dict[str, Any]:
    """The text of token ids; U+FFFD stands for what is no whole character."""
    async with sse.until_client_leaves(request.receive), backend.engines.use(body.model, "chat") as engine:
        assert isinstance(engine, ChatEngine)
        return {"model": engine.info().model, "text": await engine.detokenize(body.tokens)}


@router.post("/v1/apply-template")
async def apply_template(body: ChatRequest, request: Request, backend: Here) -> dict[str, Any]:
    """The prompt that /v1/chat/completions would make of the same request, as text, and its length in tokens."""
    question = question_of(body)
    options = question.sampling.options
    async with sse.until_client_leaves(request.receive), backend.engines.use(body.model, "chat") as engine:
        assert isinstance(engine, ChatEngine)
        prompt = await engine.render(question.messages, options=options)
        n_tokens = await engine.count_tokens(question.messages, options=options)
        return {"model": engine.info().model, "prompt": prompt, "input_tokens": n_tokens}


@router.post("/v1/chat/completions/input_tokens")
async def input_tokens(body: ChatRequest, request: Request, backend: Here) -> dict[str, Any]:
    """Tokens of the prompt that /v1/chat/completions would make of it."""
    return {"input_tokens": await counted(question_of(body), request, backend)}


async def counted(question: Question, request: Request, backend: Backend) -> int:
    """Tokens of a question's prompt, its tools counted, its documents not."""
    async with sse.until_client_leaves(request.receive), backend.engines.use(question.model, "chat") as engine:
        assert isinstance(engine, ChatEngine)
        return await engine.count_tokens(question.messages, options=question.sampling.options)


@router.post("/v1/next_token")
async def next_token(body: NextTokenRequest, request: Request, backend: Here) -> dict[str, Any]:
    """The likeliest next tokens with the logarithms of their probabilities, before any sampler."""
    async with sse.until_client_leaves(request.receive), backend.engines.use(body.model, "chat") as engine:
        assert isinstance(engine, ChatEngine)
        found = await engine.next_token(body.prompt, forced=body.forced, n_top=body.n_top)
        return {"model": engine.info().model, **asdict(found)}
