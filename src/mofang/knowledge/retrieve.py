"""Search: keywords by BM25 and meaning by vectors, each over many candidates, fused by their scores.

Both legs' scores are brought to one measure for each query. A passage's nearness is 1 for the nearest and 0 for the
hundredth: how far apart these two are is what this embedder's differences mean for this query. A keyword score is a
share of the query's information. Scores say more than ranks (Bruch, Gai and Ingber, "An Analysis of Fusion
Functions for Hybrid Retrieval", 2023): here .74 against .73 in MRR@10.

A leg without evidence must not vote: a keyword score counts less, the less of the query the passage holds (coverage: the
share of the query's information, by inverse document frequency). A query in English finds stray Latin words in Chinese
text, and those say little. What all queries of a language have in common is no evidence either (knowledge/centre.py).
Chosen on the dev half of a retrieval set of Chinese help pages (bench/retrieval.py; docs/log.md, 2026-11-25).

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

CANDIDATES = 100
"""Of each leg, however few results are wanted: the head of the list must not depend on k."""
KEYWORDS = 0.3
"""What a keyword score of 1 adds, where the nearest passage has 1 and the hundredth 0. On the dev half .3 to .5 are
equal within .002."""
FULL_COVERAGE = 0.5
"""A passage with this share of the query's information has its whole keyword score; below, its third power's part."""
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


@dataclass(frozen=True, slots=True)
class Asked:
    """A query for the vectors of one embedder; both (d,), of length 1."""

    vector: Vector
    direction: Vector
    """Where its passages are sought; see knowledge/centre.py."""


@dataclass
class _Found:
    """What the legs found."""

    keyword: list[Key] = field(default_factory=list)
    """Best first."""
    evidence: dict[Key, float] = field(default_factory=dict)
    """Of every passage that holds a word of the query: its BM25 score as a share of the query's information (about 1 where
    all words are there), times its coverage's weight."""
    coverage: dict[Key, float] = field(default_factory=dict)
    """Of the same passages: the share of the query's information that they hold."""
    dense: list[Key] = field(default_factory=list)
    """Nearest first."""
    nearness: list[dict[Key, float]] = field(default_factory=list)
    """By embedder, since values of different ones do not compare: every candidate's product with the direction."""


def search(
    stores: Sequence[Store],
    query: str,
    asked: Mapping[str, Asked],
    *,
    k: int | None,
    legs: Legs,
    within: Filter | None = None,
    notices: list[str] | None = None,
) -> list[Hit]:
    """The k best passages of all bases, best first; None: all that either leg found, for who compares the legs.

    asked: the query by embedding model; a base whose model is not among them is searched by keywords only.
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
        _search_vectors(found, bases, asked, depth, legs, notices)
        best = fuse(found.evidence, found.nearness)[:k]
        cosines = _products(bases, {model: one.vector for model, one in asked.items()}, [key for key, _ in best], legs)
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
                cosines.get(key),
                found.coverage.get(key, 0.0),
            )
            for key, score in best
        ]


def fuse(evidence: Mapping[Key, float], nearness: Sequence[Mapping[Key, float]]) -> list[tuple[Key, float]]:
    """Candidates with their scores, best first; equal scores keep the order of nearness."""
    scores: dict[Key, float] = {}
    for products in nearness:
        ranked = sorted(products.items(), key=lambda item: -item[1])
        best, last = ranked[0][1], ranked[min(CANDIDATES, len(ranked)) - 1][1]
        spread = best - last
        scores.update({key: (product - last) / spread if spread > 1e-6 else 1.0 for key, product in ranked})
    for key, weight in evidence.items():
        scores[key] = scores.get(key, 0.0) + KEYWORDS * weight
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
    scores = _bm25(held, weights)
    for key, has in held.items():
        found.coverage[key] = sum(weights[word] for word in words if word in has) / total
        found.evidence[key] = min(1.0, found.coverage[key] / FULL_COVERAGE) ** 3 * scores[key] / total
    # A base's own order stands; among several, each ranked by its own statistics, only shared ones compare.
    found.keyword = list(held) if len(bases) == 1 else sorted(held, key=lambda key: -scores[key])[:depth]


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
    asked: Mapping[str, Asked],
    depth: int,
    legs: Legs,
    notices: list[str],
) -> None:
    by_model: dict[str, list[Key]] = {}
    for base in bases:
        if (model := base.model()) in asked:
            ids = legs.dense(base.store, base.connection, asked[model].direction, depth, base.documents, notices)
            by_model.setdefault(model, []).extend((base.place, one) for one in ids)
    directions = {model: one.direction for model, one in asked.items()}
    products = _products(bases, directions, [key for keys in by_model.values() for key in keys] + found.keyword, legs)
    ranked = []
    for model, keys in by_model.items():
        there = sorted((key for key in keys if key in products), key=lambda key: -products[key])
        ranked.append(there[:depth])
        places = {base.place for base in bases if base.model() == model}
        both = dict.fromkeys([*ranked[-1], *(key for key in found.keyword if key[0] in places)])
        found.nearness.append({key: products[key] for key in both if key in products})
    found.nearness = [one for one in found.nearness if one]
    found.dense = _interleave(ranked)[:depth]


def _products(
    bases: Sequence[_Base], vectors: Mapping[str, Vector], keys: Sequence[Key], legs: Legs
) -> dict[Key, float]:
    """The exact product of each of these passages that is there with its embedder's vector of `vectors`."""
    found: dict[Key, float] = {}
    for base in bases:
        wanted = list(dict.fromkeys(one for place, one in keys if place == base.place))
        model = base.model() if wanted else ""
        if model in vectors:
            products = legs.cosines(base.store, base.connection, wanted, vectors[model])
            found.update({(base.place, one): product for one, product in products.items()})
    return found


def _interleave(lists: Sequence[Sequence[Key]]) -> list[Key]:
    """Cosines of different models do not compare: their passages take turns."""
    longest = max((len(one) for one in lists), default=0)
    return [one[i] for i in range(longest) for one in lists if i < len(one)]


# ---- results ----


def passage_hit(store: Store, connection: sqlite3.Connection, chunk_id: int) -> Hit:
    """A passage that nobody searched for."""
    return _hit(store, connection, chunk_id, 0.0)


def _hit(
    store: Store,
    connection: sqlite3.Connection,
    chunk_id: int,
    score: float,
    bm25_rank: int | None = None,
    dense_rank: int | None = None,
    cosine: float | None = None,
    coverage: float = 0.0,
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
        coverage=coverage,
        box=block.box if block else None,
        place=block.place if block else None,
        lead=lead,
    )
