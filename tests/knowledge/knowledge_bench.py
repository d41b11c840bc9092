"""A library over the test embedder, which counts what it embeds; a chat engine that only counts tokens."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from mofang.engine.base import EngineInfo, Purpose, Vectors
from mofang.engine.hashed import HashEmbedder
from mofang.errors import TooLarge
from mofang.knowledge.base import AddReport
from mofang.knowledge.library import Library
from mofang.messages import Delta, Message, Progress, Sampling


class CountingEmbedder(HashEmbedder):
    """Keeps every text it was given; takes at most `longest` characters; fails with `fault` when set."""

    def __init__(self, name: str = "hash") -> None:
        super().__init__(name)
        self.passages: list[str] = []
        self.queries: list[str] = []
        self.longest = 8192
        self.fault: Exception | None = None

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        if self.fault is not None:
            raise self.fault
        for text in texts:
            if len(text) > self.longest:
                raise TooLarge("engine.text_too_long", text=text[:10], n_tokens=len(text), n_ctx=self.longest)
        (self.queries if purpose == "query" else self.passages).extend(texts)
        return await super().embed(texts, purpose)


class TokenCounter:
    """The part of a ChatEngine that grounding needs: a token is a character."""

    def info(self) -> EngineInfo:
        return EngineInfo("counter", "test", "chat", 8192, 1, None, 0)

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.text) for message in messages)

    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Delta]:
        """It has nothing to say, so a follow-up question is not rewritten."""
        return
        yield


class Bench:
    """A library with one base "库", and short ways to fill it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.embedder = CountingEmbedder()
        self.opened: list[str] = []
        self.forced_name = ""
        """What the embedder calls itself, when it is not what it was asked for as."""
        self.progress: list[Progress] = []
        self.library = Library(folder / "knowledge", self.open)
        self.library.create("库", embedding_model="hash")

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[CountingEmbedder]:
        self.opened.append(name)
        self.embedder._name = self.forced_name or name
        yield self.embedder

    def write(self, name: str, content: str | bytes) -> tuple[str, Path]:
        path = self.folder / "incoming" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name, path

    async def add(self, *files: tuple[str, Path], base: str = "库") -> AddReport:
        return await self.library.add(base, files, progress=self.progress.append)

    async def put(self, name: str, content: str | bytes, base: str = "库") -> AddReport:
        return await self.add(self.write(name, content), base=base)
