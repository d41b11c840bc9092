"""A model in a llama.cpp server: chat, embeddings, reranking over llama.cpp's own HTTP API.

Everything is streamed inside, also what the caller wants whole: only a stream can be stopped while it runs. Source of
the API: llama.cpp tools/server/README.md.
"""

import asyncio
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from mofang.engine.base import Engine, EngineInfo, Kind, Purpose, Vectors
from mofang.engine.llama.process import LlamaProcess, decode, new_key
from mofang.engine.llama.provider import Launch
from mofang.errors import EngineFailed, Invalid, TooLarge
from mofang.messages import Delta, Message, Progress, Sampling, Timings, Usage
from mofang.models.base import ModelFacts, ModelRef
from mofang.models.formats import FORMATS
from mofang.platform import n_cores
from mofang.settings import Settings

ENCODER_CTX = 512
"""Tokens of one text for embedders: what BERT-like models are trained for. llama.cpp computes an encoder's text in one
batch and keeps a row of logits for each of its tokens, so that a larger one costs memory in proportion."""
RERANKER_CTX = 1024
"""Query and document together."""
ENCODER_SLOTS = 4
TEXTS_A_REQUEST = 16
"""Enough to keep every slot busy, few enough for progress and for stopping soon."""


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> Engine:
    """Start a server for `ref` and wait until it answers."""
    facts: ModelFacts = await asyncio.to_thread(FORMATS.get(ref.format).facts, ref.path)
    maker = _KINDS["chat" if ref.kind == "base" else ref.kind]
    n_ctx, n_slots = maker.size(settings, facts.n_ctx_train)
    launch = Launch(
        path=str(ref.path),
        key=new_key(),
        n_ctx=n_ctx,
        n_slots=n_slots,
        n_batch=n_ctx,
        n_threads=settings.n_threads or n_cores(),
        embedding=maker.kind == "embedding",
        reranking=maker.kind == "reranker",
    )
    progress(Progress("load", 0, ref.size_bytes, "bytes", detail=ref.name))
    log = settings.home / "logs" / f"engine-{ref.name}.log"
    process = await LlamaProcess.start(ref.name, launch, log=log, timeout_s=settings.load_timeout_s)
    progress(Progress("load", ref.size_bytes, ref.size_bytes, "bytes", detail=ref.name))
    engine = maker(ref, process, launch, settings)
    try:
        await engine.measure()
    except BaseException:  # cancelled, too: a child that nobody holds must not stay
        await asyncio.shield(engine.close())
        raise
    return engine


class _LlamaEngine:
    """What the three kinds share."""

    kind: Kind

    def __init__(self, ref: ModelRef, process: LlamaProcess, launch: Launch, settings: Settings) -> None:
        self.ref = ref
        self.settings = settings
        self._process = process
        self._launch = launch

    @classmethod
    def size(cls, settings: Settings, n_ctx_train: int | None) -> tuple[int, int]:
        """(tokens of one slot, slots)."""
        raise NotImplementedError

    def info(self) -> EngineInfo:
        return EngineInfo(
            model=self.ref.name,
            engine="llama",
            kind=self.kind,
            n_ctx=self._launch.n_ctx,
            n_slots=self._launch.n_slots,
            pid=self._process.pid,
            memory_bytes=self._process.memory_bytes(),
            provider="xllamacpp",
        )

    def alive(self) -> bool:
        return self._process.alive()

    async def close(self) -> None:
        await self._process.close()

    async def measure(self) -> None:
        """Learn from the model itself what its metadata do not say; called once, when it has loaded."""

    async def tokenize(self, text: str) -> list[int]:
        answer = await self._post("/tokenize", {"content": text, "add_special": False})
        return list(answer["tokens"])

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        try:
            answer = await self._process.http.post(path, json=body)
        except httpx.TransportError as error:
            raise await self._process.died(error) from error
        if answer.is_error:
            raise self._fault(answer.json())
        return answer.json()

    def _fault(self, body: dict[str, Any]) -> EngineFailed | Invalid:
        """llama.cpp's error as ours: the caller's fault stays the caller's."""
        fault = body.get("error", body)
        message = str(fault.get("message", fault))
        if fault.get("type") == "exceed_context_size_error":
            n_prompt, n_ctx = fault.get("n_prompt_tokens", "?"), fault.get("n_ctx", self._launch.n_ctx)
            return Invalid("engine.context_length_exceeded", param="messages", n_prompt=n_prompt, n_ctx=n_ctx)
        if fault.get("type") == "invalid_request_error" or fault.get("code") == 400:
            return Invalid("engine.refused", why=message)
        return EngineFailed("engine.failed", model=self.ref.name, why=message)


class LlamaChat(_LlamaEngine):
    """mofang.engine.base.ChatEngine over /v1/chat/completions and /v1/completions."""

    kind: Kind = "chat"

    @classmethod
    def size(cls, settings: Settings, n_ctx_train: int | None) -> tuple[int, int]:
        return min(settings.n_ctx, n_ctx_train or settings.n_ctx), settings.n_slots

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Delta]:
        body = {"messages": [message.to_openai() for message in messages], **self._choices(sampling)}
        return self._stream("/v1/chat/completions", body)

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncIterator[Delta]:
        return self._stream("/v1/completions", {"prompt": prompt, **self._choices(sampling)})

    async def render(self, messages: Sequence[Message], template_kwargs: dict[str, Any] | None = None) -> str:
        body: dict[str, Any] = {"messages": [message.to_openai() for message in messages]}
        if template_kwargs:
            body["chat_template_kwargs"] = template_kwargs
        return str((await self._post("/apply-template", body))["prompt"])

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        body = {"content": await self.render(messages), "add_special": True, "parse_special": True}
        return len((await self._post("/tokenize", body))["tokens"])

    def _choices(self, sampling: Sampling) -> dict[str, Any]:
        """Our names are llama.cpp's; what nobody chose is left to it."""
        named = {
            "max_tokens": sampling.max_tokens or self.settings.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "seed": sampling.seed,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repeat_penalty": sampling.repeat_penalty,
            "stop": list(sampling.stop) or None,
        }
        return {**sampling.options, **{name: value for name, value in named.items() if value is not None}}

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Delta]:
        """The events of one answer. The last piece, with the usage, waits for llama.cpp's last event."""
        # return_progress: an event a batch of the prompt, so that a stop is noticed there, too.
        body |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
        last: list[Delta] = []
        usage, timings = None, None
        try:
            async with self._process.http.stream("POST", path, json=body) as answer:
                if answer.is_error:
                    await answer.aread()
                    raise self._fault(answer.json())
                async for line in answer.aiter_lines():
                    event = decode(line)
                    if event is None:
                        continue
                    if "error" in event:
                        raise self._fault(event)
                    usage = _usage(event) or usage
                    timings = _timings(event) or timings
                    for delta in _deltas(event):
                        if delta.finish_reason:
                            last.append(delta)
                        else:
                            yield delta
        except httpx.TransportError as error:
            raise await self._process.died(error) from error
        if not last:
            raise await self._process.died(EOFError("the stream ended early"))
        for delta in last[:-1]:
            yield delta
        yield replace(last[-1], usage=usage, timings=timings)


class LlamaEmbedder(_LlamaEngine):
    """mofang.engine.base.Embedder over /v1/embeddings."""

    kind: Kind = "embedding"

    def __init__(self, ref: ModelRef, process: LlamaProcess, launch: Launch, settings: Settings) -> None:
        super().__init__(ref, process, launch, settings)
        self._prefixes = _prefixes(ref)
        self._dimensions = 0

    @classmethod
    def size(cls, settings: Settings, n_ctx_train: int | None) -> tuple[int, int]:
        return min(ENCODER_CTX, n_ctx_train or ENCODER_CTX), ENCODER_SLOTS

    @property
    def dimensions(self) -> int:
        return self._dimensions

    async def measure(self) -> None:
        self._dimensions = len((await self._embed([""]))[0])

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        prefixed = [self._prefixes[purpose] + text for text in texts]
        rows: list[list[float]] = []
        for start in range(0, len(prefixed), TEXTS_A_REQUEST):
            rows += await self._embed(prefixed[start : start + TEXTS_A_REQUEST])
        vectors = np.asarray(rows, dtype=np.float32).reshape(len(rows), self._dimensions)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        try:
            answer = await self._post("/v1/embeddings", {"input": texts})
        except (Invalid, EngineFailed) as error:
            if error.code in ("context_length_exceeded", "refused", "failed"):
                await self._find_too_long(texts, error)
            raise
        return [row["embedding"] for row in sorted(answer["data"], key=lambda row: int(row["index"]))]

    async def _find_too_long(self, texts: list[str], error: Exception) -> None:
        """Raise TooLarge for the text that does not fit, if there is one."""
        for text in texts:
            body = {"content": text, "add_special": True}
            n_tokens = len((await self._post("/tokenize", body))["tokens"])
            if n_tokens > self._launch.n_ctx:
                shown = text if len(text) <= 40 else text[:40] + "…"
                raise TooLarge(
                    "engine.text_too_long", text=shown, n_tokens=n_tokens, n_ctx=self._launch.n_ctx
                ) from error


class LlamaReranker(_LlamaEngine):
    """mofang.engine.base.Reranker over /v1/rerank."""

    kind: Kind = "reranker"

    @classmethod
    def size(cls, settings: Settings, n_ctx_train: int | None) -> tuple[int, int]:
        return min(RERANKER_CTX, n_ctx_train or RERANKER_CTX), ENCODER_SLOTS

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        if not documents:
            return []
        answer = await self._post("/v1/rerank", {"query": query, "documents": list(documents)})
        scores = {int(row["index"]): float(row["relevance_score"]) for row in answer["results"]}
        return [scores[index] for index in range(len(documents))]


_KINDS: dict[str, type[_LlamaEngine]] = {"chat": LlamaChat, "embedding": LlamaEmbedder, "reranker": LlamaReranker}


def _deltas(event: dict[str, Any]) -> list[Delta]:
    """The pieces in one event of a chat or a completion."""
    reading = event.get("prompt_progress")
    if reading:
        return [Delta(progress=Progress("prompt", int(reading["processed"]), int(reading["total"]), "tokens"))]
    return [_delta(choice) for choice in event.get("choices", [])]


def _delta(choice: dict[str, Any]) -> Delta:
    delta = choice.get("delta", {})
    return Delta(
        content=delta.get("content") or choice.get("text") or "",
        reasoning=delta.get("reasoning_content") or "",
        tool_calls=delta.get("tool_calls"),
        logprobs=choice.get("logprobs"),
        finish_reason=choice.get("finish_reason"),
        index=choice.get("index", 0),
    )


def _usage(event: dict[str, Any]) -> Usage | None:
    counts = event.get("usage")
    if not counts:
        return None
    cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Usage(counts["prompt_tokens"], counts["completion_tokens"], cached)


def _timings(event: dict[str, Any]) -> Timings | None:
    measured = event.get("timings")
    if not measured:
        return None
    names = ("prompt_ms", "predicted_ms", "prompt_per_second", "predicted_per_second")
    return Timings(*(float(measured.get(name) or 0) for name in names))


def _prefixes(ref: ModelRef) -> dict[Purpose, str]:
    """What this embedder wants before queries and passages: its manifest's word, else its family's, else nothing."""
    stated: dict[str, str] | None = ref.manifest.get("prefixes")
    if stated is None:
        families = tomllib.loads((Path(__file__).parent / "families.toml").read_text(encoding="utf-8"))["family"]
        stated = next((family for family in families if family["match"] in ref.name.lower()), {})
    return {"query": str(stated.get("query", "")), "passage": str(stated.get("passage", ""))}
