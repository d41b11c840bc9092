"""Stanford Alpaca's layout: {"instruction", "input", "output"}, and LLaMA-Factory's "system" and "history"."""

from typing import Any

from mofang.data.formats.base import BadField, Format, text
from mofang.messages import Message


def _read(record: dict[str, Any]) -> list[Message]:
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
    question, more = text(record, "instruction"), text(record, "input", needed=False)
    messages.append(Message("user", f"{question}\n{more}" if more.strip() else question))
    messages.append(Message("assistant", text(record, "output")))
    return messages


FORMAT = Format(frozenset({"instruction", "output"}), _read)
