"""A model in a llama.cpp server: chat, embeddings, reranking over llama.cpp's own HTTP API.

Everything is streamed inside, also what the caller wants whole: only a stream can be stopped while it runs. Source of
the API: llama.cpp tools/server/README.md.
"""

import asyncio
import base64
import copy
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mofang.engine import children
from mofang.engine.base import ALL_TOKENS, Engine, EngineInfo, Kind, Purpose, Vectors
from mofang.engine.llama import slots
from mofang.engine.llama.answer import Answer, as_bytes
from mofang.engine.llama.forced import as_calls, forcing, is_forced
from mofang.engine.llama.process import LlamaProcess, Refusal, new_key
from mofang.engine.llama.provider import Launch, Provider, describe, tuned
from mofang.engine.prefixes import normalised, prefixes
from mofang.engine.profile import Choices
from mofang.errors import EngineFailed, Invalid, MofangError, TooLarge
from mofang.messages import Candidate, Delta, Message, NextToken, Progress, Sampling
from mofang.models import adapters, projectors
from mofang.models.base import ModelFacts, ModelRef
from mofang.models.formats import FORMATS, lora
from mofang.models.store import ModelStore
from mofang.platform import n_cores
from mofang.settings import Settings

ENCODER_CTX = 512
"""Tokens of one text for encoders: what BERT-like models are trained for. llama.cpp computes an encoder's text in one
batch and keeps a row of logits for each of its tokens, so that a larger one costs memory in proportion."""
RERANKER_CTX = 1024
"""Query and document together."""
ENCODER_SLOTS = 4
CALLERS_FAULT = ("invalid_request_error", "not_supported_error")
"""llama.cpp's types of errors that another request would not have met."""
DECODER_BATCH = 512
"""Embedders that are decoders read a long text in pieces of so many tokens, llama.cpp's default."""
TEXTS_A_REQUEST = 16
"""Enough to keep every slot busy, few enough for progress and for stopping soon."""


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> Engine:
    """Start a server for `ref`, by the build and the profile that suit this machine, and wait until it answers."""
    provider, known = tuned(settings, ref)
    return await start(ref, settings, provider, known.choices if known else Choices(), progress=progress)


async def start(
    ref: ModelRef,
    settings: Settings,
    provider: Provider,
    choices: Choices,
    *,
    progress: Callable[[Progress], None],
    log_name: str = "",
) -> Engine:
    """Start a server for `ref` in a given way and wait until it answers."""
    facts: ModelFacts = await asyncio.to_thread(FORMATS.get(ref.format).facts, ref.path)
    maker = _KINDS["chat" if ref.kind == "base" else ref.kind]
    n_ctx, n_slots = maker.size(settings, facts)
    held = await asyncio.to_thread(_adapters, ref, settings) if maker.kind == "chat" else {}
    choices = replace(choices, n_slots=0)  # decided before, by how much memory there is
    if settings.n_threads:
        choices = replace(choices, n_threads=0, n_threads_batch=0)
    launch = Launch(
        path=str(ref.path),
        name=ref.name,
        key=new_key(),
        n_ctx=n_ctx,
        n_slots=n_slots,
        n_batch=n_ctx if _is_encoder(facts) else min(n_ctx, DECODER_BATCH),
        n_threads=settings.n_threads or n_cores(),
        embedding=maker.kind == "embedding",
        reranking=maker.kind == "reranker",
        choices=choices,
        projector=str(projectors.of(ref, facts) or ""),
        adapters=tuple(str(adapter.file) for adapter in held.values() if adapter.file),
    )
    if maker.kind == "chat" and settings.save_slots:
        place = await asyncio.to_thread(slots.prepare, settings.home, ref, launch, describe(provider))
        launch = replace(launch, slot_folder=str(place))

    report = children.loading(ref, progress)
    report(0)
    log = settings.home / "logs" / f"engine-{log_name or ref.name}.log"
    process = await LlamaProcess.start(
        ref.name, launch, provider, log=log, timeout_s=settings.load_timeout_s, report=report
    )
    progress(Progress("load", ref.size_bytes, ref.size_bytes, "bytes", detail=ref.name))
    engine = maker(ref, process, launch, settings, describe(provider))
    if isinstance(engine, LlamaChat):
        engine.held = held
    try:
        await engine.measure()
    except BaseException:  # cancelled, too: a child that nobody holds must not stay
        await asyncio.shield(engine.close())
        raise
    return engine


@dataclass(frozen=True, slots=True)
class _Held:
    """An adapter as it was when its base was loaded: its GGUF, or why there is none."""

    stamp: str
    file: Path | None
    fault: MofangError | None = None


def _adapters(ref: ModelRef, settings: Settings) -> dict[str, _Held]:
    """Every adapter over `ref` by its name, converted. One that cannot be is no reason not to load the base."""
    held = {}
    for adapter in adapters.of_base(ModelStore(settings), ref):
        stamp = lora.stamp(adapter.path)
        try:
            file = lora.converted(adapter.path, ref.path, settings.home / "cache" / "adapters")
            held[adapter.name] = _Held(stamp, file)
        except MofangError as error:
            held[adapter.name] = _Held(stamp, None, error)
    return held


class _LlamaEngine:
    """What the three kinds share."""

    kind: Kind

    def __init__(self, ref: ModelRef, process: LlamaProcess, launch: Launch, settings: Settings, provider: str) -> None:
        self.ref = ref
        self.settings = settings
        self._process = process
        self._launch = launch
        self._provider = provider

    @classmethod
    def size(cls, settings: Settings, facts: ModelFacts) -> tuple[int, int]:
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
            provider=self._provider,
            choices=self._launch.choices.words(),
        )

    def alive(self) -> bool:
        return self._process.alive()

    async def close(self) -> None:
        await self._process.close()

    async def measure(self) -> None:
        """Learn from the model itself what its metadata do not say; called once, when it has loaded."""

    async def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return list((await self._post("/tokenize", body))["tokens"])

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        try:
            return await self._process.request("POST", path, body)
        except Refusal as error:
            raise self._fault(error) from error

    def _fault(self, refusal: Refusal) -> EngineFailed | Invalid:
        """llama.cpp's error as ours: the caller's fault stays the caller's."""
        if refusal.type == "exceed_context_size_error":
            n_prompt, n_ctx = refusal.fault.get("n_prompt_tokens", "?"), refusal.fault.get("n_ctx", self._launch.n_ctx)
            return Invalid("engine.context_length_exceeded", param="messages", n_prompt=n_prompt, n_ctx=n_ctx)
        if refusal.type in CALLERS_FAULT or 400 <= refusal.status < 500:
            field = _FIELD.search(refusal.why)
            return Invalid("engine.refused", param=field[1] if field else None, why=refusal.why)
        return EngineFailed("engine.failed", model=self.ref.name, why=refusal.why)

    @asynccontextmanager
    async def _naming_too_long(self, texts: Sequence[str], first: int, beside: str = "") -> AsyncIterator[None]:
        """Turn llama.cpp's refusal of a batch into TooLarge for the text that does not fit, if there is one.

        `first` is the number of texts[0] in the caller's list, `beside` what is read together with each of them.
        """
        try:
            yield
        except (Invalid, EngineFailed) as error:
            if error.code not in ("context_length_exceeded", "refused", "failed"):
                raise
            n_beside = await self._n_tokens(beside) if beside else 0
            for number, text in enumerate(texts, first):
                n_tokens = n_beside + await self._n_tokens(text)
                if n_tokens > self._launch.n_ctx:
                    shown = text if len(text) <= 40 else text[:40] + "…"
                    values = {"number": number, "text": shown, "n_tokens": n_tokens, "n_ctx": self._launch.n_ctx}
                    raise TooLarge("engine.text_too_long", **values) from error
            raise

    async def _n_tokens(self, text: str) -> int:
        """Tokens of a text, the special ones around it counted."""
        return len((await self._post("/tokenize", {"content": text, "add_special": True}))["tokens"])


class LlamaChat(_LlamaEngine):
    """mofang.engine.base.ChatEngine over /v1/chat/completions and /v1/completions."""

    kind: Kind = "chat"
    _letter = 0
    """Id of a token that is a whole character; 0 until it is needed."""
    _sees = False
    _knows_tools = True
    _n_vocab = 0
    """0 until it is needed."""
    _applied: Path | None = None
    """The adapter that answers; None: the base alone."""
    _system: str | None = None
    """System message for conversations that bring none."""

    _saving: slots.Slots | None = None
    """None: nothing is kept on disk."""

    def __init__(self, ref: ModelRef, process: LlamaProcess, launch: Launch, settings: Settings, provider: str) -> None:
        super().__init__(ref, process, launch, settings, provider)
        self.held: dict[str, _Held] = {}
        """The adapters that were loaded with the model, by name."""

    def knows(self, ref: ModelRef) -> bool:
        return ref.name in self.held and self.held[ref.name].stamp == lora.stamp(ref.path)

    def adapted(self, ref: ModelRef) -> "LlamaChat":
        held = self.held.get(ref.name)
        if held is None:
            raise EngineFailed("engine.no_adapter", model=ref.name)
        if held.fault:
            raise held.fault
        view = copy.copy(self)  # the same process, the same launch
        view.ref, view._applied, view._system = ref, held.file, adapters.system_prompt(ref)
        return view

    @property
    def _scales(self) -> dict[str, Any]:
        """Said in every request of a model that has adapters: without it llama.cpp would apply them all."""
        files = self._launch.adapters
        scales = [{"id": number, "scale": float(file == str(self._applied))} for number, file in enumerate(files)]
        return {"lora": scales} if files else {}

    def _shapes(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The conversation as llama.cpp reads it, under the system message that the adapter was taught with."""
        if self._system is not None and (not messages or messages[0].role != "system"):
            messages = [Message("system", self._system), *messages]
        return [message.to_openai() for message in messages]

    @classmethod
    def size(cls, settings: Settings, facts: ModelFacts) -> tuple[int, int]:
        return _capped(settings.n_ctx, facts), settings.least_slots

    async def measure(self) -> None:
        props = await self._process.request("GET", "/props")
        self._sees = bool(props.get("modalities", {}).get("vision"))
        self._knows_tools = bool(props.get("chat_template_caps", {}).get("supports_tools", True))
        if self._launch.slot_folder:
            place, limit = Path(self._launch.slot_folder), self.settings.slot_cache_mb * 1_000_000
            self._saving = slots.Slots(self._process, self._launch.n_slots, place, limit)
            await self._saving.restore()

    async def close(self) -> None:
        saving, self._saving = self._saving, None
        if saving and self.alive():
            await saving.save()
        await super().close()

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        self._check_tools(sampling.options)
        if is_forced(sampling.options):
            return as_calls(self.chat(messages, replace(sampling, options=forcing(sampling.options))))
        body = {"messages": self._shapes(messages), **self._choices(sampling)}
        if sampling.stop:
            body["verbose"] = True  # the last event then tells which stop word it was
        return self._stream("/v1/chat/completions", body)

    def info(self) -> EngineInfo:
        return replace(super().info(), images=self._sees)

    def _check_tools(self, options: Mapping[str, Any]) -> None:
        """llama.cpp leaves tools out of the prompt where the chat template has no place for them, and says nothing."""
        if options.get("tools") and not self._knows_tools:
            raise Invalid("engine.no_tools", param="tools", model=self.ref.name)

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        return self._stream("/v1/completions", {"prompt": prompt, **self._choices(sampling)})

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        """Over /completion. A bias of 1000 makes a token the sampled one, while the reported probabilities come from
        the raw logits (llama.cpp tools/server/server-context.cpp, populate_token_probs).

        llama.cpp reports nothing of a token that ends within a character. Then a plain letter is sampled instead, and
        the token is looked up among all: slower, and as exact.
        """
        if forced is not None and (entry := await self._sampled(prompt, forced, n_top)) is not None:
            return NextToken(float(entry["logprob"]), _candidates(entry["top_logprobs"]))
        if not self._letter:
            self._letter = (await self.tokenize("a"))[0]
        entry = await self._sampled(prompt, self._letter, n_top if forced is None else ALL_TOKENS)
        if entry is None:
            raise EngineFailed("engine.failed", model=self.ref.name, why="no completion_probabilities")
        listed = entry["top_logprobs"]
        found = next((float(item["logprob"]) for item in listed if item["id"] == forced), None)
        return NextToken(found, _candidates(listed[:n_top]))

    async def _sampled(self, prompt: str | list[int], token: int, n_probs: int) -> dict[str, Any] | None:
        """llama.cpp's entry for `token` after the prompt; None when it has none."""
        body: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": n_probs,
            "temperature": 0.0,
            **self._scales,
        }
        answer = await self._post("/completion", {**body, "logit_bias": [[token, 1000.0]]})
        entries: list[dict[str, Any]] = answer.get("completion_probabilities") or []
        return entries[0] if entries else None

    async def pieces(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[tuple[int, bytes]]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special, "with_pieces": True}
        found = (await self._post("/tokenize", body))["tokens"]
        # A piece that is no valid UTF-8 comes as a list of its bytes.
        return [(int(one["id"]), as_bytes(one["piece"])) for one in found]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        if not self._n_vocab:
            self._n_vocab = await self._count_vocabulary()
        for token in tokens:  # llama.cpp's server does not survive an id beyond its vocabulary
            if not 0 <= token < self._n_vocab:
                raise Invalid("engine.no_such_token", param="tokens", token=token, n_vocab=self._n_vocab)
        return str((await self._post("/detokenize", {"tokens": list(tokens)}))["content"])

    async def _count_vocabulary(self) -> int:
        listed = await self._process.request("GET", "/v1/models")
        return int(listed["data"][0]["meta"]["n_vocab"])

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        body = self._asked(messages, options or {})
        if template_kwargs:
            body["chat_template_kwargs"] = template_kwargs
        return str((await self._post("/apply-template", body))["prompt"])

    async def count_tokens(self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None) -> int:
        body = self._asked(messages, options or {})
        return int((await self._post("/v1/chat/completions/input_tokens", body))["input_tokens"])

    def _asked(self, messages: Sequence[Message], options: Mapping[str, Any]) -> dict[str, Any]:
        """A conversation as its prompt is made of it."""
        self._check_tools(options)
        return {"messages": self._shapes(messages), **(forcing(options) if is_forced(options) else options)}

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
        chosen = {name: value for name, value in named.items() if value is not None}
        return {**sampling.options, **chosen, **self._scales}

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        """The pieces of one answer. A context that is full ends it with "length": llama.cpp counts that itself."""
        # return_progress: an event a batch of the prompt, so that a stop is noticed there, too.
        body |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
        answer = Answer()
        try:
            async with aclosing(self._process.events(path, body)) as events:
                async for event in events:
                    for delta in answer.read(event):
                        self._remember(path, body, delta)
                        yield delta
            last = answer.last()
        except Refusal as error:
            raise self._fault(error) from error
        except LookupError as error:
            raise EngineFailed("engine.failed", model=self.ref.name, why="no finish_reason") from error
        yield last

    def _remember(self, path: str, body: dict[str, Any], delta: Delta) -> None:
        """Keep in mind a prompt that has been read, for when the model leaves memory."""
        if self._saving and delta.progress and delta.progress.done == delta.progress.total:
            self._saving.memory.add(path, body, delta.progress.total)


class LlamaEmbedder(_LlamaEngine):
    """mofang.engine.base.Embedder over /v1/embeddings."""

    kind: Kind = "embedding"

    def __init__(self, ref: ModelRef, process: LlamaProcess, launch: Launch, settings: Settings, provider: str) -> None:
        super().__init__(ref, process, launch, settings, provider)
        self._ref = ref
        self._prefixes = prefixes(ref)
        self._dimensions = 0

    @classmethod
    def size(cls, settings: Settings, facts: ModelFacts) -> tuple[int, int]:
        if _is_encoder(facts):
            return _capped(ENCODER_CTX, facts), ENCODER_SLOTS
        return _capped(settings.n_ctx, facts), settings.least_slots

    @property
    def dimensions(self) -> int:
        return self._dimensions

    async def measure(self) -> None:
        self._dimensions = len((await self._embed(["a"]))[0])

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        prefixed = [self._prefixes[purpose] + normalised(self._ref, text) for text in texts]
        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        for start in range(0, len(prefixed), TEXTS_A_REQUEST):
            batch = prefixed[start : start + TEXTS_A_REQUEST]
            vectors[start : start + len(batch)] = await self._embed(batch, first=start)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    async def _embed(self, texts: list[str], *, first: int = 0) -> Vectors:
        """Rows as llama.cpp made them. `first` is the number of texts[0] in the caller's list."""
        async with self._naming_too_long(texts, first):
            answer = await self._post("/v1/embeddings", {"input": texts, "encoding_format": "base64"})
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in rows])


class LlamaReranker(_LlamaEngine):
    """mofang.engine.base.Reranker over /v1/rerank."""

    kind: Kind = "reranker"

    @classmethod
    def size(cls, settings: Settings, facts: ModelFacts) -> tuple[int, int]:
        return _capped(RERANKER_CTX, facts), ENCODER_SLOTS

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        if not documents:
            return []
        async with self._naming_too_long(documents, 0, beside=query):
            answer = await self._post("/v1/rerank", {"query": query, "documents": list(documents)})
        scores = {int(row["index"]): float(row["relevance_score"]) for row in answer["results"]}
        return [scores[index] for index in range(len(documents))]


_FIELD = re.compile(r"^Field '(\w+)'")
"""How llama.cpp names what is wrong (tools/server/server-schema.cpp)."""
_KINDS: dict[str, type[_LlamaEngine]] = {"chat": LlamaChat, "embedding": LlamaEmbedder, "reranker": LlamaReranker}


def _candidates(listed: list[dict[str, Any]]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(int(item["id"]), str(item["token"]), float(item["logprob"]), tuple(item["bytes"])) for item in listed
    )


def _is_encoder(facts: ModelFacts) -> bool:
    """A model without a key-value cache: it reads a text in one piece, every token seeing all others."""
    return facts.kv_bytes_per_token == 0


def _capped(n_ctx: int, facts: ModelFacts) -> int:
    return min(n_ctx, facts.n_ctx_train or n_ctx)
