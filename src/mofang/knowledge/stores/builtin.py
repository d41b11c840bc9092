"""The built-in store: keywords and vectors in memory, and above a number of chunks in mapped files beside the base.

What was added since the files were written is a second segment in memory, what was removed a mask; both are brought
up to date from SQLite by the search that finds them behind, which costs as much as what changed. `settle` writes the
files anew when that has become much.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mofang.knowledge.index import snapshot
from mofang.knowledge.index.postings import Floats, Mask, damping, top
from mofang.knowledge.index.segment import Segment
from mofang.knowledge.stores.base import Changes, Commit, Keywords, Place, Vector
from mofang.settings import Settings

FILES_FROM = 5_000
"""Chunks from which on the index is kept in files; fewer are read from SQLite in a quarter of a second."""
GRAPH_FROM = 100_000
"""Chunks from which on vectors are searched by HNSW; fewer are compared one by one in 20 ms."""
SLACK = 0.1
"""Share of the chunks that may have changed before the files are written anew."""
MAX_SEGMENTS = 4
"""Segments in memory; one more and they are joined."""


@dataclass(frozen=True, slots=True)
class _Part:
    segment: Segment
    alive: Mask | None
    """(n,); None: nothing was removed."""

    def without(self, removed: NDArray[np.int64]) -> "_Part":
        rows = np.searchsorted(self.segment.ids, removed)
        rows = rows[rows < len(self.segment.ids)]
        rows = rows[np.isin(self.segment.ids[rows], removed)]
        if not len(rows):
            return self
        alive = np.ones(len(self.segment.ids), np.bool_) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return replace(self, alive=alive)

    @property
    def n(self) -> int:
        return len(self.segment.ids) if self.alive is None else int(np.count_nonzero(self.alive))

    @property
    def n_words(self) -> int:
        lengths = self.segment.postings.lengths
        return int((lengths if self.alive is None else lengths[self.alive]).sum(dtype=np.int64))


@dataclass(frozen=True, slots=True)
class _View:
    """One commit, whole; a search keeps the one it began with."""

    commit: Commit
    parts: tuple[_Part, ...]
    damp: tuple[Floats, ...]
    n: int
    on_disk: bool
    """The first part is a snapshot."""


class Builtin:
    """The base in `folder`. vectors: False holds only the words, for a base whose vectors another store searches."""

    filters = True

    def __init__(self, folder: Path, *, vectors: bool = True, is_ours: Callable[[Commit], bool] | None = None) -> None:
        """is_ours: whether a commit is one of the base's own, so that files written for it may be read."""
        self._folder = folder
        self._vectors = vectors
        self._view: _View | None = None
        self._lock = threading.Lock()
        if is_ours is not None and (found := snapshot.read(folder, is_ours, vectors=vectors)):
            self._view = _made(found[0], [_Part(found[1], None)], on_disk=True)

    def held(self) -> Commit | None:
        view = self._view
        return view.commit if view else None

    def sync(self, changes: Changes) -> None:
        with self._lock:
            view = self._view
            kept = [] if view is None or changes.whole else list(view.parts)
            on_disk = bool(kept) and view is not None and view.on_disk
            if changes.removed and kept:
                removed = np.sort(np.asarray(changes.removed, np.int64))
                kept = [part.without(removed) for part in kept]
            known = int(kept[-1].segment.ids[-1]) if kept and len(kept[-1].segment.ids) else -1
            rows = ([row for row in batch if row.id > known] for batch in changes.added)
            fresh = [Segment.of(batch, vectors=self._vectors) for batch in rows if batch]
            if fresh:
                kept.append(_Part(Segment.joined(fresh), None))
            self._view = _made(changes.commit, _few(kept, on_disk), on_disk=on_disk)

    def dense(self, vector: Vector, k: int, documents: Collection[str] | None) -> list[int]:
        view = self._view
        found = [
            part.segment.nearest(vector, k, part.segment.allowed(part.alive, documents))
            for part in (view.parts if view else ())
            if part.segment.matrix is not None
        ]
        if not found:
            return []
        ids, cosines = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return [int(one) for one in ids[np.argsort(-cosines, kind="stable")][:k]]

    def cosines(self, ids: Sequence[int], vector: Vector) -> dict[int, float]:
        """The exact cosine of each of these chunks that is known here: what was read for `dense` is read no second time."""
        view, wanted = self._view, np.asarray(ids, np.int64)
        found: dict[int, float] = {}
        for part in view.parts if view else ():
            rows = np.searchsorted(part.segment.ids, wanted)
            rows[rows == len(part.segment.ids)] = 0
            here = part.segment.ids[rows] == wanted if len(part.segment.ids) else np.zeros(len(wanted), np.bool_)
            if part.segment.matrix is not None:
                values = part.segment.matrix[rows[here]] @ vector
                found.update(zip(wanted[here].tolist(), values.tolist(), strict=True))
        return found

    def keywords(self, words: Sequence[str], k: int, documents: Collection[str] | None) -> Keywords:
        view = self._view
        if view is None or not view.n:
            return Keywords()
        frequencies = {word: sum(_frequency(part, word) for part in view.parts) for word in words}
        weights = [(word, idf(view.n, n)) for word, n in frequencies.items() if n]
        ids: list[NDArray[np.int64]] = []
        scores: list[Floats] = []
        for part, damp in zip(view.parts, view.damp, strict=True):
            rows, values = top(part.segment.postings, weights, damp, k, part.segment.allowed(part.alive, documents))
            ids.append(part.segment.ids[rows])
            scores.append(values)
        all_ids, all_scores = np.concatenate(ids), np.concatenate(scores)
        order = np.lexsort((all_ids, -all_scores))[:k]
        return Keywords([int(one) for one in all_ids[order]], frequencies, view.n)

    def settle(
        self,
        changes: Changes,
        dimensions: int | None,
        report: Callable[[int, int], None],
        *,
        anew: bool = False,
        all_read: Callable[[], None] = lambda: None,
    ) -> bool:
        """Write the files from `changes` (whole), or remove them from a base that is small now. Returns whether there are
        any. anew: without what the current ones could spare. all_read: called when `changes` are not needed any more."""
        n = changes.n_added
        if n < FILES_FROM or dimensions is None:
            snapshot.drop(self._folder)
            return False
        snapshot.write(
            self._folder,
            changes.commit,
            changes.added,
            n,
            dimensions,
            graph_from=GRAPH_FROM,
            anew=anew,
            report=report,
            all_read=all_read,
        )
        return True

    def sweep(self) -> None:
        """Remove what killed writers left beside the files."""
        snapshot.sweep(self._folder)

    def is_settled(self, n: int) -> bool:
        """Whether the files of a base with n chunks are there and near enough to what it holds."""
        if n < FILES_FROM:
            return not snapshot.exists(self._folder)
        view = self._view
        if view is None or not view.on_disk or not snapshot.exists(self._folder):
            return False
        first = view.parts[0]
        if n >= GRAPH_FROM and first.segment.graph is None and self._vectors:
            return False
        changed = len(first.segment.ids) - first.n + view.n - first.n
        return changed <= SLACK * n

    @property
    def memory_bytes(self) -> int:
        """Of the segments that are not mapped."""
        view = self._view
        parts = view.parts[1 if view.on_disk else 0 :] if view else ()
        return sum(
            part.segment.postings.rows.nbytes * 2
            + (part.segment.matrix.nbytes if part.segment.matrix is not None else 0)
            for part in parts
        )

    def drop(self) -> None:
        with self._lock:
            self._view = None
            snapshot.drop(self._folder)

    def close(self) -> None:
        """Memory goes with the last search that uses it."""


def open_store(place: Place, settings: Settings) -> Builtin:
    """For the table of stores; `knowledge.legs` opens it with the files' commits checked."""
    return Builtin(place.folder)


def idf(n: int, found: int) -> float:
    """Inverse document frequency, above 0 for any word (Lucene's form)."""
    return float(np.log1p((n - found + 0.5) / (found + 0.5)))


def _frequency(part: _Part, word: str) -> int:
    rows, _ = part.segment.postings.of(word)
    return len(rows) if part.alive is None else int(np.count_nonzero(part.alive[rows]))


def _few(parts: list[_Part], on_disk: bool) -> list[_Part]:
    first = 1 if on_disk else 0
    if len(parts) - first <= MAX_SEGMENTS:
        return parts
    late = parts[first:]
    joined = Segment.joined([part.segment for part in late])
    masks = [np.ones(len(part.segment.ids), np.bool_) if part.alive is None else part.alive for part in late]
    alive = np.concatenate(masks)
    return [*parts[:first], _Part(joined, None if alive.all() else alive)]


def _made(commit: Commit, parts: list[_Part], *, on_disk: bool) -> _View:
    n = sum(part.n for part in parts)
    mean = sum(part.n_words for part in parts) / max(1, n)
    damp = tuple(damping(part.segment.postings.lengths, mean) for part in parts)
    return _View(commit, tuple(parts), damp, n, on_disk)
