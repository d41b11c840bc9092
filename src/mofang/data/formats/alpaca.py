"""Stanford Alpaca's layout: {"instruction", "input", "output"}, and LLaMA-Factory's "system" and "history"."""

from typing import Any

from mofang.data.formats.base import BadField, Format, text
from mofang.data.rows import Conversation
from mofang.messages import Message


def question(record: dict[str, Any]) -> list[Message]:
    """All before the answer. Raises BadField."""
    messages = []
    if system := text(record, "system", needed=False):
        messages.append(Message("system", system))
    history = record.get("history") or []
    if not isinstance(history, list):
        raise BadField("history", "data.why_not_pairs")
    for turn in history:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn)):
            raise BadField("history", "data.why_not_pairs")
        messages += [Message("user", turn[0]), Message("assistant", turn[1])]
    asked, more = text(record, "instruction"), text(record, "input", needed=False)
    return [*messages, Message("user", f"{asked}\n{more}" if more.strip() else asked)]


def _read(record: dict[str, Any]) -> Conversation:
    return Conversation([*question(record), Message("assistant", text(record, "output"))])


FORMAT = Format(frozenset({"instruction", "output"}), _read)
