"""ShareGPT's layout: {"conversations": [{"from": "human"|"gpt"|"system", "value"}, …]}."""

from typing import Any

from mofang.data.formats.base import Format, answered, text, tools, turns
from mofang.data.rows import Conversation
from mofang.messages import Message


def _read(record: dict[str, Any]) -> Conversation:
    messages = answered(turns(record.get("conversations"), "conversations"), "conversations")
    system = text(record, "system", needed=False)
    return Conversation([Message("system", system), *messages] if system else messages, tools=tools(record))


FORMAT = Format(frozenset({"conversations"}), _read)
