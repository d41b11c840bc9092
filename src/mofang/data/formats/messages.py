"""OpenAI's layout for fine-tuning: {"messages": [{"role", "content"}, …]}, with its "tools"."""

from typing import Any

from mofang.data.formats.base import Format, answered, tools, turns
from mofang.data.rows import Conversation


def _read(record: dict[str, Any]) -> Conversation:
    return Conversation(answered(turns(record.get("messages"), "messages"), "messages"), tools=tools(record))


FORMAT = Format(frozenset({"messages"}), _read)
