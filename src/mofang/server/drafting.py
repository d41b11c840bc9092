"""Questions about a base drafted as a job: knowledge/questions.py over the models that answers get, each kept as it comes."""

import asyncio
import time
from collections import Counter
from contextlib import aclosing
from typing import Any

from mofang.errors import Conflict
from mofang.knowledge import questions
from mofang.knowledge.base import Hit
from mofang.messages import Progress, Sampling
from mofang.server.answer import Answer, Question, answering
from mofang.server.backend import Backend
from mofang.server.rooms import Report
from mofang.text.languages import language_of

KIND = "questions"
"""Of the job."""
MAX_TOKENS = 400
FORM = {"type": "json_schema", "json_schema": {"name": "draft", "schema": questions.SCHEMA}}


async def run(backend: Backend, name: str, *, n: int, model: str, seed: int, report: Report) -> dict[str, Any]:
    """Draft up to n more: {"kept", "dropped": {why: how many}}. Goes on behind the last passage that has a question.

    Raises Conflict for a base without passages.
    """
    rows = list(await asyncio.to_thread(backend.library.questions, name))
    drawn = await asyncio.to_thread(backend.library.passages, name, n=3 * (n + len(rows)) + 50, seed=seed)
    if not drawn:
        raise Conflict("evaluate.nothing_to_draft", name=name)
    asked = [row["question"] for row in rows]
    kept, dropped, began = 0, Counter[str](), time.monotonic()
    for _, passage in questions.remaining(drawn, rows):
        if kept == n:
            break
        rate = kept / (time.monotonic() - began) if kept else 0.0
        report(Progress("draft", kept, n, "questions", rate, asked[-1] if kept else ""))
        draft = questions.judged(passage, await _said(backend, passage, model), asked)
        if isinstance(draft, str):
            dropped[draft] += 1
            continue
        await asyncio.to_thread(backend.library.keep_question, name, passage, *draft)
        asked.append(draft[0])
        kept += 1
    return {"kept": kept, "dropped": dict(dropped)}


async def _said(backend: Backend, passage: Hit, model: str) -> str:
    prompt = questions.prompt(passage, language_of(passage.text))
    sampling = Sampling(temperature=0.0, max_tokens=MAX_TOKENS, options={"response_format": FORM})
    answer = Answer()
    async with aclosing(answering(backend, Question(model, prompt, sampling), answer)) as deltas:
        async for _ in deltas:
            pass
    return answer.choice().content
