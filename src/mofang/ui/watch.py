"""Answers under way, followed once a process however many tabs look at them. Knows nothing of Streamlit.

An answer lives in the gateway; a Watch reads its event log in a thread and keeps what it says so far, so that a page
only ever takes a snapshot (microseconds) and a click never waits for a token. A gateway that goes away is asked again
after the last event seen. Nobody looking for IDLE_S ends the thread; the next look starts at the log's beginning.
"""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mofang.client import ApiError, Client
from mofang.errors import MofangError, Unreachable

IDLE_S: Final = 60.0
RETRY_S: Final = 1.0
FINAL: Final = frozenset({"done", "stopped", "error"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an answer at one moment."""

    status: str = "queued"
    """queued | loading | prompt | running | done | stopped | error."""
    content: str = ""
    reasoning: str = ""
    sources: tuple[dict[str, Any], ...] = ()
    notices: tuple[dict[str, Any], ...] = ()
    files: tuple[dict[str, Any], ...] = ()
    """Those of the conversation, with their tokens."""
    loading: dict[str, Any] = field(default_factory=dict)
    """{"model", "progress"} while a model is being loaded."""
    prompt: tuple[int, int] = (0, 0)
    """Tokens of the prompt read, of all."""
    error: dict[str, Any] | None = None
    """{"message", "hint", "code"} when status is "error"."""
    is_lost: bool = False
    """The gateway does not answer just now; we keep asking."""

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


def after_event(answer: Answer, event: dict[str, Any]) -> Answer:
    """The answer once `event` has happened; an event type that we do not know changes nothing."""
    kind = event.get("type")
    answer = replace(answer, is_lost=False)
    if kind == "delta":
        return replace(
            answer,
            status="running",
            content=answer.content + (event.get("content") or ""),
            reasoning=answer.reasoning + (event.get("reasoning") or ""),
        )
    if kind == "loading":
        return replace(answer, status="loading", loading=event)
    if kind == "prompt":
        return replace(answer, status="prompt", prompt=(event.get("done") or 0, event.get("total") or 0))
    if kind == "sources":
        return replace(answer, sources=tuple(event.get("sources") or ()))
    if kind == "files":
        return replace(answer, files=tuple(event.get("files") or ()))
    if kind == "notice":
        return replace(answer, notices=(*answer.notices, event))
    if kind in ("done", "stopped"):
        return replace(answer, status=kind, sources=tuple(event.get("sources") or answer.sources))
    if kind == "error":
        return replace(answer, status="error", error=event.get("error") or {})
    return answer


class Watch:
    """Follows one generation. `answer()` is safe from any thread."""

    def __init__(self, client: Client, generation_id: str) -> None:
        self.generation_id = generation_id
        self._client = client
        self._answer = Answer()
        self._seen_at = time.monotonic()
        self._thread = threading.Thread(target=self._follow, name=f"watch-{generation_id}", daemon=True)
        self._thread.start()

    def answer(self) -> Answer:
        self._seen_at = time.monotonic()
        return self._answer

    def settle(self, timeout_s: float) -> Answer:
        """Wait for the log of an answer that has ended already; what is known after `timeout_s` at the latest."""
        self._thread.join(timeout_s)
        return self.answer()

    @property
    def is_idle(self) -> bool:
        return time.monotonic() - self._seen_at > IDLE_S

    def _follow(self) -> None:
        after = -1
        while not (self._answer.is_final or self.is_idle):
            try:
                for event in self._client.follow_generation(self.generation_id, after):
                    after = event["seq"] if event.get("seq") is not None else after
                    self._answer = after_event(self._answer, event)
                    if self._answer.is_final or self.is_idle:
                        return
            except Unreachable:
                self._answer = replace(self._answer, is_lost=True)
            except ApiError as error:
                if error.status in (404, 401, 403):
                    self._answer = replace(self._answer, status="error", error=dict(error.fault))
                    return
                self._answer = replace(self._answer, is_lost=True)
            time.sleep(RETRY_S)


class Watches:
    """The process's watches, by gateway client and generation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: dict[tuple[Client, str], Watch] = {}

    def of(self, client: Client, generation_id: str) -> Watch:
        with self._lock:
            for key in [key for key, watch in self._watches.items() if watch.is_idle]:
                del self._watches[key]
            key = (client, generation_id)
            if key not in self._watches:
                self._watches[key] = Watch(client, generation_id)
            return self._watches[key]


class Task:
    """One slow call (loading a model), made in a thread so that the page stays awake; then `result` or `error`."""

    def __init__(self, call: Any) -> None:
        self.error: MofangError | None = None
        self.result: Any = None
        self._thread = threading.Thread(target=self._run, args=(call,), name="task", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def settle(self, timeout_s: float) -> None:
        """Wait for its end, `timeout_s` at most: a quick answer needs no second look."""
        self._thread.join(timeout_s)

    def _run(self, call: Any) -> None:
        try:
            self.result = call()
        except MofangError as error:
            self.error = error
