"""Search: keywords by BM25 and meaning by vectors, each over many candidates, fused by reciprocal rank.

A leg without evidence must not vote. A passage's keyword vote is weighted by how much of the query it holds (coverage:
the share of the query's information, by inverse document frequency): a query in English finds stray Latin words in
Chinese text, and those words say little. Chosen on a retrieval set of Chinese help pages; see docs/log.md.

The legs find ids (knowledge/legs.py); whether a passage is there, its words, its exact cosine and its text are read
from SQLite, all in one transaction, so that a passage that is gone cannot come back from any index.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from mofang.knowledge.base import Hit
from mofang.knowledge.index.postings import K1, B
from mofang.knowledge.legs import Legs
from mofang.knowledge.passage import short_lead
from mofang.knowledge.store import Store, Vector, block_at, span
from mofang.knowledge.stores.builtin import idf
from mofang.knowledge.within import Filter
from mofang.text.words import query_words

RRF_K = 60
"""Of Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion" (SIGIR 2009)."""
CANDIDATES = 100
"""Of each leg, however few results are wanted: the head of the list must not depend on k."""
FULL_COVERAGE = 0.6
"""A passage with this share of the query's information votes with full weight; below, with its third power."""
MAX_QUERY_WORDS = 64

Key = tuple[int, int]
"""A passage among several bases: the base's place in the list, the chunk's id."""


@dataclass(frozen=True, slots=True)
class _Base:
    """One base of a search, in its transaction."""

    place: int
    store: Store
    connection: sqlite3.Connection
    documents: frozenset[str] | None

    def model(self) -> str:
        name: str = self.connection.execute("SELECT embedding_model FROM base").fetchone()[0]
        return name


@dataclass
class _Found:
    """What each leg found: passages best first, and for keywords the share of the query that each one holds."""

    keyword: list[Key] = field(default_factory=list)
    coverage: dict[Key, float] = field(default_factory=dict)
    dense: list[Key] = field(default_factory=list)
    cosines: dict[Key, float] = field(default_factory=dict)


def search(
    stores: Sequence[Store],
    query: str,
    vectors: Mapping[str, Vector],
    *,
    k: int | None,
    legs: Legs,
    within: Filter | None = None,
    notices: list[str] | None = None,
) -> list[Hit]:
    """The k best passages of all bases, best first; None: all that either leg found, for who compares the legs.

    vectors: the query's vector by embedding model; a base whose model is not among them is searched by keywords only.
    within: limits each leg. notices: gets what a person should know, such as that a store did not answer.
    """
    depth, notices = max(CANDIDATES, k or 0), [] if notices is None else notices
    with ExitStack() as views:
        connections = [views.enter_context(store.read()) for store in stores]
        documents = [within.resolve(connection) if within else None for connection in connections]
        bases = [
            _Base(i, *each) for i, each in enumerate(zip(stores, connections, documents, strict=True))
            if each[2] is None or each[2]
        ]  # fmt: skip
        found = _Found()
        _search_keywords(found, bases, query_words(query)[:MAX_QUERY_WORDS], depth, legs, notices)
        _search_vectors(found, bases, vectors, depth, legs, notices)
        best = fuse(found.keyword, found.coverage, found.dense)[:k]
        _add_cosines(found, bases, vectors, [key for key, _ in best], legs)
        keyword_rank = {key: rank for rank, key in enumerate(found.keyword, start=1)}
        dense_rank = {key: rank for rank, key in enumerate(found.dense, start=1)}
        return [
            _hit(
                stores[key[0]],
                connections[key[0]],
                key[1],
                score,
                keyword_rank.get(key),
                dense_rank.get(key),
                found.cosines.get(key),
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


def _search_keywords(
    found: _Found, bases: Sequence[_Base], words: Sequence[str], depth: int, legs: Legs, notices: list[str]
) -> None:
    if not words:
        return
    held: dict[Key, Counter[str]] = {}
    n, frequencies = 0, dict.fromkeys(words, 0)
    for base in bases:
        leg = legs.keywords(base.store, base.connection, words, depth, base.documents, notices)
        texts = _words(base.connection, leg.ids)  # what is not there any more has none
        held.update({(base.place, one): Counter(texts[one].split(" ")) for one in leg.ids if one in texts})
        n += leg.n
        for word, number in leg.frequencies.items():
            frequencies[word] += number
    # Of the query's information; a word that occurs nowhere weighs most.
    weights = {word: idf(n, number) for word, number in frequencies.items()}
    total = sum(weights.values())
    found.coverage = {key: sum(weights[word] for word in words if word in has) / total for key, has in held.items()}
    found.keyword = list(held)
    if len(bases) > 1:
        # Each base ranked by its own statistics; among bases only shared ones compare.
        scores = _bm25(held, weights)
        found.keyword = sorted(held, key=lambda key: -scores[key])[:depth]


def _words(connection: sqlite3.Connection, ids: Sequence[int]) -> dict[int, str]:
    query = "SELECT chunk_id, words FROM words WHERE chunk_id IN (SELECT value FROM json_each(?))"
    return {row[0]: row[1] for row in connection.execute(query, (json.dumps(ids),))}


def _bm25(held: Mapping[Key, Counter[str]], weights: Mapping[str, float]) -> dict[Key, float]:
    lengths = {key: sum(found.values()) for key, found in held.items()}
    mean = sum(lengths.values()) / max(1, len(lengths))
    scores = {}
    for key, found in held.items():
        damp = K1 * (1 - B + B * lengths[key] / mean)
        scores[key] = sum(
            weight * found[word] * (K1 + 1) / (found[word] + damp) for word, weight in weights.items() if word in found
        )
    return scores


# ---- vectors ----


def _search_vectors(
    found: _Found,
    bases: Sequence[_Base],
    vectors: Mapping[str, Vector],
    depth: int,
    legs: Legs,
    notices: list[str],
) -> None:
    by_model: dict[str, list[Key]] = {}
    for base in bases:
        model = base.model()
        if model not in vectors:
            continue
        ids = legs.dense(base.store, base.connection, vectors[model], depth, base.documents, notices)
        _add_cosines(found, [base], vectors, [(base.place, one) for one in ids], legs)
        by_model.setdefault(model, []).extend(key for one in ids if (key := (base.place, one)) in found.cosines)
    ranked = [sorted(keys, key=lambda key: -found.cosines[key])[:depth] for keys in by_model.values()]
    found.dense = _interleave(ranked)[:depth]


def _add_cosines(
    found: _Found, bases: Sequence[_Base], vectors: Mapping[str, Vector], keys: Sequence[Key], legs: Legs
) -> None:
    """The exact cosine of each of these passages that is there."""
    for base in bases:
        wanted = [one for place, one in keys if place == base.place and (place, one) not in found.cosines]
        model = base.model() if wanted else ""
        if model in vectors:
            cosines = legs.cosines(base.store, base.connection, wanted, vectors[model])
            found.cosines.update({(base.place, one): cosine for one, cosine in cosines.items()})


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
