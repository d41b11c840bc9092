"""Search: keywords by BM25 and meaning by vectors, each over many candidates, fused by reciprocal rank.

A leg without evidence must not vote. A passage's keyword vote is weighted by how much of the query it holds (coverage:
the share of the query's information, by inverse document frequency): a query in English finds stray Latin words in
Chinese text, and those words say little. Chosen on a retrieval set of Chinese help pages; see docs/log.md.

Both legs and the texts are read in one transaction, and the vectors in memory are keyed by the commit that they were
read from, so a passage that is gone cannot come back.
"""

import json
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mofang.knowledge.base import Hit
from mofang.knowledge.passage import short_lead
from mofang.knowledge.store import Store, block_at, span
from mofang.text.words import query_words

RRF_K = 60
"""Of Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion" (SIGIR 2009)."""
MIN_CANDIDATES = 100
"""Candidates a leg, however few results are wanted: the head of the list must not depend on k."""
FULL_COVERAGE = 0.6
"""A passage with this share of the query's information votes with full weight; below, with its third power."""
MAX_QUERY_WORDS = 64

_BM25_K1, _BM25_B = 1.2, 0.75

Vector = NDArray[np.float32]
Key = tuple[int, int]
"""A passage among several bases: the base's place in the list, the chunk's id."""


@dataclass(frozen=True, slots=True)
class _Vectors:
    version: int
    ids: NDArray[np.int64]
    matrix: Vector


class VectorCache:
    """The vectors of the bases searched last, in memory; exact search needs no index file that could be wrong."""

    def __init__(self, max_bytes: int = 2_000_000_000) -> None:
        self.max_bytes = max_bytes
        self._held: dict[Path, _Vectors] = {}
        self._lock = threading.Lock()

    def get(self, path: Path, connection: sqlite3.Connection) -> _Vectors:
        """The vectors as of the transaction that `connection` is in."""
        version = connection.execute("SELECT version FROM base").fetchone()[0]
        with self._lock:
            held = self._held.pop(path, None)
            if held is None or held.version != version:
                held = _load(connection, version)
            self._held[path] = held  # at the end: used last
            while len(self._held) > 1 and sum(one.matrix.nbytes for one in self._held.values()) > self.max_bytes:
                self._held.pop(next(iter(self._held)))
            return held

    def forget(self, path: Path) -> None:
        with self._lock:
            self._held.pop(path, None)


def _load(connection: sqlite3.Connection, version: int) -> _Vectors:
    query = "SELECT c.id, v.vector FROM chunks c JOIN vectors v ON v.digest = c.digest ORDER BY c.id"
    rows = connection.execute(query).fetchall()
    ids = np.fromiter((row[0] for row in rows), dtype=np.int64, count=len(rows))
    matrix = np.frombuffer(b"".join(row[1] for row in rows), dtype="<f4").reshape(len(rows), -1 if rows else 0)
    return _Vectors(version, ids, matrix.astype(np.float32, copy=False))


@dataclass
class _Legs:
    """What each leg found: passages best first, and for keywords the share of the query that each one holds."""

    keyword: list[Key] = field(default_factory=list)
    coverage: dict[Key, float] = field(default_factory=dict)
    dense: list[Key] = field(default_factory=list)


def search(
    stores: Sequence[Store], query: str, vectors: Mapping[str, Vector], *, k: int | None, cache: VectorCache
) -> list[Hit]:
    """The k best passages of all bases, best first; None: all that either leg found, for who compares the legs.

    `vectors`: the query's vector by embedding model; a base whose model is not among them is searched by keywords only.
    """
    depth = max(MIN_CANDIDATES, 4 * (k or 0))
    with ExitStack() as views:
        connections = [views.enter_context(store.read()) for store in stores]
        legs = _Legs()
        _search_keywords(legs, connections, query_words(query)[:MAX_QUERY_WORDS], depth)
        cosines = _search_vectors(legs, stores, connections, vectors, cache, depth)
        best = fuse(legs.keyword, legs.coverage, legs.dense)[:k]
        keyword_rank = {key: rank for rank, key in enumerate(legs.keyword, start=1)}
        dense_rank = {key: rank for rank, key in enumerate(legs.dense, start=1)}
        return [
            _hit(
                stores[key[0]],
                connections[key[0]],
                key[1],
                score,
                keyword_rank.get(key),
                dense_rank.get(key),
                cosines(key),
            )
            for key, score in best
        ]


def fuse(keyword: Sequence[Key], coverage: Mapping[Key, float], dense: Sequence[Key]) -> list[tuple[Key, float]]:
    """Reciprocal rank fusion, the keyword votes weighted by evidence. Best first; equal scores keep the dense order."""
    scores: dict[Key, float] = {}
    for rank, key in enumerate(dense, start=1):
        scores[key] = 1 / (RRF_K + rank)
    for rank, key in enumerate(keyword, start=1):
        weight = min(1.0, coverage[key] / FULL_COVERAGE) ** 3
        scores[key] = scores.get(key, 0.0) + weight / (RRF_K + rank)
    return sorted(scores.items(), key=lambda item: -item[1])


# ---- keywords ----


def _search_keywords(legs: _Legs, connections: Sequence[sqlite3.Connection], words: Sequence[str], depth: int) -> None:
    if not words:
        return
    match = " OR ".join(f'"{word}"' for word in words)
    held: dict[Key, Counter[str]] = {}
    for i, connection in enumerate(connections):
        rows = connection.execute(
            "SELECT rowid, title || ' ' || body FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?", (match, depth)
        )
        held.update({(i, row[0]): Counter(row[1].split(" ")) for row in rows})
    weights = _weights(connections, words)
    total = sum(weights.values())
    legs.coverage = {key: sum(weights[word] for word in words if word in found) / total for key, found in held.items()}
    legs.keyword = list(held)
    if len(connections) > 1:
        # Each base ranked by its own statistics; among bases only shared ones compare.
        scores = _bm25(held, weights)
        legs.keyword = sorted(held, key=lambda key: -scores[key])[:depth]


def _weights(connections: Sequence[sqlite3.Connection], words: Sequence[str]) -> dict[str, float]:
    """Inverse document frequency of each word over all bases; a word that occurs nowhere weighs most."""
    n = sum(connection.execute("SELECT count(*) FROM chunks").fetchone()[0] for connection in connections)
    weights = {}
    for word in words:
        rows = (c.execute("SELECT doc FROM vocabulary WHERE term = ?", (word,)).fetchone() for c in connections)
        found = sum(row[0] for row in rows if row is not None)
        weights[word] = math.log(1 + (n - found + 0.5) / (found + 0.5))
    return weights


def _bm25(held: Mapping[Key, Counter[str]], weights: Mapping[str, float]) -> dict[Key, float]:
    lengths = {key: sum(found.values()) for key, found in held.items()}
    mean = sum(lengths.values()) / max(1, len(lengths))
    scores = {}
    for key, found in held.items():
        damp = _BM25_K1 * (1 - _BM25_B + _BM25_B * lengths[key] / mean)
        scores[key] = sum(
            weight * found[word] * (_BM25_K1 + 1) / (found[word] + damp)
            for word, weight in weights.items()
            if word in found
        )
    return scores


# ---- vectors ----


class _Cosines:
    """The cosine of any passage with the query, looked up by its key."""

    def __init__(self) -> None:
        self._by_base: dict[int, tuple[NDArray[np.int64], Vector]] = {}

    def put(self, base: int, ids: NDArray[np.int64], cosines: Vector) -> None:
        self._by_base[base] = (ids, cosines)

    def __call__(self, key: Key) -> float | None:
        if key[0] not in self._by_base:
            return None
        ids, cosines = self._by_base[key[0]]
        place = int(np.searchsorted(ids, key[1]))
        return float(cosines[place]) if place < len(ids) and ids[place] == key[1] else None


def _search_vectors(
    legs: _Legs,
    stores: Sequence[Store],
    connections: Sequence[sqlite3.Connection],
    vectors: Mapping[str, Vector],
    cache: VectorCache,
    depth: int,
) -> _Cosines:
    cosines = _Cosines()
    by_model: dict[str, list[tuple[float, Key]]] = {}
    for i, (store, connection) in enumerate(zip(stores, connections, strict=True)):
        model = connection.execute("SELECT embedding_model FROM base").fetchone()[0]
        held = cache.get(store.path, connection)
        if model not in vectors or not len(held.ids):
            continue
        values = held.matrix @ vectors[model]
        cosines.put(i, held.ids, values)
        top = np.argpartition(-values, min(depth, len(values)) - 1)[:depth]
        by_model.setdefault(model, []).extend((float(values[j]), (i, int(held.ids[j]))) for j in top)
    ranked = [[key for _, key in sorted(found, key=lambda item: -item[0])[:depth]] for found in by_model.values()]
    legs.dense = _interleave(ranked)[:depth]
    return cosines


def _interleave(lists: Sequence[Sequence[Key]]) -> list[Key]:
    """Cosines of different models do not compare: their passages take turns."""
    longest = max((len(one) for one in lists), default=0)
    return [one[i] for i in range(longest) for one in lists if i < len(one)]


# ---- results ----


def passage_hit(store: Store, connection: sqlite3.Connection, chunk_id: int) -> Hit:
    """A passage that nobody searched for."""
    return _hit(store, connection, chunk_id, 0.0, None, None, None)


def _hit(
    store: Store,
    connection: sqlite3.Connection,
    chunk_id: int,
    score: float,
    bm25_rank: int | None,
    dense_rank: int | None,
    cosine: float | None,
) -> Hit:
    row = connection.execute(
        """
        SELECT c.*, v.document_id, d.name
        FROM chunks c JOIN versions v ON v.id = c.version_id JOIN documents d ON d.id = v.document_id WHERE c.id = ?
        """,
        (chunk_id,),
    ).fetchone()
    block = block_at(connection, row["version_id"], row["start"], row["end"])
    lead = ""
    if row["lead"]:
        first, last = json.loads(row["lead"])
        lead = short_lead(span(connection, row["version_id"], first, last))
    return Hit(
        knowledge=store.folder.name,
        document_id=row["document_id"],
        title=row["name"],
        text=span(connection, row["version_id"], row["start"], row["end"]),
        start=row["start"],
        end=row["end"],
        page=block.page if block else None,
        headings=tuple(json.loads(row["headings"])),
        score=score,
        bm25_rank=bm25_rank,
        dense_rank=dense_rank,
        cosine=cosine,
        box=block.box if block else None,
        place=block.place if block else None,
        lead=lead,
    )
