"""llama.cpp's events of one answer as our Deltas: pieces as they come, and one last with usage and timings.

Knows chats ("delta") and raw completions ("text"). Knows nothing of connections.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mofang.messages import Delta, Progress, Timings, Usage


class Answer:
    """Reads events in order. With several answers at once (`n`), each ends with a finish_reason of its own, and the
    last of them carries the usage of all: the prompt once, the completions together."""

    def __init__(self) -> None:
        self._ends: list[Delta] = []
        self._usage: Usage | None = None
        self._timings: Timings | None = None

    def read(self, event: dict[str, Any]) -> Iterator[Delta]:
        """What can be passed on now."""
        self._count(event)
        reading = event.get("prompt_progress")
        if reading:
            yield Delta(progress=_progress(reading))
        for choice in event.get("choices", ()):
            piece = choice.get("delta") or {}
            content = piece.get("content") or choice.get("text") or ""
            reasoning, tool_calls = piece.get("reasoning_content") or "", piece.get("tool_calls")
            logprobs, index = choice.get("logprobs"), choice.get("index", 0)
            if content or reasoning or tool_calls or logprobs:
                yield Delta(content, reasoning, tool_calls, logprobs, index=index)
            if choice.get("finish_reason"):
                word = (event.get("__verbose") or {}).get("stopping_word") or None
                self._ends.append(Delta(finish_reason=choice["finish_reason"], index=index, stopped_by=word))
                if len(self._ends) > 1:
                    yield self._ends.pop(0)

    def last(self) -> Delta:
        """The piece that ends the answer. Raises LookupError when llama.cpp never said why it ended."""
        end = self._ends[-1]
        return replace(end, usage=self._usage, timings=self._timings)

    def _count(self, event: dict[str, Any]) -> None:
        counts, measured = event.get("usage"), event.get("timings")
        if counts:
            cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            said = counts["completion_tokens"] + (self._usage.completion_tokens if self._usage else 0)
            self._usage = Usage(counts["prompt_tokens"], said, cached)
        if measured:
            names = ("prompt_ms", "predicted_ms", "prompt_per_second", "predicted_per_second")
            self._timings = Timings(*(float(measured.get(name) or 0) for name in names))


def _progress(reading: dict[str, Any]) -> Progress:
    """Tokens of the prompt; the rate leaves out those that were in the cache."""
    done, seconds = int(reading["processed"]), float(reading.get("time_ms") or 0) / 1000
    rate = (done - int(reading.get("cache") or 0)) / seconds if seconds else 0.0
    return Progress("prompt", done, int(reading["total"]), "tokens", rate)


def as_bytes(piece: str | list[int]) -> bytes:
    """A token's text, which llama.cpp writes as a list of bytes where it is no valid UTF-8."""
    return piece.encode() if isinstance(piece, str) else bytes(piece)
