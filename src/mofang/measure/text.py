"""How well a model predicts a text: bits per byte, which compares across tokenizers, and agreement of two models.

bits per byte = −Σ log₂ p(token | all before it) / bytes of these tokens' text in UTF-8. The first token is predicted
from nothing and counts in neither. A text is read in windows of at most `window` tokens, each from its beginning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from mofang.measure.base import Asked
from mofang.messages import NextToken

Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """One text, read by one model."""

    ids: list[int]
    n_bytes: int
    """Of the text of ids[1:]."""
    nexts: list[NextToken]
    """What was expected before each of ids[1:]."""

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte([step.forced or 0.0 for step in self.nexts], self.n_bytes)


def bits_per_byte(logprobs: Sequence[float] | NDArray[np.float32], n_bytes: int) -> float:
    """From natural log-probabilities of a text's tokens and the bytes of its text."""
    return -float(np.sum(np.asarray(logprobs, np.float64))) / log(2) / n_bytes


def perplexity(logprobs: Sequence[float] | NDArray[np.float32]) -> float:
    """exp of the mean negative log-probability of a token; comparable only under one tokenizer."""
    return float(np.exp(-np.mean(np.asarray(logprobs, np.float64))))


async def read(asked: Asked, text: str, *, n_tokens: int, n_top: int = 1, tell: Tell | None = None) -> Reading:
    """Let a model read the first `n_tokens` tokens of `text`, each position with all before it."""
    text, ids = await whole_characters(asked, text, n_tokens)
    nexts = []
    for at in range(1, len(ids)):
        nexts.append(await asked.next_token(ids[:at], forced=ids[at], n_top=n_top))
        if tell:
            tell(at, len(ids) - 1)
    first = await _bytes_of_first(asked, text, ids)
    return Reading(ids, len(text.encode()) - first, nexts)


async def whole_characters(asked: Asked, text: str, n_tokens: int) -> tuple[str, list[int]]:
    """The longest beginning of `text` whose tokens are at most `n_tokens`, found by halving; text and ids."""
    ids = await asked.tokenize(text)
    if len(ids) <= n_tokens:
        return text, ids
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(await asked.tokenize(text[:middle])) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low], await asked.tokenize(text[:low])


async def _bytes_of_first(asked: Asked, text: str, ids: list[int]) -> int:
    """Bytes of the first token: those of the shortest beginning that begins with it, less what is not it."""
    for end in range(1, len(text) + 1):
        found = await asked.tokenize(text[:end])
        if found == ids[:1]:
            return len(text[:end].encode())
        if found[:1] == ids[:1] and len(found) > 1:
            break
    return 0  # a token that ends within a character: its bytes are counted, which moves the result by a thousandth


def top_agreement(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of positions at which both hold the same token for the likeliest."""
    return float(np.mean(np.asarray(one) == np.asarray(other)))


def divergence(reference: NDArray[np.float32], step: NextToken) -> float:
    """KL(reference ‖ model) at one position, in nats. reference: (n_vocab,) log-probabilities.

    What the model's list leaves out is compared as one lump, which can only make the result smaller (data-processing
    inequality); with the likeliest 200 tokens listed, the lump is small.
    """
    listed = [candidate for candidate in step.top if 0 <= candidate.token_id < len(reference)]
    ids = np.array([candidate.token_id for candidate in listed])
    log_q = np.array([candidate.logprob for candidate in listed], np.float64)
    log_p = reference[ids].astype(np.float64)
    p = np.exp(log_p)
    rest_p, rest_q = max(0.0, 1 - p.sum()), max(1e-12, 1 - np.exp(log_q).sum())
    rest = rest_p * (np.log(rest_p) - np.log(rest_q)) if rest_p > 1e-12 else 0.0
    return float(np.sum(p * (log_p - log_q)) + rest)
