"""OpenAI's layout for fine-tuning: {"messages": [{"role", "content"}, …]}."""

from typing import Any

from mofang.data.formats.base import BadField, Format, text
from mofang.messages import Message

_ROLES = ("system", "user", "assistant", "tool")


def _read(record: dict[str, Any]) -> list[Message]:
    listed = record.get("messages")
    if not isinstance(listed, list) or not listed:
        raise BadField("messages", "data.why_not_list")
    messages = []
    for number, item in enumerate(listed):
        where = f"messages[{number}]"
        if not isinstance(item, dict):
            raise BadField(where, "data.why_not_object")
        role = item.get("role")
        if role not in _ROLES:
            raise BadField(f"{where}.role", "data.why_role")
        calls = item.get("tool_calls")
        content = text(item, "content", needed=not calls, label=f"{where}.content")
        messages.append(
            Message(
                role, content, item.get("name"), calls if isinstance(calls, list) else None, item.get("tool_call_id")
            )
        )
    if messages[-1].role != "assistant":
        raise BadField("messages", "data.why_last")
    return messages


FORMAT = Format(frozenset({"messages"}), _read)
