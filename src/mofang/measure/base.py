"""What a measurement asks of a model."""

from collections.abc import Sequence
from typing import Protocol

from mofang.messages import Message, NextToken


class Asked(Protocol):
    """A model that can be measured, here or behind HTTP."""

    name: str

    async def tokenize(self, text: str) -> list[int]:
        """Ids of raw text, nothing added."""
        ...

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        """What is expected after `prompt`; see engine.base.ChatEngine."""
        ...

    async def answer(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """The answer to a conversation at temperature 0."""
        ...
