"""One answer, from a question to the last token: load the model, ground in documents, generate.

The OpenAI routes and the server's own generations both stand on `answering`. It knows neither HTTP nor the store.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mofang.engine.base import ChatEngine, EngineInfo
from mofang.errors import EngineFailed, Invalid
from mofang.knowledge.answer import mark_cited, says_not_found
from mofang.knowledge.cite import Citing
from mofang.messages import Delta, Message, Progress, Sampling, Source, Timings, Usage
from mofang.server import attached
from mofang.server.attached import Attached
from mofang.server.begun import continued
from mofang.server.events import Event
from mofang.server.rooms import Grounding, Rooms
from mofang.server.sse import closing
from mofang.server.truncate import cut_to
from mofang.server.visit import current, words
from mofang.strings import say
from mofang.wire import ChatRequest, Truncation


@dataclass(frozen=True, slots=True)
class Question:
    """What an answer is made from."""

    model: str
    messages: Sequence[Message]
    sampling: Sampling
    knowledge: Sequence[str] = ()
    keep_alive: float | None = None
    """Seconds that the model stays in memory afterwards; None: as before."""
    truncation: Truncation = "disabled"
    """What happens to a conversation that is longer than the model's context."""
    top_logprobs: int | None = None
    """Alternatives to name beside each token, where log-probabilities were asked for."""
    prefix: str = ""
    """How the answer begins."""


def question_of(body: ChatRequest) -> Question:
    """What a request of OpenAI's chat asks; the other dialects are translated into such a request first."""
    return Question(
        model=body.model,
        messages=[message.to_message() for message in body.messages],
        sampling=body.sampling(),
        knowledge=tuple(body.knowledge or ()),
        keep_alive=body.keep_alive,
        truncation=body.truncation,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


@dataclass
class Choice:
    """One of the `n` answers, as far as it has come."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stopped_by: str | None = None

    def add(self, delta: Delta) -> None:
        self.content += delta.content
        self.reasoning += delta.reasoning
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stopped_by = delta.stopped_by or self.stopped_by
        for call in delta.tool_calls or ():
            _join_call(self.tool_calls, call)
        if delta.logprobs is not None:
            self.logprobs = _join_lists(self.logprobs or {}, delta.logprobs)


STRUCTURED = {"response_format", "json_schema", "grammar", "tools"}
"""Options that ask for an answer of a certain form, to which nothing may be added."""


@dataclass
class Answer:
    """Everything known of an answer while it grows."""

    info: EngineInfo | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    notices: list[dict[str, str]] = field(default_factory=list)
    citing: dict[int, Citing] = field(default_factory=dict)
    """By choice: its marks, judged as they came."""
    usages: dict[int, Usage] = field(default_factory=dict)
    timings: Timings | None = None
    reasoning_tokens: int = 0
    """Of the completion's tokens, those of the thoughts, as the model's tokenizer cuts them."""
    refused: bool = False
    """The bases hold nothing on what was asked, and no model was asked either."""
    files: list[dict[str, Any]] = field(default_factory=list)
    """Those of the conversation: {"file_id", "filename", "tokens", "notes"}, counted by this answer's model."""
    truncated: dict[str, int] | None = None
    """{"dropped_messages", "dropped_tokens"} where the conversation was cut to fit."""

    def choice(self, index: int = 0) -> Choice:
        return self.choices.setdefault(index, Choice())

    def add(self, delta: Delta) -> None:
        self.choice(delta.index).add(delta)
        if delta.usage:
            self.usages[delta.index] = delta.usage
        self.timings = delta.timings or self.timings

    def check_complete(self) -> None:
        """An engine that ends without a reason was cut off: raises EngineFailed, since half an answer is none."""
        if not self.choices or any(choice.finish_reason is None for choice in self.choices.values()):
            raise EngineFailed("server.cut_answer", model=self.info.model if self.info else "-")

    @property
    def usage(self) -> dict[str, Any] | None:
        """OpenAI's shape: the prompt counts once, the `n` answers together. None before an engine said."""
        if not self.usages:
            return None
        usages = self.usages.values()
        shape = usage_shape(
            Usage(
                max(usage.prompt_tokens for usage in usages),
                sum(usage.completion_tokens for usage in usages),
                max(usage.cached_tokens for usage in usages),
            )
        )
        if self.reasoning_tokens:
            shape["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return shape

    @property
    def timings_shape(self) -> dict[str, float] | None:
        return asdict(self.timings) if self.timings else None

    @property
    def extras(self) -> dict[str, Any]:
        """Ours, on the last piece: where the answer comes from, and what a person should know about it."""
        fields: dict[str, Any] = {}
        if self.sources:
            fields["sources"] = self.cited_sources()
        if self.notices:
            fields["notices"] = self.notices
        if self.files:
            fields["files"] = self.files
        if self.truncated:
            fields["truncated"] = self.truncated
        return fields

    @property
    def extras_timed(self) -> dict[str, Any]:
        """The same with the engine's timings, for dialects that have no place of their own for them."""
        return {**self.extras, "timings": self.timings_shape} if self.timings else self.extras

    def cited_sources(self) -> list[dict[str, Any]]:
        """The sources, each with whether the answer carries its mark."""
        if not self.sources:
            return []
        cited = mark_cited(self.choice().content, self.sources)
        if citing := self.citing.get(0):
            cited = [replace(source, spans=citing.spans(source.number)) for source in cited]
        return [asdict(source) for source in cited]


def usage_shape(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _nobody(_: Event) -> None: ...


async def answering(
    rooms: Rooms, question: Question, answer: Answer, tell: Callable[[Event], None] = _nobody
) -> AsyncGenerator[Delta, None]:
    """Yields the pieces and keeps them in `answer`; closing it stops the engine and frees its slot.

    `tell` hears what happens before the first piece: loading, sources, notices.
    """

    def loading(progress: Progress) -> None:
        tell({"type": "loading", "model": question.model, "progress": progress_shape(progress)})

    visit = current()
    visit.asked(words(question.messages))
    if grounding := await _stored(rooms, question):
        _tell_of(grounding, "stored_answer", answer, tell)
        for delta in _given(grounding, answer):
            yield delta
        return
    sampling = bounded(question.sampling, rooms.settings.max_tokens)
    async with rooms.engines.use(question.model, "chat", progress=loading, keep_alive=question.keep_alive) as engine:
        assert isinstance(engine, ChatEngine)
        answer.info = engine.info()
        files = await _attached(rooms, question, engine, answer, tell)
        question = await _fitting(question, files, engine, sampling, answer, tell)
        messages: Sequence[Message] = [files.whole(message) for message in question.messages]
        if question.knowledge:
            grounding = await _ground(rooms, question, engine, sampling, answer, tell)
            if grounding.answer and _is_free(question):
                for delta in _given(grounding, answer):
                    yield delta
                return
            messages = files.into(grounding.messages, question.messages)
        judge = _judge(rooms, question, answer)
        begins = question.prefix
        source = await continued(engine, messages, sampling, begins) if begins else engine.chat(messages, sampling)
        if begins:
            begun = await judge(Delta(begins))
            answer.add(begun)
            yield begun
        async with closing(source) as deltas:
            async for delta in deltas:
                delta = await judge(delta)
                if delta.logprobs and question.top_logprobs is not None:
                    delta = replace(delta, logprobs=_trimmed(delta.logprobs, question.top_logprobs))
                if delta.usage and answer.choices:
                    thoughts = [choice.reasoning for choice in answer.choices.values() if choice.reasoning]
                    answer.reasoning_tokens = sum([len(await engine.tokenize(text)) for text in thoughts])
                if delta.finish_reason:
                    _tell_of_marks(answer, delta, tell)
                visit.note(delta)
                answer.add(delta)
                yield delta
    answer.check_complete()


def _judge(rooms: Rooms, question: Question, answer: Answer) -> Callable[[Delta], Awaitable[Delta]]:
    """Lets through of each piece what may be shown: a mark whose source does not hold its sentence is not.

    Answers of a certain form, and those whose tokens are shown one by one, stay as the model wrote them.
    """
    if not answer.sources or question.top_logprobs is not None or question.sampling.options.keys() & STRUCTURED:
        return _as_written

    asked = next((message.text for message in reversed(question.messages) if message.role == "user"), "")

    async def judged(delta: Delta) -> Delta:
        citing = answer.citing.setdefault(delta.index, Citing(answer.sources, rooms.library.vectors, asked))
        text = await citing.push(delta.content) if delta.content else ""
        if delta.finish_reason:
            text += citing.close()
        return replace(delta, content=text)

    return judged


async def _as_written(delta: Delta) -> Delta:
    return delta


def _tell_of_marks(answer: Answer, last: Delta, tell: Callable[[Event], None]) -> None:
    """That marks were taken away, changed or added is said, and that no sentence of an answer was found in a source."""
    citing = answer.citing.get(last.index)
    if citing is None:
        return
    notices = {}
    if citing.dropped or citing.moved:
        notices["marks_judged"] = say("knowledge.marks_judged", dropped=citing.dropped, moved=citing.moved)
    if citing.added:
        notices["marks_added"] = say("knowledge.marks_added", n=citing.added)
    if not citing.citations and not says_not_found(answer.choice(last.index).content + last.content):
        notices["unsupported"] = say("knowledge.unsupported")
    for code, message in notices.items():
        answer.notices.append({"code": code, "message": message})
        tell({"type": "notice", **answer.notices[-1]})


def bounded(sampling: Sampling, max_tokens: int) -> Sampling:
    """With this machine's length of an answer, where the request names none."""
    return sampling if sampling.max_tokens else replace(sampling, max_tokens=max_tokens)


def prompt_room(n_ctx: int, sampling: Sampling) -> int:
    """Tokens that a prompt may have, where we choose what is in it: the answer keeps at most half of the context."""
    return n_ctx - min(sampling.max_tokens or 0, n_ctx // 2)


async def _room(question: Question, engine: ChatEngine, sampling: Sampling) -> int:
    """The same without the tokens that the answer begins with."""
    begun = len(await engine.tokenize(question.prefix)) if question.prefix else 0
    return prompt_room(engine.info().n_ctx, sampling) - begun


async def _attached(
    rooms: Rooms, question: Question, engine: ChatEngine, answer: Answer, tell: Callable[[Event], None]
) -> Attached:
    """What the files of the conversation say; which they are, and their tokens, is told."""
    files = await attached.read(rooms.files, question.messages)
    if not files.readings:
        return files
    answer.files = await attached.counted(files, engine)
    tell({"type": "files", "files": answer.files})
    if gone := files.gone():
        answer.notices.append({"code": "files_gone", "message": say("server.files_gone", n=len(gone))})
        tell({"type": "notice", **answer.notices[-1]})
    return files


async def _fitting(
    question: Question,
    files: Attached,
    engine: ChatEngine,
    sampling: Sampling,
    answer: Answer,
    tell: Callable[[Event], None],
) -> Question:
    """The question as the model can take it; that turns were dropped is said. Raises Invalid for images that it
    cannot see, and for files that leave no room."""
    info = engine.info()
    whole = [files.whole(message) for message in question.messages]
    if not info.images and any(message.has_image for message in whole):
        raise Invalid("server.no_images", param="messages", model=info.model)
    if question.truncation == "disabled":
        await files.check_room(engine, whole, sampling.options)
        return question
    room = await _room(question, engine, sampling)
    cut = await cut_to(engine, whole, room, sampling.options)
    await files.check_room(engine, cut.messages, sampling.options)
    if cut.dropped_messages:
        answer.truncated = {"dropped_messages": cut.dropped_messages, "dropped_tokens": cut.dropped_tokens}
        said = say("server.truncated", messages=cut.dropped_messages, tokens=cut.dropped_tokens)
        answer.notices.append({"code": "truncated", "message": said})
        tell({"type": "notice", **answer.notices[-1], **answer.truncated})
    left = {id(message) for message in cut.messages}
    return replace(
        question, messages=[own for own, told in zip(question.messages, whole, strict=True) if id(told) in left]
    )


def _trimmed(logprobs: dict[str, Any], n_top: int) -> dict[str, Any]:
    """With as many alternatives as were asked for: engines name at least one."""
    entries = [{**entry, "top_logprobs": entry["top_logprobs"][:n_top]} for entry in logprobs.get("content") or ()]
    return {**logprobs, "content": entries}


async def _ground(
    rooms: Rooms,
    question: Question,
    engine: ChatEngine,
    sampling: Sampling,
    answer: Answer,
    tell: Callable[[Event], None],
) -> Grounding:
    """The messages with the passages that belong to them. What is searched for is the question, not its files, which
    take their room all the same."""
    room = await _room(question, engine, sampling) - sum(file["tokens"] or 0 for file in answer.files)
    asked = [attached.plain(message) for message in question.messages]
    grounding = await rooms.library.ground(list(question.knowledge), asked, engine=engine, max_prompt_tokens=room)
    _tell_of(grounding, "knowledge", answer, tell)
    return grounding


async def _stored(rooms: Rooms, question: Question) -> Grounding | None:
    """The answer that is stored for this very question. No model is loaded, waited for or charged for it; whoever asked
    for more than one answer, for one of a certain form, or to see its tokens, wants a model's."""
    if not question.knowledge or not _is_free(question):
        return None
    return await rooms.library.stored(list(question.knowledge), question.messages)


def _is_free(question: Question) -> bool:
    """Whether an answer may come from elsewhere than the model: not where it is to be about a file."""
    asked = question.sampling.options
    if any(message.file_ids for message in question.messages):
        return False
    written = (
        question.prefix or question.top_logprobs is not None or question.sampling.stop or asked.keys() & STRUCTURED
    )
    return not written and asked.get("n", 1) == 1


def _given(grounding: Grounding, answer: Answer) -> Iterator[Delta]:
    """The pieces of an answer that no model wrote, kept as those of a model are."""
    answer.refused = grounding.refused
    for delta in (Delta(grounding.answer), Delta(finish_reason="stop", usage=Usage(0, 0))):
        current().note(delta)
        answer.add(delta)
        yield delta


def _tell_of(grounding: Grounding, code: str, answer: Answer, tell: Callable[[Event], None]) -> None:
    """Its sources and notices, to whoever follows the answer."""
    answer.sources = list(grounding.sources)
    tell({"type": "sources", "sources": [asdict(source) for source in answer.sources]})
    for notice in grounding.notices:
        answer.notices.append({"code": code, "message": notice})
        tell({"type": "notice", **answer.notices[-1]})


def progress_shape(progress: Progress) -> dict[str, Any]:
    return {**asdict(progress), "seconds_left": progress.seconds_left}


def _join_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece of a streamed tool call to the call of its index; only the arguments come in pieces."""
    index = piece.get("index", len(calls))
    while len(calls) <= index:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    call["id"] = piece.get("id") or call["id"]
    function = piece.get("function") or {}
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _join_lists(kept: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities come as named lists, one entry a token."""
    joined = dict(kept)
    for name, value in more.items():
        joined[name] = [*(kept.get(name) or []), *value] if isinstance(value, list) else value
    return joined
