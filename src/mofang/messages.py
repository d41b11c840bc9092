"""The words that every room shares: a message, how to sample, a piece of an answer. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Role = Literal["system", "user", "assistant", "tool", "developer"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is text, or OpenAI's list of content parts ({"type": "text", …})."""

    role: Role
    content: str | list[dict[str, Any]] | None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """What the model thought before it said this; its chat template decides whether it is told again."""

    @property
    def text(self) -> str:
        """The text of the content, parts joined."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content if part.get("type") == "text")
        return self.content or ""

    @property
    def has_image(self) -> bool:
        return isinstance(self.content, list) and any(part.get("type") == "image_url" for part in self.content)

    @property
    def file_ids(self) -> tuple[str, ...]:
        """Of the files that it refers to, in their order; no engine reads such a part (server/attached.py)."""
        parts = self.content if isinstance(self.content, list) else []
        return tuple(str(part["file"]["file_id"]) for part in parts if part.get("type") == "file")

    def to_openai(self) -> dict[str, Any]:
        """OpenAI's shape, without the fields that are not set."""
        shape: dict[str, Any] = {"role": self.role, "content": self.content}
        for key in ("name", "tool_calls", "tool_call_id", "reasoning_content"):
            if getattr(self, key) is not None:
                shape[key] = getattr(self, key)
        return shape


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. None leaves a choice to the engine's default.

    `options` holds whatever else the engine understands under its own name (tools, response_format, logit_bias,
    logprobs, dry_multiplier…): passed on as it is, never dropped.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as OpenAI counts them; `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Measured by the engine. Milliseconds, and tokens a second."""

    prompt_ms: float
    predicted_ms: float
    prompt_per_second: float
    predicted_per_second: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long piece of work is. `total` 0: not known. `unit`: "bytes", "tokens", "passages", "files"…"""

    stage: str
    done: int
    total: int = 0
    unit: str = ""
    rate: float = 0.0
    """Units a second over the last seconds; 0 while unknown."""
    detail: str = ""

    @property
    def seconds_left(self) -> float | None:
        """None while total or rate is not known."""
        return (self.total - self.done) / self.rate if self.total and self.rate > 0 else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could come next, and the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float
    bytes: tuple[int, ...] = ()
    """What it stands for, which may be part of a character; empty where the engine does not say."""

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Self:
        """From the JSON of /v1/next_token."""
        return cls(**{**entry, "bytes": tuple(entry.get("bytes") or ())})


@dataclass(frozen=True, slots=True)
class NextToken:
    """What a model expects after a prompt, from its raw logits: temperature 1, no sampler."""

    forced: float | None
    """Log-probability of the token that was asked about; exact, also when it is not among `top`."""
    top: tuple[Candidate, ...]
    """The likeliest, best first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one carries `finish_reason`, `usage` and `timings`.

    content is always whole characters: no engine may send half a Chinese character.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    progress: Progress | None = None
    """The prompt is being read: tokens done of all."""
    index: int = 0
    """Which of the `n` answers this belongs to."""
    stopped_by: str | None = None
    """The stop word that ended the answer, with its finish_reason "stop"; None: the model ended by itself."""


Box = tuple[float, float, float, float]
"""left, bottom, right, top in PDF points, origin at the page's lower left."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a span begins in its document's own terms, beside its page and headings. What a format lacks is not set.

    mofang.strings.where says it to people.
    """

    paragraph: int | None = None
    """The block's number in the document, from 1."""
    sheet: str = ""
    row: int | None = None
    """From 1, as a spreadsheet shows it; in a text table the record, in JSON Lines the line."""
    slide: int | None = None
    """From 1."""


@dataclass(frozen=True, slots=True)
class Source:
    """A numbered source of an answer: a span of a document's canonical text, and where a person finds it."""

    number: int
    """The n of the mark [n] in the answer, from 1."""
    knowledge: str
    document_id: str
    title: str
    """The document's name as the user knows it (its relative path)."""
    text: str
    start: int
    end: int
    """Character span in the canonical text, end exclusive."""
    page: int | None = None
    """From 1, for documents that have pages."""
    box: Box | None = None
    place: Place | None = None
    headings: tuple[str, ...] = ()
    lead: str = ""
    """What the passage was cut away from and must be read with: the header row of its table, its question."""
    score: float = 0.0
    """Fused retrieval score, higher is closer; comparable within one answer only."""
    cited: bool = False
    """The answer carries this source's mark."""
    spans: tuple[tuple[int, int], ...] = ()
    """What of the document the marked sentences rest on, within start and end."""
