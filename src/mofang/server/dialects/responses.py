"""OpenAI's Responses API in terms of its chat, and the answer back as output items.

Stateless: the earlier turns are in `input`, and nothing is kept. Source: OpenAI API reference, Responses; the models of
the official Python client.
"""

import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mofang.errors import Invalid
from mofang.messages import Delta
from mofang.server.answer import Answer
from mofang.server.dialects import Event
from mofang.wire import MANY, ChatRequest, Effort, KeepAlive, Request, Truncation

# ---- the request ----


class TextPart(Request):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    """Accepted because clients send an answer back as they got it; so are the next and most of the ids and states."""
    logprobs: list[Any] | None = None


class RefusalPart(Request):
    type: Literal["refusal"]
    refusal: str


class ImagePart(Request):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None


ContentPart = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]
Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Request):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Request):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class ResultItem(Request):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]
    id: str | None = None
    status: Status | None = None


class ThoughtPart(Request):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Request):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ThoughtPart] = Field(default_factory=list)
    content: list[ThoughtPart] | None = None
    encrypted_content: None = None
    status: Status | None = None


def _type(item: Any) -> Any:
    """A message may leave its type out."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_type),
]


class FunctionTool(Request):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Request):
    type: Literal["function"]
    name: str


class TextFormat(Request):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Request):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None
    """No model here has such a knob; "medium" is what leaving it out means."""


class Reasoning(Request):
    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    """"auto" may be none, and is: the thoughts themselves are in the item's content."""


class StreamOptions(Request):
    include_obfuscation: Literal[False] = False


class ResponsesRequest(Request):
    """POST /v1/responses. `knowledge` and `chat_template_kwargs` are ours, as in chat."""

    model: str = "auto"
    input: str | list[Item]
    instructions: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=MANY)
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Truncation = "disabled"
    metadata: dict[str, str] | None = None
    background: Literal[False] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    knowledge: list[str] | None = None
    keep_alive: KeepAlive | None = None


# ---- into a chat ----


def to_chat(body: ResponsesRequest) -> ChatRequest:
    """The same question in OpenAI's older words. Raises Invalid for what has none, and for what would be kept."""
    for name in ("previous_response_id", "store"):
        if getattr(body, name):
            raise Invalid("server.kept_nowhere", param=name, field=name)
    messages = _messages(body.input)
    if body.instructions is not None:
        messages.insert(0, {"role": "system", "content": body.instructions})
    if not messages:
        raise Invalid("server.no_answer_asked", param="input")
    wants_logprobs = bool(body.include) or body.top_logprobs is not None
    same = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "truncation", "knowledge", "keep_alive")
    return ChatRequest.model_validate(
        {
            **{name: getattr(body, name) for name in (*same, "chat_template_kwargs")},
            "messages": messages,
            "max_tokens": body.max_output_tokens,
            "logprobs": True if wants_logprobs else None,
            "top_logprobs": body.top_logprobs,
            "tools": [_tool(tool) for tool in body.tools or ()] or None,
            "tool_choice": _choice(body.tool_choice),
            "response_format": _format(body.text),
            "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        }
    )


def _messages(given: str | list[Item]) -> list[dict[str, Any]]:
    """Messages of the items; what a model did between two turns of others (thoughts, words, calls) is one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for item in given:
        shape = _shape(item)
        last = messages[-1] if messages else None
        if last and last["role"] == shape["role"] == "assistant" and _joins(last, shape):
            calls = [*last.pop("tool_calls", []), *shape.get("tool_calls", [])]
            last |= {name: value for name, value in shape.items() if value}
            if calls:
                last["tool_calls"] = calls
        else:
            messages.append(shape)
    return messages


def _joins(last: dict[str, Any], shape: dict[str, Any]) -> bool:
    """Whether both are parts of one answer: thoughts come before words, words before calls."""
    return not (shape.get("reasoning_content") or (shape.get("content") and (last["content"] or "tool_calls" in last)))


def _shape(item: Item) -> dict[str, Any]:
    if isinstance(item, MessageItem):
        return {"role": item.role, "content": _content(item.content)}
    if isinstance(item, ResultItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}
    if isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    thoughts = "\n".join(part.text for part in item.content or item.summary)
    return {"role": "assistant", "content": None, "reasoning_content": thoughts}


def _content(content: str | list[ContentPart]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in content]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: TextPart | RefusalPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail}}
    return {"type": "text", "text": part.text if isinstance(part, TextPart) else part.refusal}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _choice(choice: str | NamedTool | None) -> Any:
    if isinstance(choice, NamedTool):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _format(text: TextConfig | None) -> dict[str, Any] | None:
    if text is None or text.format is None:
        return None
    if text.format.type != "json_schema":
        return {"type": text.format.type}
    if text.format.schema_ is None:
        raise Invalid("server.needs_field", param="text.format", field="text.format", other="schema")
    return {
        "type": "json_schema",
        "json_schema": text.format.model_dump(by_alias=True, exclude_none=True, exclude={"type"}),
    }


# ---- the answer ----


class ResponseTeller:
    """Tells an answer as output items. mofang.server.dialects.Teller.

    Thoughts and words are one open item at a time; calls stay open to the end, since their pieces may take turns.
    """

    def __init__(self, body: ResponsesRequest) -> None:
        self._body = body
        self._id = f"resp_{secrets.token_hex(12)}"
        self._created = time.time()
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._open: int | None = None
        """Place of the open item of thoughts or words."""
        self._calls: dict[int, int] = {}
        """Number of a call → place of its item."""

    def piece(self, delta: Delta, answer: Answer) -> Iterator[Event]:
        if not self._number:
            for name in ("created", "in_progress"):
                yield self._event(f"response.{name}", response=self._response(answer, "in_progress"))
        if delta.reasoning:
            yield from self._say("reasoning", delta.reasoning, None)
        if delta.content or delta.logprobs:
            yield from self._say("message", delta.content, delta.logprobs)
        for call in delta.tool_calls or ():
            yield from self._call(call)

    def end(self, answer: Answer) -> Iterator[Event]:
        cut = answer.choice().finish_reason == "length"
        state = "incomplete" if cut else "completed"
        yield from self._close(state)
        for place in self._calls.values():
            item = self._items[place]
            yield self._event(
                "response.function_call_arguments.done",
                item_id=item["id"],
                output_index=place,
                name=item["name"],
                arguments=item["arguments"],
            )
            yield self._done(place, state)
        self._calls.clear()
        yield self._event(f"response.{state}", response=self._response(answer, state))

    def whole(self, answer: Answer) -> dict[str, Any]:
        return self._response(answer, "incomplete" if answer.choice().finish_reason == "length" else "completed")

    def failed(self, fault: dict[str, Any], status: int) -> Iterator[Event]:
        code = "rate_limit_exceeded" if status == 429 else "invalid_prompt" if status < 500 else "server_error"
        error = {"code": code, "message": fault["message"], "hint": fault["hint"], "reason": fault["code"]}
        yield self._event("response.failed", response={**self._response(Answer(), "failed"), "error": error})

    # ---- items ----

    def _say(self, kind: str, text: str, logprobs: dict[str, Any] | None) -> Iterator[Event]:
        """A piece of thoughts or words, in an item of their kind."""
        if self._open is None or self._items[self._open]["type"] != kind:
            yield from self._close("completed")
            yield from self._begin(kind)
        place = self._open
        assert place is not None
        part = self._items[place]["content"][0]
        part["text"] += text
        fields: dict[str, Any] = {"delta": text}
        if kind == "message":
            fields["logprobs"] = _logprobs(logprobs)
            part["logprobs"] += fields["logprobs"]
        yield self._event(f"response.{part['type']}.delta", **self._at(place), **fields)

    def _begin(self, kind: str) -> Iterator[Event]:
        place = self._open = len(self._items)
        if kind == "message":
            item: dict[str, Any] = {"id": f"msg_{secrets.token_hex(12)}", "type": kind, "role": "assistant"}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": f"rs_{secrets.token_hex(12)}", "type": kind, "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        item |= {"status": "in_progress", "content": []}
        self._items.append(item)
        yield self._event("response.output_item.added", output_index=place, item={**item, "content": []})
        item["content"].append(part)
        yield self._event("response.content_part.added", **self._at(place), part=dict(part))

    def _close(self, state: str) -> Iterator[Event]:
        """End the open item of thoughts or words."""
        if self._open is None:
            return
        place, self._open = self._open, None
        part = self._items[place]["content"][0]
        said = {name: part[name] for name in ("text", "logprobs") if name in part}
        yield self._event(f"response.{part['type']}.done", **self._at(place), **said)
        yield self._event("response.content_part.done", **self._at(place), part=part)
        yield self._done(place, state)

    def _call(self, piece: dict[str, Any]) -> Iterator[Event]:
        """A piece of a function call; only the arguments come in several."""
        index, function = int(piece.get("index") or 0), piece.get("function") or {}
        if index not in self._calls:
            yield from self._close("completed")
            self._calls[index] = len(self._items)
            item = {
                "id": f"fc_{secrets.token_hex(12)}",
                "type": "function_call",
                "call_id": piece.get("id") or f"call_{secrets.token_hex(12)}",
                "name": function.get("name") or "",
                "arguments": "",
                "status": "in_progress",
            }
            self._items.append(item)
            yield self._event("response.output_item.added", output_index=self._calls[index], item=dict(item))
        place = self._calls[index]
        if arguments := function.get("arguments"):
            self._items[place]["arguments"] += arguments
            where = {"item_id": self._items[place]["id"], "output_index": place}
            yield self._event("response.function_call_arguments.delta", **where, delta=arguments)

    def _done(self, place: int, state: str) -> Event:
        self._items[place]["status"] = state
        return self._event("response.output_item.done", output_index=place, item=self._items[place])

    def _at(self, place: int) -> dict[str, Any]:
        return {"item_id": self._items[place]["id"], "output_index": place, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _response(self, answer: Answer, state: str) -> dict[str, Any]:
        body = self._body
        effort = body.reasoning.effort if body.reasoning else None
        named = body.tool_choice.model_dump() if isinstance(body.tool_choice, NamedTool) else body.tool_choice
        shown = body.text.format if body.text and body.text.format else TextFormat(type="text")
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": time.time() if state == "completed" else None,
            "status": state,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if state == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": answer.info.model if answer.info else body.model,
            "output": self._items if state != "in_progress" else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": effort, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": shown.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": named or "auto",
            "tools": [{"strict": None, "parameters": None, **tool.model_dump()} for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": body.truncation,
            "usage": _usage(answer),
            "user": body.user,
            "metadata": body.metadata or {},
            **answer.extras_timed,
        }


def _logprobs(logprobs: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [
        {**_entry(entry), "top_logprobs": [_entry(top) for top in entry.get("top_logprobs") or ()]}
        for entry in (logprobs or {}).get("content") or ()
    ]


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    raw = entry.get("bytes")
    return {
        "token": entry["token"],
        "logprob": entry["logprob"],
        "bytes": list(entry["token"].encode()) if raw is None else raw,
    }


def _usage(answer: Answer) -> dict[str, Any] | None:
    counts = answer.usage
    if counts is None:
        return None
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": counts["total_tokens"],
    }
