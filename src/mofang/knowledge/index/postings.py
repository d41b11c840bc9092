"""BM25 over arrays: for each word the chunks that hold it, in order, with how often.

Scores are computed when asked, from counts and lengths, so they follow the base as it changes. Words are known by a
64-bit hash: a dictionary of a million words would take longer to load than all else (two of a million words share a
hash with a probability of 3e-8). A term's list is scanned whole only when it can bring a new chunk to the top; the lists of
common words are otherwise only asked about chunks that rarer words found (Turtle and Flood's MaxScore, in batches).
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

K1, B = 1.2, 0.75
"""As in SQLite's FTS5 and Lucene."""
SCAN = 20_000
"""A list no longer than this is scanned without asking whether it could be spared."""

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Postings:
    """The words of n chunks. Term t stands in rows[starts[t] : starts[t + 1]], ascending; counts runs along with rows."""

    hashes: NDArray[np.uint64]
    """(T,), ascending."""
    starts: NDArray[np.int64]
    """(T + 1,)"""
    rows: NDArray[np.uint32]
    counts: NDArray[np.uint8]
    """How often, at most 255."""
    lengths: NDArray[np.uint32]
    """(n,) words of each chunk."""

    def of(self, word: str) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Rows that hold the word, and how often."""
        wanted = _hash(word)
        place = int(np.searchsorted(self.hashes, wanted))
        if place == len(self.hashes) or self.hashes[place] != wanted:
            return self.rows[:0], self.counts[:0]
        span = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.rows[span], self.counts[span]


def build(texts: Sequence[str]) -> Postings:
    """Of texts whose words are parted by spaces."""
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # a new word gets the next number, without a line of Python
    tokens, lengths = array("I"), array("I")
    for text in texts:
        found = text.split()
        lengths.append(len(found))
        tokens.extend(map(numbers.__getitem__, found))
    hashes = np.fromiter((_hash(word) for word in numbers), np.uint64, len(numbers))
    order = np.argsort(hashes)
    place = np.empty(len(order), np.uint64)
    place[order] = np.arange(len(order), dtype=np.uint64)
    sizes = np.frombuffer(lengths, np.uint32) if lengths else np.empty(0, np.uint32)
    keys = place[np.frombuffer(tokens, np.uint32)] << np.uint64(32) if tokens else np.empty(0, np.uint64)
    keys |= np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    keys.sort()
    firsts = np.flatnonzero(np.diff(keys, prepend=np.uint64(2**64 - 1)))
    counts = np.diff(firsts, append=len(keys))
    keys = keys[firsts]
    starts = np.searchsorted(keys >> np.uint64(32), np.arange(len(order) + 1, dtype=np.uint64)).astype(np.int64)
    rows = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return Postings(hashes[order], starts, rows, np.minimum(counts, 255).astype(np.uint8), sizes.copy())


def merge(parts: Sequence[Postings]) -> Postings:
    """One after the other: the rows of each part follow those of the parts before it."""
    if len(parts) == 1:
        return parts[0]
    hashes = np.unique(np.concatenate([part.hashes for part in parts])) if parts else np.empty(0, np.uint64)
    places = [np.searchsorted(hashes, part.hashes) for part in parts]
    sizes = np.zeros(len(hashes), np.int64)
    for part, place in zip(parts, places, strict=True):
        sizes[place] += np.diff(part.starts)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows, counts = np.empty(starts[-1], np.uint32), np.empty(starts[-1], np.uint8)
    next_free, before = starts[:-1].copy(), 0
    for part, place in zip(parts, places, strict=True):
        each = np.diff(part.starts)
        target = np.repeat(next_free[place] - part.starts[:-1], each) + np.arange(len(part.rows))
        rows[target] = part.rows + np.uint32(before)
        counts[target] = part.counts
        next_free[place] += each
        before += len(part.lengths)
    lengths = np.concatenate([part.lengths for part in parts]) if parts else np.empty(0, np.uint32)
    return Postings(hashes, starts, rows, counts, lengths)


def damping(lengths: NDArray[np.uint32], mean: float) -> Floats:
    """(n,) What long chunks are damped by; `mean` is the mean length of all chunks of the base."""
    return (np.float32(K1 * (1 - B)) + np.float32(K1 * B / max(mean, 1e-9)) * lengths).astype(np.float32)


def top(
    postings: Postings, weights: Iterable[tuple[str, float]], damp: Floats, k: int, allowed: Mask | None
) -> tuple[NDArray[np.intp], Floats]:
    """The k best rows that hold any of the words, and their scores; no order among them.

    weights: inverse document frequency by word, all above 0. allowed: (n,) rows that may be found.
    """
    lists = sorted(((weight, *postings.of(word)) for word, weight in weights), key=lambda one: -one[0])
    bounds = [weight * (K1 + 1) for weight, *_ in lists]
    scores = np.zeros(len(postings.lengths), np.float32)
    candidates: NDArray[np.intp] | None = None
    for i, (weight, rows, counts) in enumerate(lists):
        rest = sum(bounds[i:])
        if candidates is None and i and len(rows) > SCAN:
            candidates = _enough(scores, k, rest)
        if candidates is not None:
            place = np.searchsorted(rows, candidates.astype(np.uint32))
            place[place == len(rows)] = 0
            hit = rows[place] == candidates if len(rows) else np.zeros(len(candidates), np.bool_)
            rows, counts = candidates[hit], counts[place[hit]]
        elif allowed is not None:
            kept = allowed[rows]
            rows, counts = rows[kept], counts[kept]
        often = counts.astype(np.float32)
        often *= np.float32(weight * (K1 + 1)) / (often + damp[rows])
        scores[rows] += often  # each row once, so nothing is lost
    found = np.flatnonzero(scores > 0) if candidates is None else candidates
    values = scores[found]
    if len(found) > k:
        best = np.argpartition(values, len(values) - k)[-k:]
        found, values = found[best], values[best]
    return found, values


def _enough(scores: Floats, k: int, rest: float) -> NDArray[np.intp] | None:
    """The rows that can still be among the k best when at most `rest` is added; None when a new row could be."""
    found = np.flatnonzero(scores > 0)  # of booleans: five times as fast
    if len(found) < k:
        return None
    values = scores[found]
    least = np.partition(values, len(values) - k)[len(values) - k]
    return found[values + np.float32(rest) >= least] if rest < least else None


def _hash(word: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little"))
