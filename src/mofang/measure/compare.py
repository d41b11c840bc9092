"""Two models' expectations of the same text, over their whole vocabularies: numpy, no model.

V: vocabulary; a row holds the natural log-probabilities of what may come at one place. Errors are standard errors of the
mean over places, as llama-perplexity states them: places of one text are not quite independent, so they are lower bounds.
Source: llama.cpp tools/perplexity (kl_divergence).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang.measure.text import bits_per_byte

Rows = NDArray[np.float32]
"""(n, V)."""
TOP = 5


@dataclass
class Forced:
    """What one model expected of the tokens that came."""

    logprobs: list[float] = field(default_factory=list)
    n_bytes: int = 0
    """Of these tokens' text in UTF-8."""

    def __add__(self, other: "Forced") -> "Forced":
        return Forced(self.logprobs + other.logprobs, self.n_bytes + other.n_bytes)

    def figures(self) -> dict[str, Any]:
        """bits_per_byte; perplexity of a token with its standard error (comparable only under one tokenizer)."""
        values = -np.asarray(self.logprobs, np.float64)
        perplexity = exp(min(float(values.mean()), 700.0))
        return {
            "bits_per_byte": round(bits_per_byte(self.logprobs, self.n_bytes), 4),
            "perplexity": round(perplexity, 4),
            "perplexity_error": round(perplexity * _error(values), 4),
        }


@dataclass
class Agreement:
    """How far a model's expectations are from a reference's, place by place."""

    kl: list[float] = field(default_factory=list)
    """KL(reference ‖ model) in nats."""
    top: list[float] = field(default_factory=list)
    """1 where both hold the same token for the likeliest."""
    top5: list[float] = field(default_factory=list)
    """Share of the reference's five likeliest tokens that are among the model's five likeliest."""

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(self.kl + other.kl, self.top + other.top, self.top5 + other.top5)

    def add(self, rows: Rows, reference: Rows) -> None:
        """The same places' rows of both. Columns beyond the narrower vocabulary are padding, and left out."""
        n_vocab = min(rows.shape[1], reference.shape[1])
        ours, theirs = rows[:, :n_vocab], reference[:, :n_vocab]
        # Where the reference rules a token out it adds nothing, and 0 · (-inf - q) would be no number.
        inner = np.subtract(theirs, ours, out=np.zeros_like(theirs), where=~np.isneginf(theirs))
        inner *= np.exp(theirs)
        self.kl += np.maximum(inner.sum(-1, dtype=np.float64), 0).tolist()  # below zero by rounding alone
        best, wanted = top(ours, TOP), top(theirs, TOP)
        self.top += (best[:, 0] == wanted[:, 0]).astype(float).tolist()
        self.top5 += (wanted[:, :, None] == best[:, None, :]).any(-1).mean(-1).tolist()

    def figures(self) -> dict[str, Any]:
        """mean_kl, kl_error, median_kl, kl_p99, kl_max (nats); same_top, same_top_error, same_top5 (0 to 1)."""
        kl, same = np.asarray(self.kl), np.asarray(self.top)
        return {
            "mean_kl": round(float(kl.mean()), 6),
            "kl_error": round(_error(kl), 6),
            "median_kl": round(float(np.median(kl)), 6),
            "kl_p99": round(float(np.quantile(kl, 0.99)), 5),
            "kl_max": round(float(kl.max()), 4),
            "same_top": round(float(same.mean()), 4),
            "same_top_error": round(_error(same), 4),
            "same_top5": round(float(np.mean(self.top5)), 4),
        }


def top(rows: Rows, n: int) -> NDArray[np.int64]:
    """(rows, n) ids of the likeliest tokens, the likeliest first, the lower id first among equals. n passes over the
    rows: with 150,000 columns much faster than sorting."""
    left = rows.copy()
    found = np.empty((len(rows), min(n, rows.shape[1])), np.int64)
    at = np.arange(len(rows))
    for place in range(found.shape[1]):
        found[:, place] = left.argmax(-1)
        left[at, found[:, place]] = -np.inf
    return found


def side_by_side(ours: Iterator[Rows], theirs: Iterator[Rows]) -> Iterator[tuple[Rows, Rows]]:
    """Blocks of rows of two readers as blocks of the same length, in order, none held longer than it must be."""
    one, other = next(ours, None), next(theirs, None)
    while one is not None and other is not None:
        n = min(len(one), len(other))
        yield one[:n], other[:n]
        one = one[n:] if len(one) > n else next(ours, None)
        other = other[n:] if len(other) > n else next(theirs, None)


def windows(ids: Sequence[int], begin: Sequence[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """(what is read, what is expected after each of its last places) for each window of at most `length` tokens.

    `begin` stands before every window. Without it, the first token of a window is expected by nobody.
    """
    step = length - len(begin)
    for at in range(0, len(ids), step):
        whole = [*begin, *ids[at : at + step]]
        first = max(len(begin), 1)
        if len(whole) > first:
            yield whole[:-1], whole[first:]


def last_rows(blocks: Iterator[Rows], n_read: int, n_wanted: int) -> Iterator[Rows]:
    """Of a window's rows, those of the last `n_wanted` places."""
    skipped = n_read - n_wanted
    for block in blocks:
        if skipped < len(block):
            yield block[skipped:]
        skipped = max(0, skipped - len(block))


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / sqrt(len(values))) if len(values) > 1 else 0.0
