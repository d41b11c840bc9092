"""mofang.engine.base.ChatEngine over a worker: what engines with a child of ours share on the gateway's side."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from mofang.engine.base import EngineInfo
from mofang.engine.worker.process import WorkerProcess
from mofang.errors import EngineFailed, Invalid
from mofang.messages import Candidate, Delta, Message, NextToken, Progress, Sampling, Timings, Usage
from mofang.models.base import ModelRef
from mofang.settings import Settings

KINDS = ("chat", "base")


async def start(
    engine: str,
    module: str,
    options: dict[str, Any],
    ref: ModelRef,
    settings: Settings,
    *,
    progress: Callable[[Progress], None],
    env: dict[str, str] | None = None,
) -> "WorkerChat":
    """Start `module` for `ref` and wait until it has loaded. `options` are the engine's own, beside what all get.

    Raises Invalid for a model that generates no text, or what the child says of it.
    """
    if ref.kind not in KINDS:
        raise Invalid("engine.kind_unknown", param="model", engine=engine, model=ref.name, kind=ref.kind)

    configuration = {
        "engine": engine,
        "model": ref.name,
        "n_ctx": settings.n_ctx,
        "n_slots": settings.least_slots,
        **options,
    }
    process = await WorkerProcess.load(module, configuration, ref, settings, progress, env=env)
    return WorkerChat(engine, ref, process, settings)


class WorkerChat:
    """See the module."""

    def __init__(self, engine: str, ref: ModelRef, process: WorkerProcess, settings: Settings) -> None:
        self.ref = ref
        self._engine, self._process, self._settings = engine, process, settings

    def info(self) -> EngineInfo:
        return EngineInfo(
            model=self.ref.name,
            engine=self._engine,
            kind="chat",
            n_ctx=self._process.said["n_ctx"],
            n_slots=self._settings.least_slots,
            pid=self._process.pid,
            memory_bytes=self._process.memory_bytes(),
            provider=self._process.said["provider"],
        )

    def alive(self) -> bool:
        return self._process.alive()

    async def close(self) -> None:
        await self._process.close()

    async def busy(self) -> int:
        """Answers under way in the child."""
        return int(await self._process.call("busy"))

    async def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return [token for token, _ in await self.pieces(text, add_special=add_special, parse_special=parse_special)]

    async def pieces(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[tuple[int, bytes]]:
        if not parse_special:
            raise Invalid("engine.option_unknown", param="parse_special", engine=self._engine, name="parse_special")
        found = await self._process.call("tokenize", text=text, special=add_special)
        return [(token, bytes(piece)) for token, piece in found]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return str(await self._process.call("detokenize", tokens=list(tokens)))

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        kwargs = self._kwargs(options or {}) | (template_kwargs or {})
        return str(await self._process.call("render", messages=_plain(messages), template_kwargs=kwargs))

    async def count_tokens(self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None) -> int:
        kwargs = self._kwargs(options or {})
        return int(await self._process.call("count_tokens", messages=_plain(messages), template_kwargs=kwargs))

    def _kwargs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What of the options reaches the prompt. Raises Invalid for what would, and is not known here."""
        for name in ("tools", "reasoning_effort"):
            if options.get(name):
                raise Invalid("engine.option_unknown", param=name, engine=self._engine, name=name)
        return dict(options.get("chat_template_kwargs") or {})

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        return self._generate({"messages": _plain(messages)}, sampling)

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        return self._generate({"prompt": prompt}, sampling)

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        found = await self._process.call("next_token", prompt=prompt, forced=forced, n_top=n_top)
        top = (Candidate(token, text, logprob, tuple(raw)) for token, text, logprob, raw in found["top"])
        return NextToken(found["forced"], tuple(top))

    async def _generate(self, asked: dict[str, Any], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """What nobody chose is left to the child."""
        named = {name: value for name, value in asdict(sampling).items() if name != "options" and value is not None}
        named["max_tokens"] = sampling.max_tokens or self._settings.max_tokens
        ended = False
        pieces = self._process.pieces("generate", sampling={**sampling.options, **named}, **asked)
        async with aclosing(pieces):
            async for piece in pieces:
                ended = "finish_reason" in piece
                yield _delta(piece)
        if not ended:
            raise EngineFailed("engine.failed", model=self.ref.name, why="no finish_reason")


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [asdict(message) for message in messages]


def _delta(piece: dict[str, Any]) -> Delta:
    shapes = {"usage": Usage, "timings": Timings, "progress": Progress}
    return Delta(**{name: shapes[name](**value) if name in shapes else value for name, value in piece.items()})
