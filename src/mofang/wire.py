"""OpenAI's request and response shapes, and our own routes', as pydantic models.

The server validates against them, the client and the remote engine write them. Unknown request fields are refused
(the server names the nearest known one): a field that is ignored in silence is worse than an error.
Source: OpenAI API reference; llama.cpp tools/server/README.md for the sampling fields beyond it.
"""

from dataclasses import fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mofang.durations import seconds
from mofang.errors import Invalid
from mofang.messages import Message, Sampling

SAMPLED = tuple(field.name for field in fields(Sampling) if field.name not in ("stop", "options"))
"""Request fields that Sampling has under the same name; the others go into its `options`."""


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


MANY = (1 << 31) - 1
"""What the engines count with: 32 bits, signed."""
MANY_CHARS = 4_000_000
"""Of a text that is kept; more than any model reads."""
TokenId = Annotated[int, Field(ge=0, le=MANY)]
Word = Annotated[str, StringConstraints(min_length=1)]
Sampler = Literal[
    "dry",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "top_n_sigma",
    "temperature",
    "xtc",
    "infill",
    "penalties",
    "adaptive_p",
]
"""llama.cpp passes over a name that it does not know (common/sampling.cpp, common_sampler_types_from_names)."""
Bias = Annotated[float, Field(ge=-1000, le=1000)]

Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\w一-鿿][\w一-鿿.\-]*$")]
"""A name that people choose and that becomes a folder: letters, digits, Chinese, "_", "-", "."; never a path."""


def _keep_alive(value: Any) -> float:
    try:
        return seconds(value)
    except ValueError as error:
        raise PydanticCustomError("keep_alive", 'a number of seconds, or a time such as "5m" or "1h30m"') from error


KeepAlive = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(_keep_alive),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}], "examples": ["5m", 300, 0, -1]}),
]
"""How long the model stays in memory after this request: seconds, or "5m"; 0: it leaves at once; below 0: it stays
(infinity here). As Ollama means it; the last request that says it wins."""


# ---- chat and completions ----


class ImageUrl(Request):
    """An image inside the request: "data:image/png;base64,…". Addresses are refused: nothing is fetched for a caller."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None

    @field_validator("url")
    @classmethod
    def _inside(cls, url: str) -> str:
        if not url.startswith("data:image/"):
            raise Invalid("server.remote_image", param="image_url", url=url[:60])
        return url


class FileRef(Request):
    """A file of /v1/files: what it says stands in the prompt, in this place."""

    file_id: str = Field(min_length=1, max_length=200)
    filename: str | None = None
    """Accepted because our answers tell it; the file's own counts."""


class Part(Request):
    """A piece of a message's content; each type has the field of its own name."""

    type: Literal["text", "image_url", "file", "refusal"]
    text: str | None = None
    image_url: ImageUrl | None = None
    file: FileRef | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _has_its_field(self) -> Self:
        if getattr(self, self.type) is None:
            raise Invalid("server.part_without_field", param="content", type=self.type)
        return self

    def shape(self) -> dict[str, Any]:
        if self.type == "refusal":
            return {"type": "text", "text": self.refusal}
        return self.model_dump(exclude_none=True, include={"type", self.type})


class FunctionCall(Request):
    name: str
    arguments: str
    parsed_arguments: Any = None
    """Accepted because the official client sends back what it parsed; `arguments` says the same."""


class ToolCall(Request):
    """A call that the model made; `index` is what streams number calls by."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Request):
    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """What the model thought before an earlier answer; its chat template decides whether it is told."""
    refusal: str | None = None
    """Accepted because clients send an assistant's earlier message back as they got it; so are the four below."""
    parsed: Any = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None

    def to_message(self) -> Message:
        content = [part.shape() for part in self.content] if isinstance(self.content, list) else self.content
        calls = [
            call.model_dump(exclude_none=True, exclude={"index": True, "function": {"parsed_arguments"}})
            for call in self.tool_calls or ()
        ] or None
        return Message(self.role, content, self.name, calls, self.tool_call_id, self.reasoning_content or None)


class StreamOptions(Request):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class SamplingFields(Request):
    """What chat and completions share. The second group is passed to the engine under the same name.

    Ranges are those of OpenAI's reference and of llama.cpp tools/server/server-schema.cpp.
    """

    model: str = "auto"
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MANY)
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=MANY)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-1, lt=1 << 32)
    stop: Word | list[Word] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    user: str | None = None
    """Accepted for clients that send it; not stored."""
    keep_alive: KeepAlive | None = None

    n: int | None = Field(default=None, ge=1, le=16)
    logit_bias: dict[str, Bias] | list[tuple[int | str, Bias | Literal[False]]] | None = None
    """Token id (or text) → what is added to its logit; `false` in a pair forbids the token."""
    typical_p: float | None = Field(default=None, ge=0, le=1)
    top_n_sigma: float | None = Field(default=None, ge=-1)
    dynatemp_range: float | None = Field(default=None, ge=0)
    dynatemp_exponent: float | None = Field(default=None, ge=0)
    repeat_last_n: int | None = Field(default=None, ge=0, le=MANY)
    dry_multiplier: float | None = Field(default=None, ge=0)
    dry_base: float | None = Field(default=None, ge=1)
    dry_allowed_length: int | None = Field(default=None, ge=0, le=MANY)
    dry_penalty_last_n: int | None = Field(default=None, ge=0, le=MANY)
    dry_sequence_breakers: list[Word] | None = None
    xtc_probability: float | None = Field(default=None, ge=0, le=1)
    xtc_threshold: float | None = Field(default=None, ge=0, le=1)
    mirostat: int | None = Field(default=None, ge=0, le=2)
    mirostat_tau: float | None = Field(default=None, ge=0)
    mirostat_eta: float | None = Field(default=None, ge=0)
    adaptive_target: float | None = Field(default=None, ge=-1, le=1)
    adaptive_decay: float | None = Field(default=None, ge=0, le=0.99)
    min_keep: int | None = Field(default=None, ge=0, le=MANY)
    ignore_eos: bool | None = None
    grammar: Word | None = None
    """GBNF, llama.cpp's grammar notation."""
    json_schema: dict[str, Any] | None = None
    samplers: list[Sampler] | None = None
    cache_prompt: bool | None = None

    _handled: ClassVar[tuple[str, ...]] = ("model", "stream", "stream_options", "stop", "user", "keep_alive")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise Invalid("server.needs_field", param="stream_options", field="stream_options", other="stream")
        if self.grammar and self.json_schema is not None:
            raise Invalid("server.either_field", param="grammar", field="grammar", other="json_schema")
        return self

    def options(self) -> dict[str, Any]:
        """Everything that was chosen and that Sampling has no field of its own for, by the engines' names."""
        skip = {*SAMPLED, *self._handled}
        return self.model_dump(exclude_none=True, by_alias=True, exclude=skip)

    def sampling(self) -> Sampling:
        """The request's choices as the engines take them; everything else that was set goes into `options`."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        chosen = {name: getattr(self, name) for name in SAMPLED}
        return Sampling(stop=stop, options=self.options(), **chosen)


class Function(Request):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Request):
    type: Literal["function"]
    function: Function


class NamedFunction(Request):
    name: str


class NamedTool(Request):
    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(Request):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Request):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """llama.cpp's: a schema beside "json_object"."""

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise Invalid("server.needs_field", param="response_format", field="json_schema", other="type: json_schema")
        if self.schema_ is not None and self.type != "json_object":
            raise Invalid("server.needs_field", param="response_format", field="schema", other="type: json_object")
        return self


Truncation = Literal["auto", "disabled"]
"""Of a prompt that is too long: "auto" drops the oldest turns and says so, "disabled" refuses it."""
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions. `knowledge` is ours: names of bases to answer from, with numbered sources."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MANY)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    """Short for chat_template_kwargs.enable_thinking."""
    reasoning_budget_tokens: int | None = Field(default=None, ge=-1, le=MANY)
    """Tokens that the model may think; -1: as many as it wants, 0: none."""
    reasoning_format: Literal["auto", "none", "deepseek"] | None = None
    """"none" leaves the thoughts in the content; otherwise they are split off as reasoning_content."""
    chat_template_kwargs: dict[str, Any] | None = None
    truncation: Truncation = "disabled"
    knowledge: list[str] | None = None
    metadata: dict[str, str] | None = None
    """Given back in the answer."""
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    """Accepted like `user`: prefixes are found again by themselves."""
    safety_identifier: str | None = None

    _handled: ClassVar[tuple[str, ...]] = (
        *SamplingFields._handled,
        "messages",
        "max_completion_tokens",
        "enable_thinking",
        "truncation",
        "knowledge",
        "metadata",
        "store",
        "modalities",
        "service_tier",
        "prompt_cache_key",
        "safety_identifier",
    )

    @model_validator(mode="after")
    def _chat_fits_together(self) -> Self:
        names = self._tool_names()
        forced = self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)
        if forced and not names:
            raise Invalid("server.needs_field", param="tool_choice", field="tool_choice", other="tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise Invalid("server.no_such_tool", param="tool_choice", name=self.tool_choice.function.name)
        if self.top_logprobs is not None and not self.logprobs:
            raise Invalid("server.needs_field", param="top_logprobs", field="top_logprobs", other="logprobs: true")
        if self.grammar and names:
            raise Invalid("server.either_field", param="grammar", field="grammar", other="tools")
        said = (self.chat_template_kwargs or {}).get("enable_thinking", self.enable_thinking)
        if self.enable_thinking is not None and said is not self.enable_thinking:
            raise Invalid(
                "server.either_field", param="enable_thinking", field="enable_thinking", other="chat_template_kwargs"
            )
        return self

    def _tool_names(self) -> list[str]:
        return [tool.function.name for tool in self.tools or ()]

    def options(self) -> dict[str, Any]:
        options = super().options()
        if self.logprobs:  # engines that are told none name as many as they like
            options["top_logprobs"] = max(1, self.top_logprobs or 0)
        elif self.logprobs is not None:
            del options["logprobs"]
        if not options.get("tools"):
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                options.pop(name, None)
        if self.enable_thinking is not None:
            kwargs = options.get("chat_template_kwargs", {})
            options["chat_template_kwargs"] = {**kwargs, "enable_thinking": self.enable_thinking}
        return options

    def sampling(self) -> Sampling:
        base = super().sampling()
        if self.max_completion_tokens is None:
            return base
        return replace(base, max_tokens=self.max_completion_tokens)


class CompletionRequest(SamplingFields):
    """POST /v1/completions: raw text, no chat template."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(min_length=1)
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """How many alternatives to name beside each token."""
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    _handled: ClassVar[tuple[str, ...]] = (*SamplingFields._handled, "prompt", "echo", "best_of")

    def options(self) -> dict[str, Any]:
        options = super().options()
        if self.logprobs is not None:  # llama.cpp takes 0 for "none at all"
            options["logprobs"] = max(1, self.logprobs)
        return options


# ---- below the text ----


class TokenizeRequest(Request):
    """POST /v1/tokenize."""

    model: str = "auto"
    text: str
    add_special: bool = False
    """Put the tokens around it that the model wants at the beginning and the end of a text."""
    parse_special: bool = True
    """Read "<|im_start|>" and its like as the tokens that they name; false: as the characters that they are."""
    with_pieces: bool = False
    """Also what each token stands for."""
    keep_alive: KeepAlive | None = None


class DetokenizeRequest(Request):
    """POST /v1/detokenize."""

    model: str = "auto"
    tokens: list[TokenId]
    keep_alive: KeepAlive | None = None


class NextSampling(Request):
    """The samplers that depend on the next token's probabilities alone; what is left out is llama.cpp's default."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_k: int | None = Field(default=None, ge=0, le=MANY)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)


class NextTokenRequest(Request):
    """POST /v1/next_token: what a model expects after `prompt`, from its raw logits."""

    model: str = "auto"
    prompt: str | list[TokenId] = Field(min_length=1)
    forced: TokenId | None = None
    """A token id to be told the log-probability of, whether or not it is among the likeliest."""
    n_top: int = Field(default=20, ge=1, le=1000)
    sampling: NextSampling | None = None
    """Also tell how probable each becomes with these samplers."""
    keep_alive: KeepAlive | None = None


# ---- runs ----


class RunRequest(Request):
    """POST /v1/runs. `recipe` has the fields of /v1/recipes; files of `data` may be names of /v1/datasets. `launcher` is
    where a training is computed: {"launcher": "torchrun", "processes": 2}; one process without."""

    kind: str
    recipe: dict[str, Any]
    launcher: dict[str, Any] = Field(default_factory=dict)


class ResumeRequest(Request):
    """POST /v1/runs/{id}/resume. `launcher` in place of the one that the run had, or fields of that one alone."""

    launcher: dict[str, Any] = Field(default_factory=dict)


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
    tools: list[Tool | str] | None = None  # type: ignore[assignment]
    """What the model may call: names of GET /v1/tools, or functions of the caller's own."""
    prefix: str | None = Field(default=None, max_length=MANY_CHARS)
    """How the answer begins. The model goes on from there, and it is part of what is stored: the text of an answer that
    was cut off continues it. "": nothing, also where the conversation keeps one."""

    _handled: ClassVar[tuple[str, ...]] = (*ChatRequest._handled, "conversation_id", "parent_id", "system", "prefix")

    def _tool_names(self) -> list[str]:
        return [tool if isinstance(tool, str) else tool.function.name for tool in self.tools or ()]

    @model_validator(mode="after")
    def _prefix_fits(self) -> Self:
        for name in ("tools", "response_format", "json_schema", "grammar", "logprobs"):
            if self.prefix and getattr(self, name):
                raise Invalid("server.either_field", param="prefix", field="prefix", other=name)
        return self


class ConversationRequest(Request):
    """PATCH /v1/conversations/{id}. Fields that are None are left as they are."""

    title: str | None = Field(default=None, max_length=200)
    system: str | None = None
    model: str | None = None
    knowledge: list[str] | None = None
    sampling: dict[str, Any] | None = None
    prefix: str | None = Field(default=None, max_length=10_000)
    """How its answers begin."""
    tools: list[Word] | None = Field(default=None, max_length=1_000)
    """What its answers may call: names of GET /v1/tools."""
    beside: str | None = None
    """A second model whose answers are shown beside the first's; whoever asks starts both. "": none."""


class NewConversation(ConversationRequest):
    """POST /v1/conversations."""

    greeting: str | None = Field(default=None, max_length=MANY_CHARS)
    """What the model says first: the conversation's first message."""


class MessageRequest(Request):
    """POST /v1/conversations/{id}/messages: a message that a person wrote, answered by nobody.

    Either with `role` and `parent_id` (None: at the newest leaf, "root": a first turn), or with `edits`, the id of the
    message whose new version this is: beside it, under the same parent, of the same role.
    """

    content: str = Field(min_length=1, max_length=MANY_CHARS)
    role: Literal["user", "assistant"] | None = None
    parent_id: str | None = None
    edits: str | None = None

    @model_validator(mode="after")
    def _has_its_place(self) -> Self:
        if self.edits is None and self.role is None:
            raise Invalid("server.message_without_place", param="role")
        for name in ("role", "parent_id"):
            if self.edits is not None and getattr(self, name) is not None:
                raise Invalid("server.either_field", param="edits", field="edits", other=name)
        return self


class ToolDecision(Request):
    """POST /v1/conversations/{id}/tool_calls: whether a call that an answer asks for is made."""

    message_id: str
    """The answer."""
    call_id: str
    decision: Literal["run", "refuse"]
    go_on: bool = False
    """With the last of the answer's calls the next answer begins by itself, with the conversation's own choices."""
    wait_s: float = Field(default=120.0, ge=0, le=600)
    """Seconds to wait for the result: what is not there by then comes with the status "running", and goes on."""


# ---- what conversations begin with (ours) ----


class PersonaChange(Request):
    """PATCH /v1/personas/{id}. Fields that are None are left as they are."""

    name: str | None = Field(default=None, min_length=1, max_length=100)
    system: str | None = Field(default=None, max_length=MANY_CHARS)
    """The system prompt."""
    greeting: str | None = Field(default=None, max_length=MANY_CHARS)
    """What it says first."""
    model: str | None = None
    sampling: dict[str, Any] | None = None


class NewPersona(PersonaChange):
    """POST /v1/personas."""

    name: str = Field(min_length=1, max_length=100)


class PresetChange(Request):
    """PATCH /v1/presets/{id}. Fields that are None are left as they are."""

    name: str | None = Field(default=None, min_length=1, max_length=100)
    sampling: dict[str, Any] | None = None


class NewPreset(PresetChange):
    """POST /v1/presets."""

    name: str = Field(min_length=1, max_length=100)
    sampling: dict[str, Any]


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
    reload: bool = False
    """As it lies on disk now, also where it is in memory: the new one is loaded beside the one that answers."""
    replicas: int | None = Field(default=None, ge=1)
    """Copies of it, on a cluster; None: as before, or 1 beside `max_replicas`."""
    max_replicas: int = Field(default=0, ge=0)
    """As many when there is much to do, `replicas` when there is not; 0: always `replicas`."""


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
    store: str = "builtin"
    """What it is searched in: builtin, chroma, pgvector, opensearch, langchain."""


class SearchFilter(Request):
    """Which documents may answer. Every condition that is given must hold; within one, any of its values will do."""

    documents: list[str] = Field(default_factory=list, max_length=10_000)
    """Ids."""
    names: list[str] = Field(default_factory=list, max_length=1_000)
    """A folder ("手册/"), a whole name, or a pattern with * and ?, in which * also crosses "/"."""
    types: list[str] = Field(default_factory=list, max_length=100)
    """File suffixes, such as "pdf"."""


class DraftRequest(Request):
    """POST /v1/knowledge/{name}/questions: questions that a model drafts about a base, for a person to check."""

    n: int = Field(default=20, ge=1, le=1_000)
    """How many more."""
    model: str = "auto"
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Of the draw of passages: the same one goes on where it ended."""


class QuestionChange(Request):
    """PATCH /v1/knowledge/{name}/questions/{id}: what is not named stays as it is."""

    question: str | None = Field(default=None, max_length=4096, pattern=r"\S")
    answer: str | None = Field(default=None, max_length=65_536)
    state: Literal["open", "accepted", "dropped"] | None = None


class AskRequest(Request):
    """POST /v1/knowledge/{name}/ask: one question, answered from one base."""

    question: str = Field(min_length=1, max_length=4096)
    model: str = "auto"
    stream: bool = False
    max_tokens: int | None = Field(default=None, ge=1, le=MANY)
    temperature: float | None = Field(default=None, ge=0, le=5)
    seed: int | None = Field(default=None, ge=-1, lt=1 << 32)
    keep_alive: KeepAlive | None = None


class SearchRequest(Request):
    query: str = Field(min_length=1, max_length=4096)
    knowledge: list[str] = Field(min_length=1)
    k: int | None = Field(default=8, ge=1, le=100)
    """None: every candidate of both legs, each with its rank in either, for who compares them."""
    filter: SearchFilter | None = None
    rerank: str | None = Field(default=None, max_length=200)
    """The reranker that puts the first of them in order, "auto" for this machine's; "": none; null: the setting's."""


class AutoChunking(Request):
    type: Literal["auto"]


class VectorStoreRequest(Request):
    """POST /v1/vector_stores. `name` becomes the base's title."""

    name: str | None = Field(default=None, max_length=200)
    file_ids: list[str] = Field(default_factory=list, max_length=500)
    chunking_strategy: AutoChunking | None = None


class VectorStoreChange(Request):
    """POST /v1/vector_stores/{id}."""

    name: str | None = Field(default=None, max_length=200)


class VectorStoreFileRequest(Request):
    """POST /v1/vector_stores/{id}/files."""

    file_id: str = Field(min_length=1)
    chunking_strategy: AutoChunking | None = None


class RankingOptions(Request):
    ranker: Literal["auto", "none"] = "auto"


class VectorStoreSearch(Request):
    """POST /v1/vector_stores/{id}/search."""

    query: (
        Annotated[str, StringConstraints(min_length=1, max_length=4096)]
        | Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=4096)]], Field(min_length=1, max_length=1)
        ]
    )
    max_num_results: int = Field(default=10, ge=1, le=50)
    ranking_options: RankingOptions | None = None
    rewrite_query: Literal[False] = False


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
