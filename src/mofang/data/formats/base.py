"""What every layout of examples offers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mofang.data.rows import Row
from mofang.messages import Message


class BadField(Exception):
    """A record's field cannot be used. The reader adds file and line."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field = field
        self.why = why
        """A key of strings/data.toml: what would be right."""


@dataclass(frozen=True, slots=True)
class Format:
    """`fields`: names by which a first record is recognized, all of them there. `read`: what a record teaches (the
    reader adds where it stands); raises BadField.
    """

    fields: frozenset[str]
    read: Callable[[dict[str, Any]], Row]


def text(record: dict[str, Any], name: str, *, needed: bool = True, label: str = "") -> str:
    """The text of a field. Raises BadField when it is no text, or empty where it is needed."""
    value = record.get(name)
    if value is None and not needed:
        return ""
    if value is None:
        raise BadField(label or name, "data.why_missing")
    if not isinstance(value, str):
        raise BadField(label or name, "data.why_not_text")
    if needed and not value.strip():
        raise BadField(label or name, "data.why_empty")
    return value


_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""OpenAI's names, and ShareGPT's."""


def turns(value: Any, name: str) -> list[Message]:
    """Messages of a list of {"role", "content"} or {"from", "value"}. Raises BadField."""
    if not isinstance(value, list) or not value:
        raise BadField(name, "data.why_not_list")
    return [_turn(item, f"{name}[{number}]") for number, item in enumerate(value)]


def _turn(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise BadField(where, "data.why_not_object")
    who, what = ("from", "value") if "from" in item else ("role", "content")
    role = _ROLES.get(str(item.get(who)))
    if role is None:
        raise BadField(f"{where}.{who}", "data.why_role")
    calls = item.get("tool_calls") or None
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise BadField(f"{where}.tool_calls", "data.why_not_list")
    return Message(
        role,
        text(item, what, needed=not calls, label=f"{where}.{what}"),
        item.get("name"),
        calls,
        item.get("tool_call_id"),
        item.get("reasoning_content"),
    )


def answered(messages: list[Message], name: str) -> list[Message]:
    """The same messages. Raises BadField when the last one is not the assistant's."""
    if messages[-1].role != "assistant":
        raise BadField(name, "data.why_last")
    return messages


def tools(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions that a record describes. Raises BadField."""
    value = record.get("tools") or []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadField("tools", "data.why_not_tools")
    return value
