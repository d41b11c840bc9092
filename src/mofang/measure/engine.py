"""Measuring a model that an engine of ours holds."""

from collections.abc import Sequence

from mofang.engine.base import ChatEngine
from mofang.messages import Message, NextToken, Sampling


class OverEngine:
    """measure.base.Asked over a ChatEngine."""

    def __init__(self, engine: ChatEngine) -> None:
        self.engine = engine
        self.name = engine.info().model

    async def tokenize(self, text: str) -> list[int]:
        return await self.engine.tokenize(text)

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        return await self.engine.next_token(prompt, forced=forced, n_top=n_top)

    async def answer(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
        return "".join([delta.content async for delta in self.engine.chat(messages, sampling)])
