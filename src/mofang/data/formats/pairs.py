"""Two answers to one question, {"chosen", "rejected"}, in the layouts that data sets of this kind have.

The question: "prompt" (text or messages), "instruction" with "input" (as in alpaca), "conversations" or "messages"; or
none, where both answers are whole conversations and begin alike. An answer: text, a message, or messages.
Source: trl's "Dataset formats and types" (explicit and implicit prompt); LLaMA-Factory's data/README.md.
"""

from typing import Any

from mofang.data.formats.alpaca import question
from mofang.data.formats.base import BadField, Format, answered, text, tools, turns
from mofang.data.rows import Pair
from mofang.messages import Message


def _read(record: dict[str, Any]) -> Pair:
    prompt = _prompt(record)
    chosen, rejected = (_answer(record, name) for name in ("chosen", "rejected"))
    shared = 0
    # Answers that tell the question again, or are the only ones to tell it. The last message is always the answer.
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared and (not prompt or chosen[:shared] == prompt):
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise BadField("prompt", "data.why_missing")
    if chosen == rejected:
        raise BadField("rejected", "data.why_same")
    return Pair(prompt, chosen, rejected, tools=tools(record))


def _prompt(record: dict[str, Any]) -> list[Message]:
    if record.get("instruction") is not None:
        return question(record)
    system = [Message("system", record["system"])] if text(record, "system", needed=False) else []
    if isinstance(record.get("prompt"), str):
        return [*system, Message("user", text(record, "prompt"))]
    for name in ("prompt", "conversations"):
        if record.get(name) is not None:
            return [*system, *turns(record[name], name)]
    return []


def _answer(record: dict[str, Any], name: str) -> list[Message]:
    value = record.get(name)
    if isinstance(value, dict):
        return answered(turns([value], name), name)
    if isinstance(value, list):
        return answered(turns(value, name), name)
    return [Message("assistant", text(record, name))]


FORMAT = Format(frozenset({"chosen", "rejected"}), _read)
