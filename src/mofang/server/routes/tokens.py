"""Below the text: how it is cut into tokens, what prompt a chat becomes, and which token a model expects next."""

import math
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from mofang.engine.base import ALL_TOKENS, ChatEngine, Engine
from mofang.engine.worker.sample import Choices, chances
from mofang.messages import Message, NextToken
from mofang.server import attached, sse
from mofang.server.answer import Question, question_of
from mofang.server.backend import Backend
from mofang.server.routes.here import Here
from mofang.server.shapes import whole
from mofang.wire import ChatRequest, DetokenizeRequest, NextSampling, NextTokenRequest, TokenizeRequest

router = APIRouter(tags=["tokens"])

ENOUGH = 1000
"""Candidates that are looked at first where no top_k says how many: all of a vocabulary are slow to tell."""


@router.post("/v1/tokenize")
async def tokenize(body: TokenizeRequest, request: Request, backend: Here) -> dict[str, Any]:
    """Token ids of a text; with pieces, the bytes that each stands for, and their text where they are whole
    characters."""
    choices = {"add_special": body.add_special, "parse_special": body.parse_special}
    async with sse.until_client_leaves(request.receive), _use(body, backend) as engine:
        assert isinstance(engine, ChatEngine)
        model = engine.info().model
        if not body.with_pieces:
            tokens = await engine.tokenize(body.text, **choices)
            return {"model": model, "count": len(tokens), "tokens": tokens}
        pieces = await engine.pieces(body.text, **choices)
        shown = [{"id": token, "piece": whole(raw), "bytes": list(raw)} for token, raw in pieces]
        return {"model": model, "count": len(pieces), "tokens": [token for token, _ in pieces], "pieces": shown}


def _use(wish: Any, backend: Backend) -> AbstractAsyncContextManager[Engine]:
    """The model of a request or a question, kept as long as that says."""
    return backend.engines.use(wish.model, "chat", keep_alive=wish.keep_alive)


@router.post("/v1/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request, backend: Here) -> dict[str, Any]:
    """The text of token ids; U+FFFD stands for what is no whole character."""
    async with sse.until_client_leaves(request.receive), _use(body, backend) as engine:
        assert isinstance(engine, ChatEngine)
        return {"model": engine.info().model, "text": await engine.detokenize(body.tokens)}


@router.post("/v1/apply-template")
async def apply_template(body: ChatRequest, request: Request, backend: Here) -> dict[str, Any]:
    """The prompt that /v1/chat/completions would make of the same request, as text, and its length in tokens."""
    question = question_of(body)
    options = question.sampling.options
    async with sse.until_client_leaves(request.receive), _use(body, backend) as engine:
        assert isinstance(engine, ChatEngine)
        messages = await _read(question, backend)
        prompt = await engine.render(messages, options=options)
        n_tokens = await engine.count_tokens(messages, options=options)
        return {"model": engine.info().model, "prompt": prompt, "input_tokens": n_tokens}


@router.post("/v1/chat/completions/input_tokens")
async def input_tokens(body: ChatRequest, request: Request, backend: Here) -> dict[str, Any]:
    """Tokens of the prompt that /v1/chat/completions would make of it."""
    return {"input_tokens": await counted(question_of(body), request, backend)}


async def counted(question: Question, request: Request, backend: Backend) -> int:
    """Tokens of a question's prompt, its tools counted, its documents not."""
    async with sse.until_client_leaves(request.receive), _use(question, backend) as engine:
        assert isinstance(engine, ChatEngine)
        messages = await _read(question, backend)
        return await engine.count_tokens(messages, options=question.sampling.options)


async def _read(question: Question, backend: Backend) -> list[Message]:
    """Its messages as a model reads them: with what their files say."""
    files = await attached.read(backend.files, question.messages)
    return [files.whole(message) for message in question.messages]


@router.post("/v1/next_token")
async def next_token(body: NextTokenRequest, request: Request, backend: Here) -> dict[str, Any]:
    """The likeliest next tokens with the logarithms of their probabilities, before any sampler; with `sampling`, also the
    probability (`sampled`) that each is drawn with after top_k, top_p, min_p and temperature, in llama.cpp's order."""
    wanted = Choices(**body.sampling.model_dump(exclude_none=True)) if body.sampling else None
    n_needed = max(body.n_top, wanted.top_k or ENOUGH) if wanted else body.n_top
    async with sse.until_client_leaves(request.receive), _use(body, backend) as engine:
        assert isinstance(engine, ChatEngine)
        found = await engine.next_token(body.prompt, forced=body.forced, n_top=n_needed)
        if wanted and len(found.top) == n_needed and not _settled(found, wanted):
            found = await engine.next_token(body.prompt, forced=body.forced, n_top=ALL_TOKENS)
        shape = {"model": engine.info().model, **asdict(replace(found, top=found.top[: body.n_top]))}
    return {**shape, **_sampled(shape["top"], found, wanted)} if wanted else shape


def _settled(found: NextToken, wanted: Choices) -> bool:
    """Whether everything that the samplers leave is listed."""
    odds = [math.exp(one.logprob) for one in found.top]
    is_within = wanted.top_p < 1 and sum(odds) >= wanted.top_p
    return bool(wanted.top_k or not wanted.temperature or is_within or odds[-1] < wanted.min_p * odds[0])


def _sampled(shown: Sequence[dict[str, Any]], found: NextToken, wanted: Choices) -> dict[str, Any]:
    """How many tokens the samplers leave, and what was shown with the probability of each."""
    logprobs = [one.logprob for one in found.top]
    rest = 0.0 if wanted.top_k else max(0.0, 1.0 - sum(map(math.exp, logprobs)))
    kept, odds = chances(np.array(logprobs, np.float32), wanted, rest=rest)
    after = dict(zip(kept.tolist(), odds.tolist(), strict=True))
    used = {name: getattr(wanted, name) for name in NextSampling.model_fields}
    top = [{**one, "sampled": after.get(place, 0.0)} for place, one in enumerate(shown)]
    return {"top": top, "n_kept": len(kept), "sampling": used}
