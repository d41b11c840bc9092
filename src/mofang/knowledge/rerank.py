"""The head of the fused list put in the order of a cross-encoder, which reads question and passage together.

It costs a model's pass for each of them (a second or more on a CPU), so it is used where the user names a reranker. One
that cannot be used leaves the fused order, and that is said: a search does not fail for what only improves it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from mofang.engine.base import Engine, Reranker
from mofang.errors import MofangError
from mofang.knowledge.base import Hit
from mofang.knowledge.passage import passage
from mofang.strings import say
from mofang.text.fold import simplified

RERANKED = 50
"""Passages of the fused list that a reranker reads; the others keep their places behind them."""

OpenReranker = Callable[[str], AbstractAsyncContextManager[Engine]]


def read_as(hit: Hit) -> str:
    """What a reranker reads of a hit: the same that is embedded."""
    return passage(hit.headings, hit.text, hit.lead)


async def reranked(query: str, hits: Sequence[Hit], model: str, opened: OpenReranker, notices: list[str]) -> list[Hit]:
    """The hits, the first RERANKED of them by the scores that `model` gives them; equal ones keep their order."""
    head, rest = hits[:RERANKED], hits[RERANKED:]
    try:
        async with opened(model) as engine:
            assert isinstance(engine, Reranker)
            scores = await engine.rerank(simplified(query), [read_as(hit) for hit in head])
    except MofangError as error:
        notices.append(say("knowledge.not_reranked", model=model, why=error.message()))
        return list(hits)
    scored = [replace(hit, rerank_score=score) for hit, score in zip(head, scores, strict=True)]
    return [*sorted(scored, key=lambda hit: -(hit.rerank_score or 0.0)), *rest]
