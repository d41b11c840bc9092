"""One answer, token by token: prompt in batches, whole characters, stop words, the context's end. Runs in the child."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mofang.engine.worker.core import Core, Logits
from mofang.engine.worker.sample import Choices, Sampler, log_softmax
from mofang.errors import Invalid

LOOK_S = 0.02
"""How often who waits for a place looks whether somebody still waits for him."""

Piece = dict[str, Any]
Gone = Callable[[], bool]
"""Whether whoever asked has left."""


class Left(Exception):
    """Whoever asked has left."""


class Turns:
    """A lock that serves in the order of asking: two answers take turns token by token."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    @contextmanager
    def take(self) -> Iterator[None]:
        mine = threading.Event()
        with self._guard:
            self._queue.append(mine)
            if self._queue[0] is mine:
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            with self._guard:
                self._queue.popleft()
                if self._queue:
                    self._queue[0].set()


class Slots:
    """Which conversations are in the cache, and who answers in them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._free = threading.Condition()
        self._held: dict[int, list[int]] = {number: [] for number in range(core.facts.n_slots)}
        self._busy: set[int] = set()
        self._turns = Turns()

    @property
    def n_busy(self) -> int:
        return len(self._busy)

    @contextmanager
    def use(self, prompt: Sequence[int], gone: Gone) -> Iterator["Slot"]:
        """The free slot that holds most of the beginning of `prompt`. Raises Left."""
        with self._free:
            while len(self._busy) == len(self._held):
                self._free.wait(LOOK_S)
                if gone():
                    raise Left
            free = [number for number in self._held if number not in self._busy]
            number = max(free, key=lambda one: _common(self._held[one], prompt))
            self._busy.add(number)
        slot = Slot(self._core, number, self._held[number], self._turns)
        try:
            yield slot
        finally:
            with self._free:
                self._busy.discard(number)
                self._free.notify()


class Slot:
    """One conversation's place in the cache. `tokens` is what it holds."""

    def __init__(self, core: Core, number: int, tokens: list[int], turns: Turns) -> None:
        self._core, self._number, self.tokens, self._turns = core, number, tokens, turns

    def keep(self, prompt: Sequence[int], *, cached: bool) -> int:
        """Keep what the cache shares with `prompt`, its last token left out: that one must be computed for its logits."""
        n_wanted = min(_common(self.tokens, prompt), len(prompt) - 1) if cached else 0
        with self._turns.take():
            n_kept = self._core.keep(self._number, n_wanted)
        del self.tokens[n_kept:]
        return n_kept

    def feed(self, tokens: Sequence[int]) -> Logits:
        try:
            with self._turns.take():
                logits = self._core.feed(self._number, tokens)
        except BaseException:
            self.tokens.clear()  # nobody knows what the cache holds now
            raise
        self.tokens.extend(tokens)
        return logits


def _common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens that both begin with."""
    n_most = min(len(held), len(prompt))
    return next((at for at in range(n_most) if held[at] != prompt[at]), n_most)


def check_fits(core: Core, prompt: Sequence[int]) -> None:
    """Raises Invalid for a prompt that leaves no room for an answer, or has a token that the model does not know."""
    n_ctx = core.facts.n_ctx
    if len(prompt) >= n_ctx:
        raise Invalid("engine.context_length_exceeded", param="messages", n_prompt=len(prompt), n_ctx=n_ctx)
    if not prompt:
        raise Invalid("engine.empty_prompt", param="prompt")


def read(core: Core, slot: Slot, prompt: Sequence[int], wanted: Choices, gone: Gone) -> Iterator[tuple[int, Any]]:
    """Compute the prompt; yields (tokens done, None), at last (all, logits), after (tokens that were cached, None)."""
    done = slot.keep(prompt, cached=wanted.cache_prompt)
    yield done, None
    while done < len(prompt):
        if gone():
            raise Left
        batch = prompt[done : done + core.facts.batch]
        logits = slot.feed(batch)
        done += len(batch)
        yield done, logits if done == len(prompt) else None


def answer(
    core: Core, slots: Slots, prompt: Sequence[int], wanted: Choices, gone: Gone
) -> Generator[Piece, None, None]:
    """The pieces of an answer as Delta's fields; the last has finish_reason, usage and timings. Raises Left, Invalid."""
    check_fits(core, prompt)
    with slots.use(prompt, gone) as slot:
        began = time.perf_counter()
        n_cached, logits = -1, np.empty(0, np.float32)
        for done, found in read(core, slot, prompt, wanted, gone):
            n_cached = done if n_cached < 0 else n_cached
            seconds = time.perf_counter() - began
            rate = (done - n_cached) / max(seconds, 1e-6)
            progress = {"stage": "prompt", "done": done, "total": len(prompt), "unit": "tokens", "rate": rate}
            yield {"progress": progress}
            logits = logits if found is None else found
        prompted = time.perf_counter()
        words = _Words(core, wanted, prompt)
        finish = ""
        while not finish:
            if gone():
                raise Left
            token = words.next(logits)
            if piece := words.piece():
                yield piece
            finish = words.finish or ("length" if len(prompt) + words.n_said >= core.facts.n_ctx else "")
            if not finish:
                logits = slot.feed([token])
    said = time.perf_counter()
    if rest := words.rest():
        yield {"content": rest}
    yield {
        "finish_reason": finish,
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": words.n_said, "cached_tokens": n_cached},
        "timings": {
            "prompt_ms": 1000 * (prompted - began),
            "predicted_ms": 1000 * (said - prompted),
            "prompt_per_second": (len(prompt) - n_cached) / max(prompted - began, 1e-6),
            "predicted_per_second": words.n_said / max(said - prompted, 1e-6),
        },
    }


class _Words:
    """The text of an answer: what can be sent of it, and why it ends."""

    def __init__(self, core: Core, wanted: Choices, prompt: Sequence[int]) -> None:
        self._core, self._wanted = core, wanted
        self._sampler = Sampler(wanted, core.facts.end_ids)
        self._detokenizer = core.detokenizer()
        self._before = list(prompt)
        self._held = ""
        """Text that could be the beginning of a stop word."""
        self._logprobs: list[dict[str, Any]] = []
        self.n_said = 0
        self.finish = ""

    def next(self, logits: Logits) -> int:
        """Choose a token, and take it in."""
        token = self._sampler.choose(logits, self._before)
        self._before.append(token)
        self.n_said += 1
        ended = token in self._core.facts.end_ids
        if self._wanted.logprobs and not ended:
            self._logprobs.append(_reported(self._core, logits, token, self._wanted.n_top))
        if ended:
            self.finish = "stop"
        else:
            self._held += self._detokenizer.push(token)
            if self.n_said >= self._wanted.max_tokens:
                self.finish = "length"
        return token

    def piece(self) -> Piece:
        """What can be sent now; empty for nothing."""
        ends = [at for at in (self._held.find(stop) for stop in self._wanted.stop) if at >= 0]
        if ends:
            said, self._held, self.finish = self._held[: min(ends)], "", "stop"
        else:
            n_sure = len(self._held) - _beginning(self._held, self._wanted.stop)
            said, self._held = self._held[:n_sure], self._held[n_sure:]
        entries, self._logprobs = self._logprobs, []
        piece: Piece = {"content": said} if said else {}
        return {**piece, "logprobs": {"content": entries}} if entries else piece

    def rest(self) -> str:
        """What was held back for a stop word that never came; half a character is left out."""
        return self._held


def _beginning(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` with which a stop word begins."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return n
    return 0


def _reported(core: Core, logits: Logits, token: int, n_top: int) -> dict[str, Any]:
    """A token's log-probability in OpenAI's shape, from the raw logits."""
    logprobs = log_softmax(logits)
    return {
        **_entry(core, token, logprobs),
        "top_logprobs": [_entry(core, one, logprobs) for one in likeliest(logits, n_top)],
    }


def likeliest(logits: Logits, n: int) -> list[int]:
    """The ids of the `n` largest logits, the largest first."""
    n = min(n, logits.size)
    found = np.argpartition(-logits, n - 1)[:n] if 0 < n < logits.size else np.arange(logits.size)[:n]
    return [int(token) for token in found[np.lexsort((found, -logits[found]))]]


def _entry(core: Core, token: int, logprobs: Any) -> dict[str, Any]:
    raw = core.piece(token)
    text = raw.decode("utf-8", errors="replace")
    return {"id": token, "token": text, "bytes": list(raw), "logprob": float(logprobs[token])}
