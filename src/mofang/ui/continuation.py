"""A continuation under way, read in a thread so that a page only takes a snapshot and no click waits for a token.

Knows nothing of Streamlit. It goes over the OpenAI route: leaving it stops the generation, and so does nobody looking
for IDLE_S.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mofang.client import Client
from mofang.errors import MofangError
from mofang.ui.tokens import Token, token_of

IDLE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Written:
    """What is known of it at one moment."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    """Those whose probability the engine told."""
    finish_reason: str = ""
    n_tokens: int = 0
    """All that were written, told at the end; 0 before."""
    per_second: float = 0.0
    error: MofangError | None = None
    is_running: bool = True

    @property
    def n_untold(self) -> int:
        """Tokens without a probability: an engine may tell nothing of those that are part of a character only. (The
        token that ends a text is counted, and is none of them.)"""
        return max(0, self.n_tokens - len(self.tokens) - (self.finish_reason == "stop"))


def after_chunk(written: Written, chunk: Mapping[str, Any]) -> Written:
    """What is known once `chunk` of the stream has come."""
    usage, timings = chunk.get("usage") or {}, chunk.get("timings") or {}
    written = replace(
        written,
        n_tokens=usage.get("completion_tokens") or written.n_tokens,
        per_second=timings.get("predicted_per_second") or written.per_second,
    )
    for choice in chunk.get("choices") or ():
        entries = (choice.get("logprobs") or {}).get("content") or ()
        written = replace(
            written,
            text=written.text + (choice.get("text") or ""),
            tokens=(*written.tokens, *map(token_of, entries)),
            finish_reason=choice.get("finish_reason") or written.finish_reason,
        )
    return written


class Continuation:
    """Of one prompt. `written()` is safe from any thread."""

    def __init__(self, client: Client, body: Mapping[str, Any]) -> None:
        self.prompt = str(body["prompt"])
        self._client, self._body = client, body
        self._written = Written()
        self._is_stopped = False
        self._seen_at = time.monotonic()
        self._thread = threading.Thread(target=self._read, name="continuation", daemon=True)
        self._thread.start()

    def written(self) -> Written:
        self._seen_at = time.monotonic()
        return self._written

    def stop(self) -> None:
        """Let go of it: what is written stays."""
        self._is_stopped = True
        self._written = replace(self._written, is_running=False)

    def settle(self, timeout_s: float) -> Written:
        """What is known once it has ended, after `timeout_s` at the latest."""
        self._thread.join(timeout_s)
        return self.written()

    @property
    def _is_left(self) -> bool:
        return self._is_stopped or time.monotonic() - self._seen_at > IDLE_S

    def _read(self) -> None:
        try:
            with self._client.completion_stream(self._body) as chunks:
                for chunk in chunks:
                    if self._is_left:
                        break
                    self._written = after_chunk(self._written, chunk)
        except MofangError as error:
            self._written = replace(self._written, error=None if self._is_stopped else error)
        finally:
            self._written = replace(self._written, is_running=False)
