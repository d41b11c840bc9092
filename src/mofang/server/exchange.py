"""Conversations as files: ours as JSON (the whole tree) or Markdown (one path), and others' exports read in.

Pure functions over JSON; knows neither the store nor HTTP. A format that is read is a function and its line in READERS.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from mofang.errors import Invalid, NotFound
from mofang.messages import Role, Source, Timings
from mofang.server.faults import fit
from mofang.server.store import Read
from mofang.strings import say, where
from mofang.wire import MANY_CHARS, ChatMessage, NewConversation, Part, Request, SamplingFields, ToolCall

FORMAT, VERSION = "mofang.conversations", 1
KEPT = ("title", "system", "model", "knowledge", "sampling", "prefix", "tools", "beside", "created_at")
"""What is told of a conversation beside its messages."""
BESIDE = (
    "name", "tool_calls", "tool_call_id", "outcome", "seconds", "edits", "finish_reason", "n_ctx", "first_token_ms", "files",
)  # fmt: skip
"""Fields of a message that not every message has."""
SPEAKERS: dict[Role, str] = {
    "user": "server.export_user",
    "assistant": "server.export_assistant",
    "system": "server.export_system",
    "developer": "server.export_system",
    "tool": "server.export_tool",
}
"""What each is called where no model's name says it."""
OVER = {"queued": "stopped", "running": "stopped"}
"""An answer that was under way when it was exported is over where it is read in."""


class Counts(Request):
    """OpenAI's usage."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, int] = Field(default_factory=dict)
    completion_tokens_details: dict[str, int] = Field(default_factory=dict)


class CountedFile(Request):
    """A file that an answer's prompt held."""

    file_id: str
    filename: str
    tokens: int | None = None
    notes: list[str] = Field(default_factory=list)


class ExportedMessage(Request):
    """A message as `json_of` writes it."""

    id: str = Field(min_length=1, max_length=200)
    parent_id: str | None = None
    role: Role
    content: str | list[Part] = Field(max_length=MANY_CHARS)
    reasoning: str = ""
    sources: list[Source] = Field(default_factory=list)
    usage: Counts | None = None
    timings: Timings | None = None
    model: str | None = None
    status: Literal["queued", "running", "done", "stopped", "error"] = "done"
    created_at: datetime | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    outcome: Literal["done", "failed", "refused", "stopped"] | None = None
    seconds: float | None = None
    edits: str | None = None
    finish_reason: str | None = None
    n_ctx: int | None = None
    first_token_ms: float | None = None
    files: list[CountedFile] | None = None


class ExportedConversation(NewConversation):
    """A conversation as `json_of` writes it."""

    greeting: None = None
    created_at: datetime | None = None
    messages: list[ExportedMessage]


class Exported(Request):
    """The file."""

    format: Literal["mofang.conversations"]
    version: Literal[1]
    conversations: list[ExportedConversation] = Field(min_length=1)


# ---- out ----


def json_of(conversations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The file of whole conversations, as `read` reads it back."""
    return {"format": FORMAT, "version": VERSION, "conversations": [_exported(one) for one in conversations]}


def _exported(conversation: Mapping[str, Any]) -> dict[str, Any]:
    names = ExportedMessage.model_fields
    messages = [
        {name: value for name, value in message.items() if name in names} for message in conversation["messages"]
    ]
    return {**{name: conversation[name] for name in KEPT}, "messages": messages}


def path_to(conversation: Mapping[str, Any], leaf: str | None) -> list[dict[str, Any]]:
    """The messages from the first down to `leaf`; None: to the newest. Raises NotFound."""
    messages = {message["id"]: message for message in conversation["messages"]}
    if leaf is not None and leaf not in messages:
        raise NotFound("server.message_not_found", id=leaf, conversation=conversation["id"])
    at = leaf if leaf is not None else next(reversed(messages), None)
    path = []
    while at is not None:
        path.append(messages[at])
        at = messages[at]["parent_id"]
    return path[::-1]


def markdown_of(conversation: Mapping[str, Any], path: Sequence[Mapping[str, Any]], lang: str) -> str:
    """What was said along one path, for people to read."""
    parts = [f"# {conversation['title'] or say('server.export_untitled', lang=lang)}"]
    if conversation["system"]:
        parts.append("\n".join(f"> {line}".rstrip() for line in conversation["system"].splitlines()))
    for message in path:
        who = message["model"] if message["role"] == "assistant" else None
        parts.append(f"## {who or say(SPEAKERS[message['role']], lang=lang)}")
        parts += [_files(message["content"]), _text(message["content"])]
        if message["sources"]:
            lines = [_source(source, lang) for source in message["sources"]]
            parts.append(f"{say('server.export_sources', lang=lang)}\n\n" + "\n".join(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def _source(source: Mapping[str, Any], lang: str) -> str:
    return f"{source['number']}. " + " · ".join([str(source["title"]), *where(source, lang)])


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n\n".join(str(part.get("text") or "") for part in content if part.get("type") == "text")
    return str(content or "")


def _files(content: Any) -> str:
    """The names of the files that a turn refers to, one a line."""
    parts = content if isinstance(content, list) else []
    names = [part["file"].get("filename") or part["file"]["file_id"] for part in parts if part.get("type") == "file"]
    return "\n".join(f"- 📎 {name}" for name in names)


# ---- in ----


def read(data: Any, lang: str) -> list[Read]:
    """Every conversation of an export. Raises Invalid where it is none, or broken."""
    for reader in READERS:
        if (found := reader(data, lang)) is not None:
            return found
    raise Invalid("server.import_unknown", param="body")


def _ours(data: Any, lang: str) -> list[Read] | None:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        return None
    if data.get("version") != VERSION:
        raise Invalid("server.import_version", param="version", found=data.get("version"), known=VERSION)
    file: Exported = fit(Exported, data, field="body", lang=lang)
    return [_one_of_ours(one, lang) for one in file.conversations]


def _one_of_ours(one: ExportedConversation, lang: str) -> Read:
    fields = one.model_dump(exclude_none=True, exclude={"messages", "created_at"})
    fit(SamplingFields, one.sampling or {}, field="sampling", lang=lang)
    if one.created_at:
        fields["created_at"] = _stamp(one.created_at)
    seen: set[str] = set()
    messages = []
    for message in one.messages:
        if message.id in seen or message.parent_id not in {None, *seen}:
            raise Invalid("server.import_tree", param="messages", id=message.id)
        seen.add(message.id)
        dumped = message.model_dump(mode="json", exclude_unset=True)
        shape = {name: value for name, value in dumped.items() if value is not None}
        content = shape.pop("content")
        extra = {name: shape.pop(name) for name in BESIDE if name in shape}
        if isinstance(content, list):
            extra["parts"] = content
        messages.append(
            {
                **shape,
                "parent_id": message.parent_id,
                "content": _text(content),
                "created_at": _stamp(message.created_at),
                "status": OVER.get(message.status, message.status),
                "extra": extra,
            }
        )
    return Read(fields, messages)


def _chatgpt(data: Any, lang: str) -> list[Read] | None:
    """ChatGPT's conversations.json: trees under "mapping", of which we take what was written."""
    listed = data if isinstance(data, list) else [data]
    if not listed or not all(isinstance(one, dict) and isinstance(one.get("mapping"), dict) for one in listed):
        return None
    return [_one_of_chatgpt(one) for one in listed]


def _one_of_chatgpt(one: Mapping[str, Any]) -> Read:
    nodes = {str(name): node for name, node in one["mapping"].items() if isinstance(node, dict)}
    shown: set[str] = set()
    at = _id(one.get("current_node"))
    while at in nodes and at not in shown:
        shown.add(at)
        at = _id(nodes[at].get("parent"))
    found = Read({"title": str(one.get("title") or "")[:200]})
    if stamp := _time(one.get("create_time")):
        found.fields["created_at"] = stamp
    roots = [name for name, node in nodes.items() if _id(node.get("parent")) not in nodes]
    waiting: list[tuple[str, str | None]] = [(name, None) for name in reversed(roots)]
    seen: set[str] = set()
    while waiting:
        name, parent = waiting.pop()
        if name in seen:
            raise Invalid("server.import_tree", param="mapping", id=name)
        seen.add(name)
        message = nodes[name].get("message")
        text, role = _written(message)
        if text:
            assert isinstance(message, dict)
            found.messages.append(
                {
                    "id": name,
                    "parent_id": parent,
                    "role": role,
                    "content": text,
                    "created_at": _time(message.get("create_time")),
                    "model": _slug(message) if role == "assistant" else None,
                }
            )
            parent = name
        elif message is not None and role != "system":
            found.skipped += 1
        listed = nodes[name].get("children")
        named = map(_id, listed if isinstance(listed, list) else ())
        children = [child for child in named if child in nodes]
        # The branch that was looked at comes last, and so is the one that is shown.
        waiting += [(child, parent) for child in sorted(children, key=shown.__contains__)[::-1]]
    if len(seen) < len(nodes):
        raise Invalid("server.import_tree", param="mapping", id=next(iter(nodes.keys() - seen)))
    return found


def _id(value: Any) -> str | None:
    """A node's name; None for none, and for what cannot be one."""
    return str(value) if isinstance(value, str | int) else None


def _written(message: Any) -> tuple[str, str]:
    """Text and role; "" for what is no text: calls of tools, images, empty turns."""
    if not isinstance(message, dict):
        return "", ""
    author, content = message.get("author"), message.get("content")
    role = str(author.get("role") or "") if isinstance(author, dict) else ""
    parts = content.get("parts") if isinstance(content, dict) else None
    text = "\n\n".join(part for part in parts if isinstance(part, str)) if isinstance(parts, list) else ""
    return (text if role in ("user", "assistant") else ""), role


def _slug(message: Mapping[str, Any]) -> str | None:
    metadata = message.get("metadata")
    return str(metadata["model_slug"]) if isinstance(metadata, dict) and metadata.get("model_slug") else None


def _openai(data: Any, lang: str) -> list[Read] | None:
    """{"messages": [{"role", "content"}…]}, a list of such, or a list of messages alone."""
    listed = data if isinstance(data, list) else [data]
    if listed and all(isinstance(one, dict) and "role" in one for one in listed):
        listed = [{"messages": listed}]
    if not listed or not all(isinstance(one, dict) and isinstance(one.get("messages"), list) for one in listed):
        return None
    return [_one_of_openai(one, lang) for one in listed]


def _one_of_openai(one: Mapping[str, Any], lang: str) -> Read:
    found, system, parent = Read({"title": str(one.get("title") or "")[:200]}), [], None
    for number, raw in enumerate(one["messages"]):
        message = fit(ChatMessage, raw, field=f"messages[{number}]", lang=lang).to_message()
        if message.role in ("system", "developer") and not found.messages:
            system.append(message.text)
            continue
        extra = {name: value for name in ("name", "tool_calls", "tool_call_id") if (value := getattr(message, name))}
        if isinstance(message.content, list):
            extra["parts"] = message.content
        found.messages.append(
            {
                "id": str(number),
                "parent_id": parent,
                "role": message.role,
                "content": message.text,
                "reasoning": message.reasoning_content or "",
                "extra": extra,
            }
        )
        parent = str(number)
    if system:
        found.fields["system"] = "\n\n".join(system)
    return found


READERS: Sequence[Callable[[Any, str], list[Read] | None]] = (_ours, _chatgpt, _openai)
"""Each tells what it is given, None where that is not its format."""


def _stamp(moment: datetime | None) -> str | None:
    """As the store writes moments."""
    if moment is None:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(seconds: Any) -> str | None:
    """A Unix time, where it is one."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return None
    try:
        return _stamp(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        return None
