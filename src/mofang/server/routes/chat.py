"""POST /v1/chat/completions, as OpenAI specifies it, with numbered sources when `knowledge` is named.

A client that leaves stops its generation. Errors before the first token have their HTTP status; after it the stream
carries an error event and ends without [DONE].
"""

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mofang import __version__
from mofang.messages import Delta
from mofang.server import sse
from mofang.server.answer import Answer, Choice, answering, question_of
from mofang.server.faults import fault, internal, interrupted
from mofang.server.routes.here import Here, Lang
from mofang.wire import ChatRequest, SamplingFields

router = APIRouter(tags=["openai"])


@dataclass
class Head:
    """What every chunk of one answer repeats."""

    object: str
    prefix: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"

    def shape(self, answer: Answer, asked: str) -> dict[str, Any]:
        info = answer.info
        fingerprint = f"mofang-{__version__}" + (f"-{info.engine}" if info else "")
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": info.model if info else asked,
            "system_fingerprint": fingerprint,
        }


@router.post("/v1/chat/completions", responses=sse.OPENAPI)
async def chat_completions(body: ChatRequest, request: Request, backend: Here, lang: Lang) -> Response:
    """A chat answer, whole or streamed."""
    answer = Answer()
    deltas = answering(backend, question_of(body), answer)
    if body.stream:
        with_usage = wants_usage(body)
        chunks = guarded(_chunks(deltas, answer, body.model, with_usage), backend, lang)
        farewell = sse.event({"error": interrupted(lang)})
        return await sse.opened(chunks, request.receive, farewell=farewell)
    async with sse.until_client_leaves(request.receive), aclosing(deltas):
        async for _ in deltas:
            pass
    choices = [_choice(index, choice) for index, choice in sorted(answer.choices.items())]
    head = Head("chat.completion", "chatcmpl").shape(answer, body.model)
    extras = {**answer.extras, "timings": answer.timings_shape}
    if body.metadata is not None:
        extras["metadata"] = body.metadata
    return JSONResponse({**head, "choices": choices, "usage": answer.usage, **extras})


def wants_usage(body: SamplingFields) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


async def guarded(chunks: AsyncGenerator[bytes, None], backend: Here, lang: str) -> AsyncGenerator[bytes, None]:
    """`chunks`; a failure after the first of them becomes an error event, a failure before it is raised."""
    begun = False
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                begun = True
                yield chunk
        except Exception as error:
            if not begun:
                raise
            yield sse.event({"error": fault(internal(error, backend.settings), lang)})


async def _chunks(
    deltas: AsyncGenerator[Delta, None], answer: Answer, asked: str, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """OpenAI's chunks. The one with a finish_reason waits for the next, since the very last carries the sources."""
    head = Head("chat.completion.chunk", "chatcmpl")
    greeted: set[int] = set()
    held: dict[str, Any] | None = None
    async with aclosing(deltas):
        async for delta in deltas:
            shape = head.shape(answer, asked)
            if with_usage:
                shape["usage"] = None
            if held:
                yield sse.event(held)
                held = None
            if delta.index not in greeted and _says_something(delta):
                greeted.add(delta.index)
                yield sse.event({**shape, "choices": [_piece(delta.index, {"role": "assistant", "content": ""})]})
            if delta.content or delta.reasoning or delta.tool_calls or delta.logprobs:
                yield sse.event({**shape, "choices": [_piece(delta.index, _said(delta), delta.logprobs)]})
            if delta.finish_reason:
                held = {**shape, "choices": [_piece(delta.index, {}, finish_reason=delta.finish_reason)]}
    if held:
        yield sse.event(held if with_usage else {**held, **answer.extras})
    if with_usage:
        last = {**head.shape(answer, asked), "choices": [], "usage": answer.usage, "timings": answer.timings_shape}
        yield sse.event({**last, **answer.extras})
    yield sse.DONE


def _says_something(delta: Delta) -> bool:
    return bool(delta.content or delta.reasoning or delta.tool_calls or delta.logprobs or delta.finish_reason)


def _said(delta: Delta) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if delta.content:
        said["content"] = delta.content
    if delta.reasoning:
        said["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        said["tool_calls"] = delta.tool_calls
    return said


def _piece(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = choice.tool_calls
        message["content"] = choice.content or None
    return {
        "index": index,
        "message": message,
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
    }
