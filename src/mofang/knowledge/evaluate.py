"""How good a base's search and answers are, on a set of questions: by leg, fused, reranked.

Search is judged by documents: each counts at the place of its best passage. The measures are trec_eval's, over the
questions that have a relevant document; tests/knowledge compares them to pytrec_eval. The rankings of the legs come
from the very hits that a search returns (each knows its rank in either leg), so what is measured is what is served.
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mofang.knowledge.answer import says_not_found
from mofang.knowledge.base import Hit
from mofang.knowledge.evalset import Judged
from mofang.knowledge.rerank import RERANKED, read_as
from mofang.messages import Progress, Source

TIMED = 200
"""Questions that the latency is taken over, each as a plain search for SERVED passages."""
SERVED = 8

Ranking = Sequence[str]
Graded = Mapping[str, int]
Search = Callable[[str, int | None], Awaitable[Sequence[Hit]]]
"""(query, k) → hits; k None: every candidate of both legs."""
Rerank = Callable[[str, Sequence[str]], Awaitable[Sequence[float]]]
Report = Callable[[Progress], None]


# ---- measures ----


def recall(ranking: Ranking, graded: Graded, k: int) -> float:
    """The share of the relevant documents (grade above 0) among the first k."""
    relevant = {document for document, grade in graded.items() if grade > 0}
    return len(relevant & set(ranking[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Ranking, graded: Graded, k: int) -> float:
    """1 / the rank of the first relevant document among the first k; 0 when there is none."""
    return next((1 / rank for rank, one in enumerate(ranking[:k], start=1) if graded.get(one, 0) > 0), 0.0)


def ndcg(ranking: Ranking, graded: Graded, k: int) -> float:
    """Normalised discounted cumulative gain: the grade is the gain, log2(rank + 1) its discount (Järvelin and
    Kekäläinen 2002, as trec_eval computes it)."""

    def gain(grades: Sequence[int]) -> float:
        return sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(grades[:k], start=1))

    best = gain(sorted(graded.values(), reverse=True))
    return gain([graded.get(document, 0) for document in ranking]) / best if best else 0.0


MEASURES: dict[str, tuple[Callable[[Ranking, Graded, int], float], int]] = {
    "recall@1": (recall, 1),
    "recall@5": (recall, 5),
    "recall@10": (recall, 10),
    "recall@50": (recall, 50),
    "mrr@10": (reciprocal_rank, 10),
    "ndcg@10": (ndcg, 10),
}

LEGS: dict[str, Callable[[Hit], float | None]] = {
    "bm25": lambda hit: hit.bm25_rank,
    "dense": lambda hit: hit.dense_rank,
}
"""A leg → what orders its hits; None: the leg did not find it."""


def by_leg(hits: Sequence[Hit], leg: str) -> list[Hit]:
    """The hits that one leg found, in its own order."""
    ranked = [(rank, hit) for hit in hits if (rank := LEGS[leg](hit)) is not None]
    return [hit for _, hit in sorted(ranked, key=lambda pair: pair[0])]


def documents_of(hits: Sequence[Hit]) -> list[str]:
    """Document ids, each at the place of its best passage."""
    return list(dict.fromkeys(hit.document_id for hit in hits))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# ---- search ----


@dataclass
class _Rate:
    """Progress of one stage, its rate taken over all of it."""

    report: Report
    stage: str
    total: int
    began: float = field(default_factory=time.monotonic)

    def step(self, done: int, detail: str = "") -> None:
        rate = done / max(1e-9, time.monotonic() - self.began)
        self.report(Progress(self.stage, done, self.total, "questions", rate, detail))


@dataclass(frozen=True, slots=True)
class SearchScore:
    """What search came to. `legs`: leg → measure → mean over `n_judged` questions."""

    legs: dict[str, dict[str, float]]
    n_judged: int
    latency_ms: dict[str, float]
    ranks: dict[str, dict[str, int | None]]
    """Question id → leg → rank of the first relevant document; None: not among the candidates."""


async def score_search(
    questions: Sequence[Judged], search: Search, *, rerank: Rerank | None = None, report: Report
) -> SearchScore:
    """Search for every question that has a relevant document, and judge each leg's ranking."""
    judged = [one for one in questions if any(grade > 0 for grade in one.documents.values())]
    rate = _Rate(report, "search", len(judged))
    values: dict[str, dict[str, list[float]]] = {}
    ranks: dict[str, dict[str, int | None]] = {}
    seconds: list[float] = []
    if judged:
        await search(judged[0].text, SERVED)  # what the first search loads is not a search's time
    for done, question in enumerate(judged, start=1):
        if len(seconds) < TIMED:
            began = time.perf_counter()
            await search(question.text, SERVED)
            seconds.append(time.perf_counter() - began)
        ranks[question.id] = {}
        for leg, ranking in (await _rankings(question.text, search, rerank)).items():
            scores = values.setdefault(leg, {name: [] for name in MEASURES})
            for name, (measure, k) in MEASURES.items():
                scores[name].append(measure(ranking, question.documents, k))
            first = reciprocal_rank(ranking, question.documents, len(ranking))
            ranks[question.id][leg] = round(1 / first) if first else None
        rate.step(done, question.text)
    legs = {leg: {name: sum(each) / len(each) for name, each in scores.items()} for leg, scores in values.items()}
    latency = {f"p{share}": round(1000 * percentile(seconds, share / 100), 1) for share in (50, 99) if seconds}
    return SearchScore(legs, len(judged), {**latency, "n": len(seconds)}, ranks)


async def _rankings(query: str, search: Search, rerank: Rerank | None) -> dict[str, list[str]]:
    hits = await search(query, None)
    rankings = {leg: documents_of(by_leg(hits, leg)) for leg in LEGS}
    rankings["fused"] = documents_of(hits)
    if rerank is not None:
        head = list(hits[:RERANKED])
        scores = await rerank(query, [read_as(hit) for hit in head]) if head else []
        best = sorted(range(len(head)), key=lambda place: -scores[place])
        rankings["reranked"] = documents_of([*(head[place] for place in best), *hits[RERANKED:]])
    return rankings


# ---- answers ----


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model said to a question, and the numbered sources that it was given, those it cited marked."""

    text: str
    sources: Sequence[Source]
    refused: bool = False
    """The search itself refused (evidence.py)."""


def is_refusal(answered: Answered) -> bool:
    """Whether an answer says that the base does not hold it: search refused, there was nothing to rest on, or the model
    says so and cites nothing."""
    cited = any(source.cited for source in answered.sources)
    return answered.refused or not answered.sources or (not cited and says_not_found(answered.text))


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Citations are judged on the questions whose documents or spans are known, refusals on all."""

    n: int
    citation_precision: float | None
    """Of all marks, those whose source holds a gold span (its document, where the set has no spans)."""
    citation_recall: float | None
    """Of a question's gold spans (documents), those that a cited source holds; the mean over questions."""
    refusal: dict[str, float] | None
    """precision, recall, f1 of saying "not found" to what is unanswerable; None when the set has no such questions."""
    rows: list[dict[str, Any]]


async def score_answers(
    questions: Sequence[Judged], answer: Callable[[str], Awaitable[Answered]], *, report: Report
) -> AnswerScore:
    """Ask every question and judge what is cited and what is refused."""
    rate = _Rate(report, "answer", len(questions))
    right = marks = 0
    recalls: list[float] = []
    refused: list[tuple[bool, bool]] = []
    rows = []
    for done, question in enumerate(questions, start=1):
        answered = await answer(question.text)
        cited = [source for source in answered.sources if source.cited]
        gold = _gold(question)
        if gold:
            held = [{one for one in gold if _holds(source, one)} for source in cited]
            right += sum(bool(each) for each in held)
            marks += len(cited)
            recalls.append(len(set().union(*held)) / len(gold))
        refused.append((question.unanswerable, is_refusal(answered)))
        rows.append(
            {
                "id": question.id,
                "answer": answered.text,
                "refused": refused[-1][1],
                "cited": [{"document": s.title, "start": s.start, "end": s.end, "page": s.page} for s in cited],
            }
        )
        rate.step(done, question.text)
    return AnswerScore(
        n=len(rows),
        citation_precision=right / marks if marks else None,
        citation_recall=sum(recalls) / len(recalls) if recalls else None,
        refusal=f1(refused) if any(question.unanswerable for question in questions) else None,
        rows=rows,
    )


def f1(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """precision, recall and f1 of (is so, was said to be so)."""
    said = sum(guess for _, guess in pairs)
    so = sum(truth for truth, _ in pairs)
    both = sum(truth and guess for truth, guess in pairs)
    return {
        "precision": both / said if said else 0.0,
        "recall": both / so if so else 0.0,
        "f1": 2 * both / (said + so) if said + so else 0.0,
    }


def _gold(question: Judged) -> set[tuple[str, int, int]]:
    """The spans; where there are none, the documents whole."""
    if question.spans:
        return set(question.spans)
    return {(document, 0, 1 << 62) for document, grade in question.documents.items() if grade > 0}


def _holds(source: Source, gold: tuple[str, int, int]) -> bool:
    document, start, end = gold
    return source.document_id == document and source.start < end and start < source.end
