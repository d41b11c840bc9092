"""What every engine offers. Engines are async; api.py and client.py are where that becomes sync.

An engine holds one model, ready to answer. It knows nothing of HTTP clients, conversations or documents.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mofang.messages import Delta, Message, NextToken, Sampling
from mofang.models.base import ModelRef

Kind = Literal["chat", "embedding", "reranker"]
Purpose = Literal["query", "passage"]
Vectors = NDArray[np.float32]

ALL_TOKENS = 1 << 24
"""For `n_top`: more candidates than any vocabulary has."""

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""On whose behalf this task runs: the id of an API key, "" for the machine's own user. The pool serves callers in turn;
tasks started on the way inherit it."""

COUNTED: ContextVar[int | None] = ContextVar("counted", default=None)
"""Tokens that the latest `embed` of this task read, where the engine was told so; None: `tokenize` counts."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded model is and takes, for people and for /v1/system."""

    model: str
    engine: str
    kind: Kind
    n_ctx: int
    """Tokens of one conversation, prompt and answer together."""
    n_slots: int
    pid: int | None
    memory_bytes: int
    """Resident memory of the process that holds the model; 0 when it is ours."""
    provider: str = ""
    """Build of the program that holds it, with its version."""
    choices: dict[str, Any] = field(default_factory=dict)
    """What tuning chose for it and is not the default."""
    estimated_bytes: int = 0
    """What it was expected to take when it was loaded."""
    pinned: bool = False
    """It never leaves memory by itself."""
    running: int = 0
    """Answers under way."""
    waiting: int = 0
    idle_s: float = 0.0
    """Seconds since its last answer ended; 0 while it answers."""
    unloads_in_s: float | None = None
    """Seconds until it leaves memory if nobody asks; None: it stays, or is at work."""
    notices: tuple[str, ...] = ()
    """What a person should know, such as that memory had room for fewer slots than would be good."""
    images: bool = False
    """It has a projector, so that messages may hold images."""


@runtime_checkable
class Engine(Protocol):
    """What all kinds share."""

    def info(self) -> EngineInfo: ...

    def alive(self) -> bool:
        """False once the model's process has died or the engine was closed."""
        ...

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text, without special tokens added."""
        ...

    async def close(self) -> None:
        """Free the model. Calls under way end with EngineFailed. Safe to call twice."""
        ...


@runtime_checkable
class ChatEngine(Engine, Protocol):
    """Generates text.

    Closing the returned iterator (`aclose`, also by cancellation) stops the generation within one token and frees its
    slot, during the prompt too. Raises Invalid ("engine.context_length_exceeded", with both numbers) when the prompt
    does not fit: nothing is ever cut in silence; EngineFailed when the model's process dies.
    """

    async def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids. `add_special`: with those that the model wants around a text; `parse_special`: names of special
        tokens in the text are those tokens."""
        ...

    async def pieces(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[tuple[int, bytes]]:
        """The same tokens with the bytes that each stands for: one token may be part of a character only."""
        ...

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens as their names; what is no whole character is U+FFFD. Raises Invalid
        for an id that is not in the vocabulary."""
        ...

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Delta]:
        """The answer to a conversation, rendered with the model's own chat template."""
        ...

    def complete(self, prompt: str | list[int], sampling: Sampling) -> AsyncIterator[Delta]:
        """The continuation of raw text or token ids."""
        ...

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        """What is expected after `prompt`, from the raw logits; `forced` is a token to be told the probability of."""
        ...

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: dict[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that `chat` would read, as text. `options`: those of Sampling, for what reaches the prompt
        (tools, tool_choice, chat_template_kwargs, reasoning_effort…)."""
        ...

    async def count_tokens(self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None) -> int:
        """Tokens of that prompt."""
        ...


@runtime_checkable
class Adaptable(Protocol):
    """A chat engine that holds adapters beside its model and applies one where a request names it."""

    def knows(self, ref: ModelRef) -> bool:
        """Whether the adapter as it lies on disk now was there when the model was loaded."""
        ...

    def adapted(self, ref: ModelRef) -> ChatEngine:
        """This engine, answering with that adapter; closing it is left to whoever holds the base.

        Raises what was wrong with the adapter when the model was loaded.
        """
        ...


@runtime_checkable
class Scalable(Protocol):
    """An engine of several copies, which may become more or fewer while they answer."""

    async def scale(self, replicas: int, max_replicas: int) -> None:
        """So many copies, and up to `max_replicas` when there is much to do (0: never more). A copy that goes ends its
        answers first. Raises EngineFailed when there is no room for so many; then there are as many as before."""
        ...


@runtime_checkable
class Embedder(Engine, Protocol):
    """Turns texts into vectors."""

    @property
    def dimensions(self) -> int: ...

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        """(n, dimensions) float32, each row of length 1, in the order of `texts`.

        The model's own prefix for queries and passages is added here. A text beyond the model's context raises
        TooLarge: it is never cut in silence.
        """
        ...


@runtime_checkable
class Reranker(Engine, Protocol):
    """Scores how well documents answer a query."""

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score a document, in their order; higher is better, comparable within one call."""
        ...
