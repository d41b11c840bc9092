"""OpenAI's request and response shapes, and our own routes', as pydantic models.

The server validates against them, the client and the remote engine write them. Unknown request fields are refused
(the server names the nearest known one): a field that is ignored in silence is worse than an error.
Source: OpenAI API reference; llama.cpp tools/server/README.md for the sampling fields beyond it.
"""

from dataclasses import fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from mofang.durations import seconds
from mofang.messages import Message, Sampling

SAMPLED = tuple(field.name for field in fields(Sampling) if field.name not in ("stop", "options"))
"""Request fields that Sampling has under the same name; the others go into its `options`."""


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\w一-鿿][\w一-鿿.\-]*$")]
"""A name that people choose and that becomes a folder: letters, digits, Chinese, "_", "-", "."; never a path."""


def _keep_alive(value: Any) -> float:
    try:
        return seconds(value)
    except ValueError as error:
        raise PydanticCustomError("keep_alive", 'a number of seconds, or a time such as "5m" or "1h30m"') from error


KeepAlive = Annotated[
    float,
    BeforeValidator(_keep_alive),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}], "examples": ["5m", 300, 0, -1]}),
]
"""How long the model stays in memory after this request: seconds, or "5m"; 0: it leaves at once; below 0: it stays
(infinity here). As Ollama means it; the last request that says it wins."""


# ---- chat and completions ----


class ChatMessage(Request):
    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    """Accepted because clients send an assistant's earlier message back as they got it."""

    def to_message(self) -> Message:
        return Message(self.role, self.content, self.name, self.tool_calls, self.tool_call_id)


class StreamOptions(Request):
    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingFields(Request):
    """What chat and completions share. The second group is passed to the engine under the same name."""

    model: str = "auto"
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repeat_penalty: float | None = Field(default=None, gt=0)
    user: str | None = None
    """Accepted for clients that send it; not stored."""
    keep_alive: KeepAlive | None = None

    n: int | None = Field(default=None, ge=1, le=16)
    logit_bias: dict[str, float] | list[Any] | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    typical_p: float | None = None
    repeat_last_n: int | None = None
    dry_multiplier: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    samplers: list[str] | None = None
    cache_prompt: bool | None = None

    _handled: ClassVar[tuple[str, ...]] = ("model", "stream", "stream_options", "stop", "user", "keep_alive")

    def sampling(self) -> Sampling:
        """The request's choices as the engines take them; everything else that was set goes into `options`."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        chosen = {name: getattr(self, name) for name in SAMPLED}
        skip = {*SAMPLED, *self._handled}
        options = {name: value for name, value in self.model_dump(exclude_none=True).items() if name not in skip}
        return Sampling(stop=stop, options=options, **chosen)


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions. `knowledge` is ours: names of bases to answer from, with numbered sources."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    knowledge: list[str] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    _handled: ClassVar[tuple[str, ...]] = (
        *SamplingFields._handled,
        "messages",
        "max_completion_tokens",
        "knowledge",
        "metadata",
        "store",
    )

    def sampling(self) -> Sampling:
        base = super().sampling()
        if self.max_completion_tokens is None:
            return base
        return replace(base, max_tokens=self.max_completion_tokens)


class CompletionRequest(SamplingFields):
    """POST /v1/completions: raw text, no chat template."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(min_length=1)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    _handled: ClassVar[tuple[str, ...]] = (*SamplingFields._handled, "prompt", "echo", "best_of")


class TokenizeRequest(Request):
    """POST /v1/tokenize."""

    model: str = "auto"
    text: str


class NextTokenRequest(Request):
    """POST /v1/next_token: what a model expects after `prompt`, from its raw logits."""

    model: str = "auto"
    prompt: str | list[int] = Field(min_length=1)
    forced: int | None = Field(default=None, ge=0)
    """A token id to be told the log-probability of, whether or not it is among the likeliest."""
    n_top: int = Field(default=20, ge=1, le=1000)


# ---- runs ----


class RunRequest(Request):
    """POST /v1/runs. `recipe` has the fields of /v1/recipes; files of `data` may be names of /v1/datasets."""

    kind: str
    recipe: dict[str, Any]


# ---- embeddings and rerank ----


class EmbeddingRequest(Request):
    """POST /v1/embeddings. `input_type` is ours: models such as e5 want to know queries from passages."""

    input: str | list[str] | list[int] | list[list[int]] = Field(min_length=1)
    model: str = "auto"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None
    input_type: Literal["query", "passage"] = "passage"
    keep_alive: KeepAlive | None = None


class RerankRequest(Request):
    """POST /v1/rerank, as Jina, Cohere and llama.cpp shape it."""

    query: str = Field(min_length=1)
    documents: list[str | dict[str, str]] = Field(min_length=1)
    model: str = "auto"
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False
    keep_alive: KeepAlive | None = None


# ---- generations and conversations (ours) ----


class GenerationRequest(ChatRequest):
    """POST /v1/generations: an answer that lives in the server, whoever watches.

    With `conversation_id`, `messages` holds only the new turn(s), which are stored first, and the answer is stored
    as a child of the last of them. `parent_id` places the turn in the conversation's tree (None: at its newest leaf);
    an empty `messages` with a `parent_id` that is a user's turn answers that turn again (regenerate).
    """

    messages: list[ChatMessage] = Field(default_factory=list)
    conversation_id: str | None = None
    parent_id: str | None = None
    system: str | None = None
    """System prompt put before the conversation; not stored as a turn."""

    _handled: ClassVar[tuple[str, ...]] = (*ChatRequest._handled, "conversation_id", "parent_id", "system")


class ConversationRequest(Request):
    """POST and PATCH /v1/conversations. Fields that are None are left as they are."""

    title: str | None = Field(default=None, max_length=200)
    system: str | None = None
    model: str | None = None
    knowledge: list[str] | None = None
    sampling: dict[str, Any] | None = None


# ---- models, knowledge ----


class PullRequest(Request):
    """POST /v1/models/pull. The name "auto" is the catalogue's default of `kind`, from the first source that answers."""

    name: Name
    source: str | None = None
    """One of the model's sources; None: the first that answers."""
    kind: Literal["chat", "embedding", "reranker"] = "chat"


class LoadRequest(Request):
    """POST /v1/models/{name}/load; an empty body will do."""

    pin: bool | None = None
    """True: it stays in memory until it is unloaded; None: as before."""
    keep_alive: KeepAlive | None = None


class AddRequest(Request):
    path: str
    name: Name | None = None
    """None: the file's name without its suffix."""
    base: str | None = None
    """The model that an adapter belongs to; None: as the adapter says."""


class RemoteRequest(Request):
    """POST /v1/models/remote: a model behind another OpenAI-compatible server."""

    name: Name
    base_url: str
    """Up to and with "/v1"."""
    model: str = Field(min_length=1)
    """Its name over there."""
    kind: Literal["chat", "embedding"] = "chat"
    api_key_env: str = ""
    """The name of an environment variable of the gateway that holds the key; never the key."""
    n_ctx: int | None = Field(default=None, ge=1)
    """Tokens of its context; None: this machine's setting is assumed."""


class KnowledgeRequest(Request):
    name: Name
    title: str | None = Field(default=None, max_length=200)
    embedding_model: str = "auto"


class SearchRequest(Request):
    query: str = Field(min_length=1, max_length=4096)
    knowledge: list[str] = Field(min_length=1)
    k: int = Field(default=8, ge=1, le=100)


class Fault(BaseModel):
    """OpenAI's error body, inside {"error": …}."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    hint: str | None = None


class KeyRequest(Request):
    """POST /v1/keys. A limit that is left out is none."""

    name: str = Field(min_length=1, max_length=100)
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000)
    concurrent: int | None = Field(default=None, ge=1, le=10_000)
    models: list[str] = Field(default_factory=list, max_length=100)
    """Names or globs such as "qwen*"; empty: every model."""
    expires_in_s: int | None = Field(default=None, ge=1, le=3_153_600_000)
    """Seconds from now, a hundred years at most; None: never."""
