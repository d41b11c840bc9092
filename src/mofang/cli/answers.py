"""An answer while it comes: the events of a generation, shown on a screen and collected into an Answer.

Three screens: `LiveScreen` draws Markdown on a terminal, `PlainScreen` writes the text as it comes into a pipe,
`Screen` shows nothing (for --json). Knows nothing of conversations and commands.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mofang.cli import render
from mofang.cli.follow import following
from mofang.client import ApiError, Client
from mofang.errors import EngineFailed
from mofang.strings import say, where

if TYPE_CHECKING:
    from rich.status import Status

    from mofang.cli.markdown import MarkdownStream

Fields = Mapping[str, Any]


@dataclass
class Answer:
    """What was said, and how it went. `status`: "done", or "stopped" by whoever asked."""

    model: str = ""
    content: str = ""
    reasoning: str = ""
    sources: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    status: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    conversation_id: str | None = None
    message_id: str | None = None
    user_message_ids: list[str] = field(default_factory=list)
    first_token_s: float | None = None
    """Seconds from the question to the first piece, loading the model included."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Screen:
    """Shows nothing. A context manager, so that what was drawn is put in order however it ends."""

    def __enter__(self) -> "Screen":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def waiting(self, sentence: str) -> None:
        """What is being waited for, until the first piece comes."""

    def delta(self, content: str, reasoning: str) -> None:
        """A piece of the answer, or of the thinking before it."""

    def notice(self, sentence: str) -> None:
        """Something the reader should know about this answer."""
        render.note(sentence, style="yellow")

    def tick(self) -> None:
        """Nothing came for a moment: show what is held back."""

    def close(self) -> None:
        """No more will come. Safe to call twice."""


class _Waiting:
    """A spinner on standard error with what is being waited for; on a pipe, nothing."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def say(self, sentence: str) -> None:
        from rich.text import Text

        words = Text(sentence, style="dim")
        if self._status is not None:
            self._status.update(words)
            return
        console = render.err()
        if console.is_terminal:
            self._status = console.status(words)
            self._status.start()

    def end(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


class PlainScreen(Screen):
    """The text itself, as it comes, for pipes and files. Thinking is left out."""

    def __init__(self) -> None:
        self._waiting = _Waiting()
        self._ends_line = True

    def waiting(self, sentence: str) -> None:
        self._waiting.say(sentence)

    def delta(self, content: str, reasoning: str) -> None:
        if content:
            self._waiting.end()
            sys.stdout.write(content)
            sys.stdout.flush()
            self._ends_line = content.endswith("\n")

    def close(self) -> None:
        self._waiting.end()
        if not self._ends_line:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._ends_line = True


class LiveScreen(Screen):
    """Markdown on a terminal, drawn while it grows; thinking above it, dim."""

    def __init__(self) -> None:
        self._waiting = _Waiting()
        self._console = render.out()
        self._stream: MarkdownStream | None = None
        self._thinking = False

    def waiting(self, sentence: str) -> None:
        if self._stream is None and not self._thinking:
            self._waiting.say(sentence)

    def delta(self, content: str, reasoning: str) -> None:
        self._waiting.end()
        if reasoning:
            self._thinking = True
            self._console.print(reasoning, end="", style="dim italic", markup=False, soft_wrap=True)
        if content:
            self._answering().feed(content)

    def _answering(self) -> "MarkdownStream":
        from mofang.cli.markdown import MarkdownStream

        if self._stream is None:
            self._end_thinking()
            self._stream = MarkdownStream(self._console).start()
        return self._stream

    def _end_thinking(self) -> None:
        if self._thinking:
            self._console.print("\n")
            self._thinking = False

    def notice(self, sentence: str) -> None:
        self._waiting.end()
        super().notice(sentence)

    def tick(self) -> None:
        if self._stream is not None:
            self._stream.tick()

    def close(self) -> None:
        self._waiting.end()
        self._end_thinking()
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def screen() -> Screen:
    """The one that fits standard output."""
    return LiveScreen() if render.out().is_terminal else PlainScreen()


# ---- events ----


def ask(client: Client, body: Fields, screen: Screen, answer: Answer) -> None:
    """Start a generation and show it to its end, filling `answer`. Ctrl-C stops it and keeps what was said so far.

    Raises ApiError for an `error` event, KeyboardInterrupt on a second Ctrl-C; `answer` holds what came until then.
    """
    begun = time.monotonic()
    with screen:
        screen.waiting(say("cli.searching" if body.get("knowledge") else "cli.waiting"))
        started = client.generate(body)
        answer.model = str(started.get("model") or "")
        answer.conversation_id = started.get("conversation_id")
        answer.message_id = started.get("message_id")
        answer.user_message_ids = list(started.get("user_message_ids") or ())
        generation = started["id"]
        with (
            _stopped_when_nobody_reads(client, generation),
            following(
                lambda: client.follow_generation(generation), lambda: client.stop_generation(generation)
            ) as events,
        ):
            for event in events:
                if event is None:
                    screen.tick()
                    continue
                if event["type"] == "delta" and answer.first_token_s is None:
                    answer.first_token_s = time.monotonic() - begun
                _ON[event["type"]](answer, screen, event)
    if not answer.status:
        raise EngineFailed("cli.answer_lost")
    if answer.model == "auto":
        answer.model = str(client.generation(generation)["model"])
    answer.seconds = time.monotonic() - begun


@contextmanager
def _stopped_when_nobody_reads(client: Client, generation: str) -> Iterator[None]:
    """Generations outlive their watchers; `mofang chat -p … | head -1` should not leave one running."""
    try:
        yield
    except BrokenPipeError:
        client.stop_generation(generation)
        raise


def _queued(answer: Answer, screen: Screen, event: Fields) -> None:
    """Every answer is queued first; what is being waited for is said already."""


def _loading(answer: Answer, screen: Screen, event: Fields) -> None:
    progress = event.get("progress") or {}
    percent = _percent(progress.get("done"), progress.get("total"))
    name = progress.get("detail") or event.get("model") or answer.model  # the detail says which model "auto" is
    screen.waiting(say("cli.loading", model=name, percent=percent))


def _prompt(answer: Answer, screen: Screen, event: Fields) -> None:
    screen.waiting(say("cli.reading_prompt", done=event.get("done") or 0, total=event.get("total") or "?"))


def _percent(done: float | None, total: float | None) -> str:
    return f" {100 * (done or 0) / total:.0f}%" if total else ""


def _sources(answer: Answer, screen: Screen, event: Fields) -> None:
    answer.sources = list(event["sources"])
    screen.waiting(say("cli.waiting"))


def _delta(answer: Answer, screen: Screen, event: Fields) -> None:
    content, reasoning = event.get("content") or "", event.get("reasoning") or ""
    answer.content += content
    answer.reasoning += reasoning
    screen.delta(content, reasoning)


def _notice(answer: Answer, screen: Screen, event: Fields) -> None:
    sentence = str(event.get("message") or event.get("code") or "")
    answer.notices.append(sentence)
    screen.notice(sentence)


def _end(answer: Answer, screen: Screen, event: Fields) -> None:
    answer.status = event["type"]
    answer.finish_reason = event.get("finish_reason")
    answer.usage = dict(event.get("usage") or {})
    answer.timings = dict(event.get("timings") or {})
    answer.sources = list(event.get("sources") or answer.sources)
    answer.message_id = event.get("message_id") or answer.message_id


def _error(answer: Answer, screen: Screen, event: Fields) -> None:
    fault = event.get("error") or {}
    raise ApiError(int(fault.get("status") or 502), fault)


_ON: Mapping[str, Callable[[Answer, Screen, Fields], None]] = {
    "queued": _queued,
    "loading": _loading,
    "prompt": _prompt,
    "sources": _sources,
    "delta": _delta,
    "notice": _notice,
    "done": _end,
    "stopped": _end,
    "error": _error,
}


# ---- what stands below an answer ----


def place(source: Fields) -> str:
    """Where a person finds a source or hit: document · page (sheet, slide…) · the headings above it."""
    return " · ".join([str(source.get("title") or source.get("document_id") or ""), *where(source)])


def show_sources(answer: Answer) -> None:
    """The numbered sources, those that the answer cites marked with ●."""
    if not answer.sources:
        return
    from rich.text import Text

    render.show("", Text(say("cli.sources_heading"), style="bold"))
    for source in answer.sources:
        cited = bool(source.get("cited"))
        line = f"{'●' if cited else '○'} [{source['number']}] {place(source)}"
        render.show(Text(line, style="" if cited else "dim"))


def cached_tokens(usage: Fields) -> int:
    """Prompt tokens that were not computed again, from OpenAI's nested field or a flat one."""
    details = usage.get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or usage.get("cached_tokens") or 0)


def summary(answer: Answer) -> str:
    """One line: tokens, speed, time to the first of them."""
    parts = []
    if answer.usage.get("completion_tokens") is not None:
        parts.append(say("cli.stat_tokens", n=answer.usage["completion_tokens"]))
    if answer.timings.get("predicted_per_second"):
        parts.append(say("cli.stat_speed", rate=f"{answer.timings['predicted_per_second']:.1f}"))
    if answer.first_token_s is not None:
        parts.append(say("cli.stat_first", seconds=f"{answer.first_token_s:.1f}"))
    return " · ".join(parts)


def show_end(answer: Answer) -> None:
    """What the reader should know about how it ended: stopped, or cut by the length limit."""
    if answer.status == "stopped":
        render.note(say("cli.stopped"), style="yellow")
    elif answer.finish_reason == "length":
        render.note(say("cli.length"), style="yellow")
