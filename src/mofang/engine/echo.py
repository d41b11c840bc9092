"""An engine that repeats the last message, character by character: for tests and load trials of everything above it.

Honest where it counts: whole characters, one token a character, stop words, max_tokens, usage, slots that one more waits
for. A model's manifest may hold {"echo": {"delay_s": 0.0, "n_slots": 8, "n_ctx": 8192, "crash_after": 3}}: `crash_after`
characters it dies as a killed child does.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from mofang.engine.base import EngineInfo
from mofang.errors import EngineFailed, Invalid
from mofang.messages import Candidate, Delta, Message, NextToken, Progress, Sampling, Timings, Usage
from mofang.models.base import ModelRef
from mofang.settings import Settings


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> "EchoEngine":
    progress(Progress("load", 1, 1))
    return EchoEngine(ref, settings)


class EchoEngine:
    """mofang.engine.base.ChatEngine without a model."""

    def __init__(self, ref: ModelRef, settings: Settings) -> None:
        options: dict[str, Any] = ref.manifest.get("echo", {})
        self._name = ref.name
        self._max_tokens = settings.max_tokens
        self._delay_s = float(options.get("delay_s", 0.0))
        self._n_slots = int(options.get("n_slots", 8))
        self._slots = asyncio.Semaphore(self._n_slots)
        self._n_ctx = int(options.get("n_ctx", settings.n_ctx))
        self._crash_after: int | None = options.get("crash_after")
        self._alive = True

    def info(self) -> EngineInfo:
        return EngineInfo(self._name, "echo", "chat", self._n_ctx, self._n_slots, pid=None, memory_bytes=0)

    def alive(self) -> bool:
        return self._alive

    async def close(self) -> None:
        self._alive = False

    async def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return [ord(character) for character in text]

    async def pieces(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[tuple[int, bytes]]:
        return [(ord(character), character.encode()) for character in text]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(map(_character, tokens))

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        return "".join(f"{message.role}: {message.text}\n" for message in messages)

    async def count_tokens(self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None) -> int:
        return len(await self.render(messages))

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Delta]:
        n_prompt = sum(len(message.role) + 3 + len(message.text) for message in messages)
        return self._say(messages[-1].text if messages else "", n_prompt, sampling)

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncIterator[Delta]:
        text = prompt if isinstance(prompt, str) else "".join(map(_character, prompt))
        return self._say(text, len(text), sampling)

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        """Certain of the prompt's first character, and of nothing else."""
        text = prompt if isinstance(prompt, str) else "".join(map(_character, prompt))
        first = Candidate(ord(text[0]), text[0], 0.0, tuple(text[0].encode()))
        return NextToken((0.0 if forced == first.token_id else -100.0) if forced is not None else None, (first,))

    async def _say(self, text: str, n_prompt: int, sampling: Sampling) -> AsyncIterator[Delta]:
        if n_prompt >= self._n_ctx:
            raise Invalid("engine.context_length_exceeded", param="messages", n_prompt=n_prompt, n_ctx=self._n_ctx)
        yield Delta(progress=Progress("prompt", n_prompt, n_prompt, "tokens"))
        ends = [(at, stop) for at, stop in ((text.find(stop), stop) for stop in sampling.stop if stop) if at >= 0]
        said = text[: min(ends)[0]] if ends else text
        limit = min(sampling.max_tokens or self._max_tokens, self._n_ctx - n_prompt)
        async with self._slots:
            began = time.perf_counter()
            for number, character in enumerate(said[:limit]):
                await asyncio.sleep(self._delay_s)
                if number == self._crash_after:
                    self._alive = False
                if not self._alive:
                    raise EngineFailed("engine.engine_died", model=self._name, exit_code=-9, why="echo")
                yield Delta(content=character)
        n_said = min(len(said), limit)
        finish = "length" if len(said) > limit else "stop"
        usage = Usage(n_prompt, n_said)
        seconds = max(time.perf_counter() - began, 1e-6)
        timings = Timings(0.0, 1000 * seconds, 0.0, n_said / seconds)
        stopped_by = min(ends)[1] if ends and finish == "stop" else None
        yield Delta(finish_reason=finish, usage=usage, timings=timings, stopped_by=stopped_by)


def _character(token: int) -> str:
    """A token is the number of a character. Raises Invalid where there is none."""
    if not 0 <= token <= sys.maxunicode or 0xD800 <= token <= 0xDFFF:
        raise Invalid("engine.no_such_token", param="tokens", token=token, n_vocab=sys.maxunicode + 1)
    return chr(token)
