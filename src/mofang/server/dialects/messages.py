"""Anthropic's Messages API in terms of OpenAI's chat, and the answer back as its content blocks.

Source: Anthropic API reference, Messages and Streaming; the models of the official Python client.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from mofang.errors import Invalid
from mofang.messages import Delta
from mofang.server.answer import Answer, Choice
from mofang.server.dialects import Event
from mofang.server.faults import anthropic_fault
from mofang.wire import MANY, ChatRequest, Effort, KeepAlive, Request, Truncation, Word

# ---- the request ----


class CacheControl(Request):
    """Accepted: prefixes are found again by themselves, wherever they end."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Request):
    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ImageSource(Request):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class ImageBlock(Block):
    type: Literal["image"]
    source: ImageSource


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = None
    is_error: bool = False


class ThinkingBlock(Block):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


AnyBlock = Annotated[
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, Field(discriminator="type")
]


class Turn(Request):
    role: Literal["user", "assistant", "system"]
    content: str | list[AnyBlock]


class ToolSpec(Block):
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    type: Literal["custom"] | None = None


class ToolChoice(Request):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Request):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=0, le=MANY)
    display: Literal["summarized", "omitted"] | None = None
    """"omitted": thinking blocks come without their text."""


class OutputFormat(Request):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Request):
    effort: Effort | None = None
    format: OutputFormat | None = None


class Metadata(Request):
    user_id: str | None = None


class CountRequest(Request):
    """POST /v1/messages/count_tokens."""

    model: str = "auto"
    messages: list[Turn] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    keep_alive: KeepAlive | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages. `truncation` and `knowledge` are ours, as in chat."""

    max_tokens: int = Field(ge=1, le=MANY)
    stream: bool = False
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=MANY)
    stop_sequences: list[Word] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    truncation: Truncation = "disabled"
    knowledge: list[str] | None = None


# ---- into a chat ----


def to_chat(body: CountRequest) -> ChatRequest:
    """The same question in OpenAI's words. Raises Invalid for what has none."""
    messages = [shape for turn in body.messages for shape in _turn(turn)]
    if not messages:
        raise Invalid("server.no_answer_asked", param="messages")
    if body.system is not None:
        messages.insert(0, {"role": "system", "content": _text(body.system)})
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "keep_alive": body.keep_alive,
        **_tools(body),
        **_thinking(body),
    }
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_tokens": body.max_tokens,
            "stream": body.stream,
            "stop": body.stop_sequences or None,
            **{name: getattr(body, name) for name in ("temperature", "top_p", "top_k", "truncation", "knowledge")},
        }
    return ChatRequest.model_validate(fields)


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _turn(turn: Turn) -> Iterator[dict[str, Any]]:
    """A turn's messages: results of tools are messages of their own, and come before what is said beside them."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    for block in turn.content:
        if isinstance(block, ToolResultBlock):
            _only(turn, "user", block)
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
    calls = [_call(turn, block) for block in turn.content if isinstance(block, ToolUseBlock)]
    thoughts = [block.thinking for block in turn.content if isinstance(block, ThinkingBlock)]
    parts = [_part(block) for block in turn.content if isinstance(block, (TextBlock, ImageBlock))]
    if not (calls or parts or thoughts):
        return
    shape: dict[str, Any] = {"role": turn.role, "content": _plain(parts) or None}
    if calls:
        shape["tool_calls"] = calls
    if thoughts:
        _only(turn, "assistant", next(block for block in turn.content if isinstance(block, ThinkingBlock)))
        shape["reasoning_content"] = "\n".join(thoughts)
    yield shape


def _only(turn: Turn, role: str, block: Any) -> None:
    if turn.role != role:
        known = "text, image, tool_result" if turn.role == "user" else "text, tool_use, thinking"
        raise Invalid("server.unsupported_type", param="messages", type=f"{turn.role}: {block.type}", known=known)


def _call(turn: Turn, block: ToolUseBlock) -> dict[str, Any]:
    _only(turn, "assistant", block)
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _part(block: TextBlock | ImageBlock) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    return {"type": "image_url", "image_url": {"url": f"data:{block.source.media_type};base64,{block.source.data}"}}


def _plain(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text as text: what every chat template understands."""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _result(block: ToolResultBlock) -> str | list[dict[str, Any]]:
    """OpenAI's chat has no mark for a tool that failed, so the model is told in words."""
    content = block.content if isinstance(block.content, str) else [_part(one) for one in block.content or ()]
    if not block.is_error:
        return content if isinstance(content, str) else _plain(content) or ""
    told = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return _plain([{"type": "text", "text": "Error:"}, *told])


def _tools(body: CountRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    choice = body.tool_choice
    if choice is None:
        return fields
    if (choice.type == "tool") != (choice.name is not None):
        raise Invalid("server.needs_field", param="tool_choice", field="tool_choice.name", other="type: tool")
    named = {"type": "function", "function": {"name": choice.name}}
    words: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none", "tool": named}
    fields["tool_choice"] = words[choice.type]
    if choice.disable_parallel_tool_use is not None:
        fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return fields


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {**function, "strict": tool.strict}}


def _thinking(body: CountRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if body.thinking is not None:
        if (body.thinking.type == "enabled") != (body.thinking.budget_tokens is not None):
            raise Invalid("server.needs_field", param="thinking", field="budget_tokens", other="type: enabled")
        fields["enable_thinking"] = body.thinking.type != "disabled"
        if body.thinking.budget_tokens is not None:
            fields["reasoning_budget_tokens"] = body.thinking.budget_tokens
    if body.output_config is not None:
        fields["reasoning_effort"] = body.output_config.effort
        if body.output_config.format is not None:
            schema = {"name": "answer", "schema": body.output_config.format.schema_}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


# ---- the answer ----


class MessageTeller:
    """Tells an answer as content blocks, one open at a time. mofang.server.dialects.Teller."""

    def __init__(self, body: MessagesRequest) -> None:
        self._asked = body.model
        self._omit = body.thinking is not None and body.thinking.display == "omitted"
        self._id = f"msg_{secrets.token_hex(12)}"
        self._begun = False
        self._n_prompt = 0
        self._n_blocks = 0
        self._open: tuple[str, int] | None = None
        """Kind of the open block, and the number of the call for those that use a tool."""

    def piece(self, delta: Delta, answer: Answer) -> Iterator[Event]:
        if delta.progress is not None:
            self._n_prompt = delta.progress.total
        if not (delta.content or delta.reasoning or delta.tool_calls):
            return
        yield from self._greeting(answer)
        if delta.reasoning:
            yield from self._switch("thinking", 0, {"type": "thinking", "thinking": "", "signature": ""})
            if not self._omit:
                yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.content:
            yield from self._switch("text", 0, {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.content})
        for call in delta.tool_calls or ():
            index, function = int(call.get("index") or 0), call.get("function") or {}
            empty: dict[str, Any] = {
                "type": "tool_use",
                "id": call.get("id") or new_tool_id(),
                "name": function.get("name"),
                "input": {},
            }
            yield from self._switch("tool_use", index, empty)
            if function.get("arguments"):
                yield self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})

    def end(self, answer: Answer) -> Iterator[Event]:
        yield from self._greeting(answer)
        yield from self._close()
        why = answer.choice()
        delta = {"stop_reason": stop_reason(why), "stop_sequence": why.stopped_by}
        yield {"type": "message_delta", "delta": delta, "usage": usage(answer), **answer.extras_timed}
        yield {"type": "message_stop"}

    def whole(self, answer: Answer) -> dict[str, Any]:
        choice = answer.choice()
        content: list[dict[str, Any]] = []
        if choice.reasoning:
            thoughts = "" if self._omit else choice.reasoning
            content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
        if choice.content:
            content.append({"type": "text", "text": choice.content})
        content += [_use(call) for call in choice.tool_calls]
        ended = {"stop_reason": stop_reason(choice), "stop_sequence": choice.stopped_by}
        return {**self._head(answer), "content": content, **ended, "usage": usage(answer), **answer.extras_timed}

    def failed(self, fault: dict[str, Any], status: int) -> Iterator[Event]:
        yield anthropic_fault(fault, status)

    def _head(self, answer: Answer) -> dict[str, Any]:
        model = answer.info.model if answer.info else self._asked
        return {"id": self._id, "type": "message", "role": "assistant", "model": model}

    def _greeting(self, answer: Answer) -> Iterator[Event]:
        if not self._begun:
            self._begun = True
            ended = {"stop_reason": None, "stop_sequence": None}
            counts = {"input_tokens": self._n_prompt, "output_tokens": 0}
            yield {"type": "message_start", "message": {**self._head(answer), "content": [], **ended, "usage": counts}}

    def _switch(self, kind: str, index: int, empty: dict[str, Any]) -> Iterator[Event]:
        """Make the block of this kind the open one."""
        if self._open == (kind, index):
            return
        yield from self._close()
        self._open = (kind, index)
        yield {"type": "content_block_start", "index": self._n_blocks, "content_block": empty}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._n_blocks, "delta": delta}

    def _close(self) -> Iterator[Event]:
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._n_blocks}
            self._n_blocks += 1
            self._open = None


def new_tool_id() -> str:
    return f"toolu_{secrets.token_hex(12)}"


def stop_reason(choice: Choice) -> str:
    if choice.finish_reason == "length":
        return "max_tokens"
    if choice.tool_calls:
        return "tool_use"
    return "stop_sequence" if choice.stopped_by else "end_turn"


def usage(answer: Answer) -> dict[str, Any]:
    """Anthropic counts the tokens that were in the cache apart from the others."""
    counts = answer.usage or {"prompt_tokens": 0, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}}
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": counts["completion_tokens"],
    }


def _use(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": call["id"] or new_tool_id(),
        "name": function["name"],
        "input": _arguments(function["arguments"]),
    }


def _arguments(text: str) -> dict[str, Any]:
    """The arguments as the object that this API has; what a model wrote that is none stays readable."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"_raw": text}
