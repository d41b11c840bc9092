"""ShareGPT's layout: {"conversations": [{"from": "human"|"gpt"|"system", "value"}, …]}."""

from typing import Any, Literal

from mofang.data.formats.base import BadField, Format, text
from mofang.messages import Message

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


def _read(record: dict[str, Any]) -> list[Message]:
    listed = record.get("conversations")
    if not isinstance(listed, list) or not listed:
        raise BadField("conversations", "data.why_not_list")
    messages = []
    if system := text(record, "system", needed=False):
        messages.append(Message("system", system))
    for number, item in enumerate(listed):
        where = f"conversations[{number}]"
        if not isinstance(item, dict):
            raise BadField(where, "data.why_not_object")
        role = _ROLES.get(str(item.get("from")))
        if role is None:
            raise BadField(f"{where}.from", "data.why_role")
        messages.append(Message(role, text(item, "value", label=f"{where}.value")))
    if messages[-1].role != "assistant":
        raise BadField("conversations", "data.why_last")
    return messages


FORMAT = Format(frozenset({"conversations"}), _read)
