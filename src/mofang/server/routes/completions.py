"""POST /v1/completions: the continuation of raw text or token ids, of one prompt or several.

Several prompts run side by side, as far as the model has slots; choice `i * n + k` is the k-th of prompt i.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mofang.engine.base import ChatEngine
from mofang.errors import Invalid
from mofang.messages import Delta, Sampling
from mofang.server import sse
from mofang.server.answer import Answer, Choice, bounded
from mofang.server.backend import Backend
from mofang.server.faults import interrupted
from mofang.server.routes.chat import Head, guarded, wants_usage
from mofang.server.routes.here import Here, Lang
from mofang.server.visit import current
from mofang.wire import CompletionRequest

router = APIRouter(tags=["openai"])

Prompt = str | list[int]


@router.post("/v1/completions", responses=sse.OPENAPI)
async def completions(body: CompletionRequest, request: Request, backend: Here, lang: Lang) -> Response:
    """A continuation, whole or streamed."""
    check(body)
    prompts, n = as_prompts(body.prompt), body.n or 1
    sampling = bounded(body.sampling(), backend.settings.max_tokens)
    answer = Answer()
    pieces = side_by_side([_continue(backend, body, p, sampling, answer, i * n) for i, p in enumerate(prompts)])
    echoes = {i * n + k: str(p) for i, p in enumerate(prompts) for k in range(n)} if body.echo else {}
    if body.stream:
        chunks = guarded(_chunks(pieces, answer, body, echoes), backend, lang)
        farewell = sse.event({"error": interrupted(lang)})
        return await sse.opened(chunks, request.receive, farewell=farewell)
    async with sse.until_client_leaves(request.receive), aclosing(pieces):
        async for delta in pieces:
            answer.add(delta)
    answer.check_complete()
    choices = [
        _choice(index, choice, echoes.get(index, ""), body.logprobs or 0)
        for index, choice in sorted(answer.choices.items())
    ]
    head = Head("text_completion", "cmpl").shape(answer, body.model)
    return JSONResponse({**head, "choices": choices, "usage": _usage(answer, n), "timings": answer.timings_shape})


def check(body: CompletionRequest) -> None:
    """Refuse by name what no engine here does: a field that is ignored in silence is worse than an error."""
    if body.suffix is not None:
        raise Invalid("server.unsupported_field", param="suffix", field="suffix")
    if body.best_of not in (None, body.n or 1):
        raise Invalid("server.unsupported_field", param="best_of", field="best_of")
    if body.echo and not all(isinstance(prompt, str) for prompt in as_prompts(body.prompt)):
        raise Invalid("server.echo_needs_text", param="echo")


def as_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(token, int) for token in prompt):
        return [[token for token in prompt if isinstance(token, int)]]
    return [one for one in prompt if not isinstance(one, int)]


async def _continue(
    backend: Backend, body: CompletionRequest, prompt: Prompt, sampling: Sampling, answer: Answer, first_index: int
) -> AsyncGenerator[Delta, None]:
    visit = current()
    visit.asked(prompt)
    async with backend.engines.use(body.model, "chat", keep_alive=body.keep_alive) as engine:
        assert isinstance(engine, ChatEngine)
        answer.info = engine.info()
        async with sse.closing(engine.complete(prompt, sampling)) as deltas:
            async for delta in deltas:
                placed = replace(delta, index=first_index + delta.index)
                visit.note(placed)
                yield placed


async def side_by_side(sources: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """What all of them yield, as it comes. Closing it, or the failure of one, closes them all."""
    if len(sources) == 1:
        async with aclosing(sources[0]):
            async for delta in sources[0]:
                yield delta
        return
    waiting: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(maxsize=64)

    async def pump(source: AsyncGenerator[Delta, None]) -> None:
        end: BaseException | None = None
        async with aclosing(source):
            try:
                async for delta in source:
                    await waiting.put(delta)
            except Exception as error:
                end = error
        await waiting.put(end)

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    try:
        left = len(pumps)
        while left:
            item = await waiting.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.wait(pumps)


async def _chunks(
    pieces: AsyncGenerator[Delta, None], answer: Answer, body: CompletionRequest, echoes: dict[int, str]
) -> AsyncGenerator[bytes, None]:
    head, with_usage = Head("text_completion", "cmpl"), wants_usage(body)
    async with aclosing(pieces):
        async for delta in pieces:
            answer.add(delta)
            text = echoes.pop(delta.index, "") + delta.content
            if not (text or delta.logprobs or delta.finish_reason):
                continue
            shape = head.shape(answer, body.model)
            if with_usage:
                shape["usage"] = None
            choice = {
                "index": delta.index,
                "text": text,
                "logprobs": legacy_logprobs(delta.logprobs, body.logprobs or 0),
            }
            yield sse.event({**shape, "choices": [{**choice, "finish_reason": delta.finish_reason}]})
    answer.check_complete()
    if with_usage:
        last = {**head.shape(answer, body.model), "choices": [], "usage": _usage(answer, body.n or 1)}
        yield sse.event({**last, "timings": answer.timings_shape})
    yield sse.DONE


def _choice(index: int, choice: Choice, echo: str, n_top: int) -> dict[str, Any]:
    return {
        "index": index,
        "text": echo + choice.content,
        "logprobs": legacy_logprobs(choice.logprobs, n_top),
        "finish_reason": choice.finish_reason,
    }


def _usage(answer: Answer, n: int) -> dict[str, Any] | None:
    """Every prompt counts once, however many continuations it has."""
    shape = answer.usage
    if shape is None:
        return None
    of_prompt = {index // n: usage.prompt_tokens for index, usage in answer.usages.items()}
    tokens = sum(of_prompt.values())
    return {**shape, "prompt_tokens": tokens, "total_tokens": tokens + shape["completion_tokens"]}


def legacy_logprobs(logprobs: dict[str, Any] | None, n_top: int = 20) -> dict[str, Any] | None:
    """The shape of 2022 that this route still has: parallel lists; beside them "content" as in chat, which has what those
    lose: ids, and the bytes of tokens that are part of a character. Engines name at least one alternative, also where
    none was asked for."""
    if logprobs is None or "content" not in logprobs:
        return logprobs
    entries = logprobs["content"] or []
    tokens = [entry["token"] for entry in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in (entry.get("top_logprobs") or ())[:n_top]} for entry in entries
        ],
        "content": [{**entry, "top_logprobs": list(entry.get("top_logprobs") or ())[:n_top]} for entry in entries],
        "text_offset": list(accumulate((len(token) for token in tokens[:-1]), initial=0)) if tokens else [],
    }
