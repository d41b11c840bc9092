"""Tiny, honest stand-ins: an engine that says what a test scripts, an embedder, a pool of them, a library.

They keep the contracts of engine/base.py and server/rooms.py, and remember what was done to them.
"""

import asyncio
import builtins
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mofang.engine.base import EngineInfo, Kind, Purpose, Vectors
from mofang.errors import Busy, Conflict, EngineFailed, Invalid, NotFound, Unreadable
from mofang.knowledge.base import AddReport, Chunk, DocumentInfo, FileReport, Hit, KnowledgeInfo, Span
from mofang.knowledge.within import Filter
from mofang.messages import Candidate, Delta, Message, NextToken, Progress, Sampling, Source, Timings, Usage

Step = Delta | Exception | asyncio.Event | float
"""What a scripted answer does next: say a piece, fail, wait for a test, or sleep."""

TIMINGS = Timings(prompt_ms=10.0, predicted_ms=100.0, prompt_per_second=1000.0, predicted_per_second=50.0)


def spoken(text: str, *, finish: str = "stop", prompt_tokens: int = 7, index: int = 0) -> list[Step]:
    """A script that says `text` character by character and ends as engines do."""
    usage = Usage(prompt_tokens, len(text), cached_tokens=3)
    last = Delta(finish_reason=finish, usage=usage, timings=TIMINGS, index=index)
    return [*(Delta(char, index=index) for char in text), last]


class ScriptedEngine:
    """A chat engine that follows `script`; without one it echoes the last user message."""

    def __init__(self, model: str = "echo", script: Sequence[Step] | None = None, n_ctx: int = 4096) -> None:
        self.model = model
        self.script = script
        self.n_ctx = n_ctx
        self.asked: list[tuple[Any, Sampling]] = []
        """Everything that was asked: (messages or prompt, sampling)."""
        self.open = 0
        """Answers under way: back to 0 when every iterator was closed."""
        self.closed_early = 0
        self.tasks: set[int] = set()
        self.images = False

    def info(self) -> EngineInfo:
        return EngineInfo(self.model, "scripted", "chat", self.n_ctx, 2, None, 0, images=self.images)

    async def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return [ord(char) for char in text]

    async def pieces(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[tuple[int, bytes]]:
        return [(ord(char), char.encode()) for char in text]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        if not all(0 <= token < 0xD800 or 0xDFFF < token < 0x110000 for token in tokens):
            raise Invalid("engine.no_such_token", param="tokens", token=max(tokens), n_vocab=0x110000)
        return "".join(map(chr, tokens))

    async def close(self) -> None: ...

    def alive(self) -> bool:
        return True

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Delta]:
        self.asked.append((list(messages), sampling))
        said = next((m.text for m in reversed(messages) if m.role == "user"), "")
        return self._follow(self.script or spoken(said, prompt_tokens=sum(len(m.text) for m in messages)))

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncIterator[Delta]:
        self.asked.append((prompt, sampling))
        said = prompt if isinstance(prompt, str) else "".join(chr(token % 0xD800) for token in prompt)
        return self._follow(self.script or spoken(said[::-1], prompt_tokens=len(said)))

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        self.asked.append((prompt, Sampling(options={"forced": forced, "n_top": n_top})))
        top = tuple(Candidate(ord(label), label, logprob) for label, logprob in (("A", -0.5), ("B", -1.5)))
        return NextToken(-2.0 if forced is not None else None, top[:n_top])

    async def _follow(self, script: Sequence[Step]) -> AsyncIterator[Delta]:
        self.open += 1
        finished = False
        try:
            for step in script:
                if isinstance(step, Delta):
                    await asyncio.sleep(0)
                    yield step
                elif isinstance(step, Exception):
                    raise step
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    await asyncio.sleep(step)
            finished = True
        finally:
            self.open -= 1
            self.closed_early += not finished

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        tools = "".join(f"<tool>{tool['function']['name']}" for tool in (options or {}).get("tools") or ())
        return tools + "".join(f"<{m.role}>{m.text}" for m in messages)

    async def count_tokens(self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None) -> int:
        return len(await self.render(messages, options=options))


class HashEmbedder:
    """Eight numbers from a digest: the same text is the same vector."""

    dimensions = 8

    def __init__(self, model: str = "hash") -> None:
        self.model = model

    def info(self) -> EngineInfo:
        return EngineInfo(self.model, "scripted", "embedding", 512, 1, None, 0)

    async def tokenize(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    async def close(self) -> None: ...

    def alive(self) -> bool:
        return True

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        rows = [np.frombuffer(hashlib.sha256(f"{purpose}:{text}".encode()).digest()[:8], np.uint8) for text in texts]
        vectors = np.stack(rows).astype(np.float32) + 1
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


class SharedLetters:
    """A reranker: the share of the query's characters that a document has."""

    def info(self) -> EngineInfo:
        return EngineInfo("letters", "scripted", "reranker", 512, 1, None, 0)

    async def tokenize(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    async def close(self) -> None: ...

    def alive(self) -> bool:
        return True

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        return [len(set(query) & set(document)) / len(set(query)) for document in documents]


class FakePool:
    """Engines by name. `busy` makes every use fail; `loading` is reported before the first use of a model."""

    def __init__(self, *engines: Any) -> None:
        self.engines = {engine.info().model: engine for engine in engines}
        self.busy: Busy | None = None
        self.loading: list[Progress] = []
        self.in_memory: list[str] = []
        self.kept: list[float | None] = []
        """What each use wished for `keep_alive`."""

    @asynccontextmanager
    async def use(
        self,
        name: str,
        kind: Kind,
        *,
        progress: Callable[[Progress], None] | None = None,
        keep_alive: float | None = None,
    ) -> AsyncIterator[Any]:
        self.kept.append(keep_alive)
        if self.busy:
            raise self.busy
        engine = self._find(name, kind)
        if engine.info().model not in self.in_memory:
            for step in self.loading:
                if progress:
                    progress(step)
                await asyncio.sleep(0)
            self.in_memory.append(engine.info().model)
        yield engine

    def _find(self, name: str, kind: Kind | None) -> Any:
        of_kind = [engine for engine in self.engines.values() if kind in (None, engine.info().kind)]
        if name == "auto":
            return of_kind[0]
        if name not in self.engines:
            raise NotFound("models.model_not_found", name=name, cure="-")
        if self.engines[name] not in of_kind:
            found = self.engines[name].info().kind
            raise Invalid("models.wrong_kind", param="model", name=name, found=found, wanted=kind)
        return self.engines[name]

    async def load(
        self,
        name: str,
        kind: Kind | None = None,
        *,
        pin: bool | None = None,
        keep_alive: float | None = None,
        reload: bool = False,
        replicas: tuple[int, int] | None = None,
    ) -> EngineInfo:
        self.kept.append(keep_alive)
        engine = self._find(name, kind)
        self.in_memory.append(engine.info().model)
        info: EngineInfo = engine.info()
        return replace(info, pinned=bool(pin))

    async def unload(self, name: str) -> None:
        self.in_memory = [one for one in self.in_memory if one != name]

    def waiting(self) -> dict[str, int]:
        return {}

    def loaded(self) -> list[EngineInfo]:
        return [self.engines[name].info() for name in self.in_memory]

    async def close(self) -> None:
        self.in_memory.clear()


@dataclass
class FakeGrounding:
    messages: list[Message]
    sources: list[Source]
    notices: list[str]
    answer: str = ""


@dataclass
class FakeLibrary:
    """Whole files as documents; a search finds every document that shares a character with the query."""

    originals: Path | None = None
    bases: dict[str, dict[str, tuple[DocumentInfo, str]]] = field(default_factory=dict)
    infos: dict[str, KnowledgeInfo] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    slow_s: float = 0.0
    ingesters: list[Any] = field(default_factory=list)
    """Who was to take each call's files in."""

    def create(self, name: str, *, title: str = "", embedding_model: str, store: str = "builtin") -> KnowledgeInfo:
        if name in self.bases:
            raise Conflict("core.unexpected", why="exists", log="-")
        self.bases[name] = {}
        self.infos[name] = KnowledgeInfo(name, title, embedding_model, 8, 0, 0, 0, "2026-11-24T00:00:00Z", store)
        return self.infos[name]

    def _base(self, name: str) -> dict[str, tuple[DocumentInfo, str]]:
        if name not in self.bases:
            raise NotFound("core.unexpected", why=name, log="-")
        return self.bases[name]

    def list(self) -> Sequence[KnowledgeInfo]:
        return [self.info(name) for name in self.bases]

    def names(self) -> builtins.list[str]:
        return sorted(self.bases)

    def retitle(self, name: str, title: str) -> None:
        self.infos[name] = replace(self.infos[name], title=title)

    def info(self, name: str) -> KnowledgeInfo:
        documents = self._base(name)
        return replace(self.infos[name], n_documents=len(documents))

    def remove(self, name: str) -> None:
        self._base(name)
        del self.bases[name]

    def documents(self, name: str) -> Sequence[DocumentInfo]:
        return [info for info, _ in self._base(name).values()]

    def remove_document(self, name: str, document_id: str) -> None:
        del self._base(name)[document_id]

    def text(self, name: str, document_id: str, start: int = 0, end: int | None = None) -> dict[str, Any]:
        info, text = self._base(name)[document_id]
        return {"text": text[start:end], "start": start, "end": end or len(text), "title": info.title}

    def file(self, name: str, document_id: str) -> Path:
        assert self.originals is not None
        self.originals.mkdir(exist_ok=True)
        path = self.originals / document_id
        path.write_text(self._base(name)[document_id][1], encoding="utf-8")
        return path

    def chunks(self, name: str, document_id: str, start: int = 0, n: int = 100) -> Sequence[Chunk]:
        return [Chunk(0, len(self._base(name)[document_id][1]))][:n]

    def questions(self, name: str) -> Sequence[dict[str, Any]]:
        self._base(name)
        return []

    def keep_question(self, name: str, passage: Hit, question: str, answer: str) -> dict[str, Any]:
        raise NotImplementedError

    def change_question(self, name: str, question_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        raise NotFound("evaluate.no_such_question", id=question_id)

    def forget_questions(self, name: str) -> None:
        self._base(name)

    async def picture(self, name: str, document_id: str, page: int, *, width: int, within: Span | None = None) -> bytes:
        raise Unreadable("knowledge.no_pictures", name=self._base(name)[document_id][0].name)

    async def add(
        self,
        name: str,
        files: Sequence[tuple[str, Path]],
        *,
        progress: Callable[[Progress], None],
        ingester: Any = None,
    ) -> AddReport:
        self.ingesters.append(ingester)
        report = AddReport()
        for done, (relative, path) in enumerate(files, start=1):
            progress(Progress("reading", done, len(files), "files", detail=relative))
            await asyncio.sleep(self.slow_s)
            raw = path.read_bytes()
            if not raw:
                error = Unreadable("core.unexpected", why="empty", log="-")
                report.files.append(FileReport(relative, "failed", error=error.message(), code="empty_file"))
                continue
            document_id = hashlib.sha256(raw).hexdigest()[:12]
            text = raw.decode("utf-8", "replace")
            info = DocumentInfo(
                document_id, relative, relative, "", len(raw), len(text), None, 1, "2026-11-24T00:00:00Z"
            )
            self._base(name)[document_id] = (info, text)
            report.files.append(FileReport(relative, "added", 1, 1))
        return report

    def passages(self, name: str, *, n: int, seed: int = 0) -> Sequence[Hit]:
        return [
            Hit(name, document_id, info.title, text, 0, len(text), None, (), 0.0, None, None, None)
            for document_id, (info, text) in self._base(name).items()
        ][:n]

    def close(self) -> None: ...

    async def rebuild(self, name: str, *, progress: Callable[[Progress], None]) -> int:
        return len(self._base(name))

    async def search(
        self,
        names: Sequence[str],
        query: str,
        *,
        k: int | None = 8,
        within: Filter | None = None,
        notices: Any = None,
        rerank: str | None = None,
    ) -> Sequence[Hit]:
        hits = []
        for name in names:
            for document_id, (info, text) in self._base(name).items():
                shared = len(set(query) & set(text))
                if shared and (within is None or not within.types or info.title.endswith(within.types)):
                    hits.append(
                        Hit(name, document_id, info.title, text, 0, len(text), None, (), float(shared), 1, None, None)
                    )
        return sorted(hits, key=lambda hit: -hit.score)[:k]

    async def stored(self, names: Sequence[str], messages: Sequence[Message]) -> None:
        """Whole files are no question-answer pairs."""

    async def ground(
        self, names: Sequence[str], messages: Sequence[Message], *, engine: Any, max_prompt_tokens: int
    ) -> FakeGrounding:
        hits = await self.search(names, messages[-1].text)
        sources = [
            Source(number, hit.knowledge, hit.document_id, hit.title, hit.text, hit.start, hit.end, score=hit.score)
            for number, hit in enumerate(hits, start=1)
        ]
        passages = "\n".join(f"[{source.number}] {source.text}" for source in sources)
        grounded = [Message("system", f"资料：\n{passages}"), *messages]
        return FakeGrounding(grounded, sources, [*self.notices, f"room:{max_prompt_tokens}"])


def install_model(home: Path, name: str, *, kind: str = "chat", engine: str = "echo", **manifest: Any) -> None:
    """A model without weights, as tests use it: a manifest that names its engine."""
    folder = home / "models" / name
    folder.mkdir(parents=True)
    content = {"name": name, "kind": kind, "format": "gguf", "engine": engine, **manifest}
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def engine_died() -> EngineFailed:
    return EngineFailed("server.cut_answer", model="echo")
