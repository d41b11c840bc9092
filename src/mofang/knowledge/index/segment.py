"""A run of chunks that never changes: their ids, documents, words and vectors, in memory or mapped from files.

A base is one or more of these; what was deleted since is a mask beside them. Vectors are searched exactly, or, where a
graph was built, by HNSW and then exactly among what it found.
"""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang.knowledge.index.postings import Mask, Postings, build, merge
from mofang.knowledge.stores.base import Row, Vector

MIN_EXPANSION = 6_000
"""Nodes that a search of the graph keeps at least (HNSW's ef). So many, since a query's vector lies apart from those of
passages: at 768 a million chunks gave real queries a recall@10 of .84, at 6,000 .97 (docs/log.md, 2026-11-25)."""
GRAPH_SHARE = 0.1
"""When fewer of the rows than this may be found, they are compared one by one: the graph would mostly find others."""

COPIED = 20_000
"""Rows whose vectors are copied at a time."""


@dataclass(frozen=True, slots=True)
class Segment:
    """n chunks, ascending by id."""

    ids: NDArray[np.int64]
    """(n,)"""
    documents: list[str]
    """Ids of the documents that occur."""
    document: NDArray[np.int32]
    """(n,) place in `documents`."""
    postings: Postings
    matrix: Vector | None
    """(n, d) vectors of length 1; None when only words are held."""
    graph: Any = None
    """usearch.index.Index whose keys are chunk ids; None: exact search."""
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)
    """The graph's searches share their scratch memory."""

    @classmethod
    def of(cls, rows: Sequence[Row], *, vectors: bool) -> "Segment":
        """In memory, from rows ascending by id."""
        documents, document = number([row.document_id for row in rows])
        return cls(
            np.array([row.id for row in rows], np.int64),
            documents,
            document,
            build([row.words for row in rows]),
            np.stack([row.vector for row in rows]) if vectors and rows else None,
        )

    @classmethod
    def joined(cls, parts: Sequence["Segment"]) -> "Segment":
        """Several in memory as one."""
        documents, document = number([part.documents[place] for part in parts for place in part.document])
        matrices = [part.matrix for part in parts if part.matrix is not None]
        return cls(
            np.concatenate([part.ids for part in parts]),
            documents,
            document,
            merge([part.postings for part in parts]),
            np.concatenate(matrices) if matrices else None,
        )

    def allowed(self, alive: Mask | None, documents: Collection[str] | None) -> Mask | None:
        """(n,) rows that may be found; None: all of them."""
        if documents is None:
            return alive
        inside = np.array([one in documents for one in self.documents], np.bool_)[self.document]
        return inside if alive is None else inside & alive

    def nearest(self, vector: Vector, k: int, allowed: Mask | None) -> tuple[NDArray[np.int64], Vector]:
        """The k chunks nearest to `vector`, and their cosines; no order among them."""
        assert self.matrix is not None
        n = len(self.ids)
        n_allowed = n if allowed is None else int(np.count_nonzero(allowed))
        rows: NDArray[np.intp] | slice
        if self.graph is not None and n_allowed >= GRAPH_SHARE * n and k < n_allowed:
            rows = self._by_graph(vector, k * n // n_allowed + k // 2, allowed)
            if len(rows) < k:  # what may be found lies far from where the graph looked
                rows = np.flatnonzero(allowed) if allowed is not None else slice(None)
        else:
            rows = slice(None) if allowed is None else np.flatnonzero(allowed)
        ids, cosines = self.ids[rows], self._cosines(rows, vector)
        if len(ids) > k:
            best = np.argpartition(cosines, len(ids) - k)[-k:]
            ids, cosines = ids[best], cosines[best]
        return ids, cosines

    def _cosines(self, rows: NDArray[np.intp] | slice, vector: Vector) -> Vector:
        assert self.matrix is not None
        if isinstance(rows, slice):
            return np.asarray(self.matrix[rows] @ vector)
        # Chosen rows are copied to be multiplied: not all at a time.
        pieces = [self.matrix[rows[at : at + COPIED]] @ vector for at in range(0, len(rows), COPIED)]
        return np.concatenate(pieces) if pieces else np.empty(0, np.float32)

    def _by_graph(self, vector: Vector, wanted: int, allowed: Mask | None) -> NDArray[np.intp]:
        with self.lock:
            self.graph.expansion_search = max(MIN_EXPANSION, wanted)
            keys = self.graph.search(vector, wanted).keys.astype(np.int64)
        rows = np.searchsorted(self.ids, np.sort(keys))
        rows = rows[rows < len(self.ids)]
        return rows if allowed is None else rows[allowed[rows]]


def number(names: Sequence[str]) -> tuple[list[str], NDArray[np.int32]]:
    """The distinct names, and each one's place among them."""
    places: dict[str, int] = {}
    places_of = np.fromiter((places.setdefault(name, len(places)) for name in names), np.int32, len(names))
    return list(places), places_of
