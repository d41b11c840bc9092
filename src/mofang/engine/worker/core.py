"""What a library must offer to answer through a worker: ids in, logits out. numpy only; runs in the child."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CoreFacts:
    """What a loaded model says of itself."""

    n_ctx: int
    """Tokens of one conversation, prompt and answer together."""
    n_slots: int
    batch: int
    """Tokens of a prompt that are computed between two looks at whether somebody still wants the answer."""
    end_ids: frozenset[int]
    """Tokens that end an answer."""
    n_vocab: int
    """Ids below it are tokens."""
    template: str | None
    bos: str
    eos: str
    provider: str
    """What computes, for people: "cpu float32"."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sampling that the model's publisher states, over worker/sample.py's."""


class Detokenizer(Protocol):
    """Text of one answer's tokens as they come; only whole characters."""

    def push(self, token: int) -> str: ...


class Core(Protocol):
    """One model. Only one thread calls at a time, but for `encode`, `piece` and `detokenizer`."""

    facts: CoreFacts

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text; the names of special tokens in it count as these. `special`: as a prompt is read, BOS before
        it where this model wants one; else nothing is added."""
        ...

    def piece(self, token: int) -> bytes:
        """The text of one token alone, special tokens by their names; may be half a character."""
        ...

    def detokenizer(self) -> Detokenizer: ...

    def keep(self, slot: int, n_tokens: int) -> int:
        """Shorten the slot's cache to its first `n_tokens`; returns how many it could keep (0: it was emptied)."""
        ...

    def feed(self, slot: int, tokens: Sequence[int]) -> Logits:
        """Compute tokens after those in the slot's cache: (n_vocab,) raw logits of what follows the last of them."""
        ...


class Bytes:
    """A Detokenizer for libraries that know each token's bytes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._core.piece(token))
