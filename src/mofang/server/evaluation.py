"""An evaluation of a base as a job: knowledge/evaluate.py over the very search and answers that requests get."""

from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from functools import cache
from typing import Any

from mofang.engine.base import Reranker
from mofang.errors import MofangError
from mofang.knowledge import evalset, evaluate
from mofang.knowledge.answer import mark_cited
from mofang.knowledge.evalset import Judged
from mofang.knowledge.evaluate import Answered
from mofang.messages import Message, Sampling
from mofang.server.access import Guarded
from mofang.server.answer import Answer, Question, answering
from mofang.server.backend import Backend
from mofang.server.rooms import Report
from mofang.strings import say

MAX_TOKENS = 400
"""Of one answer: small models that go on longer repeat themselves, for minutes."""


def match(library: Guarded, name: str, questions: Sequence[evalset.Question]) -> tuple[list[Judged], list[str]]:
    """The questions in terms of the base; see evalset.match. Blocking."""

    @cache
    def text(document_id: str) -> str:
        return str(library.text(name, document_id)["text"])

    return evalset.match(questions, library.documents(name), text)


async def run(
    backend: Backend,
    name: str,
    questions: Sequence[Judged],
    missing: Sequence[str],
    *,
    model: str | None,
    report: Report,
    lang: str,
) -> dict[str, Any]:
    """The figures, and each question's. model: who answers; None: search alone is measured."""

    async def search(query: str, k: int | None) -> Any:
        return await backend.library.search([name], query, k=k, rerank="")

    async def answer(query: str) -> Answered:
        answer = Answer()
        question = Question(
            str(model), [Message("user", query)], Sampling(temperature=0.0, max_tokens=MAX_TOKENS), (name,)
        )
        async with aclosing(answering(backend, question, answer)) as deltas:
            async for _ in deltas:
                pass
        said = answer.choice().content
        return Answered(said, mark_cited(said, answer.sources), answer.refused)

    async with AsyncExitStack() as stack:
        reranker = await _reranker(backend, stack)
        found = await evaluate.score_search(
            questions, search, rerank=reranker.rerank if reranker else None, report=report
        )
    answered = await evaluate.score_answers(questions, answer, report=report) if model is not None else None
    rows = {row["id"]: row for row in answered.rows} if answered else {}
    notices = []
    if missing:
        notices.append(say("evaluate.missing", n=len(missing), names=", ".join(missing[:3]), lang=lang))
    return {
        "object": "knowledge.evaluation",
        "knowledge": name,
        "n_questions": len(questions),
        "n_judged": found.n_judged,
        "n_unanswerable": sum(question.unanswerable for question in questions),
        "reranker": reranker.info().model if reranker else None,
        "measures": found.legs,
        "latency_ms": found.latency_ms,
        "answers": _figures(answered, model) if answered else None,
        "notices": notices,
        "questions": [
            {"id": one.id, "question": one.text, "ranks": found.ranks.get(one.id), **rows.get(one.id, {})}
            for one in questions
        ],
    }


def _figures(answered: evaluate.AnswerScore, model: str | None) -> dict[str, Any]:
    figures = asdict(answered)
    del figures["rows"]
    return {"model": model, **figures}


async def _reranker(backend: Backend, stack: AsyncExitStack) -> Reranker | None:
    """The machine's reranker, where there is one."""
    try:
        name = backend.models.resolve("auto", "reranker").name
    except MofangError:
        return None
    engine = await stack.enter_async_context(backend.engines.use(name, "reranker"))
    assert isinstance(engine, Reranker)
    return engine
