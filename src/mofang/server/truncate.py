"""Makes a conversation fit where its request asks for that: the oldest turns go, and how many is told.

Never dropped: system messages, the last question and what follows it. A turn goes as a whole, so that a tool's result
stays with its call and an answer with its question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mofang.engine.base import ChatEngine
from mofang.messages import Message

PINNED = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Cut:
    """What was left, and what was not."""

    messages: Sequence[Message]
    dropped_messages: int = 0
    dropped_tokens: int = 0


def droppable(messages: Sequence[Message]) -> list[list[int]]:
    """Places of the messages of each turn that may go, oldest first. A turn begins with a user's message."""
    last = max((place for place, message in enumerate(messages) if message.role == "user"), default=0)
    turns: list[list[int]] = []
    for place, message in enumerate(messages[:last]):
        if message.role in PINNED:
            continue
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(place)
    return turns


async def cut_to(
    engine: ChatEngine, messages: Sequence[Message], room: int, options: Mapping[str, Any] | None = None
) -> Cut:
    """The messages without as few of the oldest turns as make the prompt at most `room` tokens long.

    Where even dropping all of them is not enough, they are all dropped: whether the rest fits is the engine's to say.
    """
    whole = await engine.count_tokens(messages, options=options)
    if whole <= room:
        return Cut(messages)
    turns = droppable(messages)

    def without(n_turns: int) -> list[Message]:
        gone = {place for turn in turns[:n_turns] for place in turn}
        return [message for place, message in enumerate(messages) if place not in gone]

    low, high = 0, len(turns)  # without(low) is too long, without(high) the shortest there is
    while high - low > 1:
        middle = (low + high) // 2
        fits = await engine.count_tokens(without(middle), options=options) <= room
        low, high = (low, middle) if fits else (middle, high)
    left = without(high)
    n_left = await engine.count_tokens(left, options=options)
    return Cut(left, len(messages) - len(left), whole - n_left)
