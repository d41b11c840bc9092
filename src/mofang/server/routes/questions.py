"""Questions about a base that a model drafts and a person checks: a set to measure the base with."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Response

from mofang.knowledge.drafted import as_set
from mofang.messages import Progress
from mofang.server import drafting
from mofang.server.backend import Backend
from mofang.server.routes.here import Here, Lang
from mofang.wire import DraftRequest, QuestionChange

router = APIRouter(tags=["knowledge"])


@router.get("/v1/knowledge/{name}/questions")
def list_questions(name: str, backend: Here) -> dict[str, Any]:
    """In the order of their drafting, each with the passage that it rests on; `document_id` is null where that document is
    gone."""
    return {"object": "list", "data": _shapes(name, backend, backend.library.questions(name))}


@router.post("/v1/knowledge/{name}/questions", status_code=202)
async def draft(name: str, body: DraftRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """Let a model draft up to `n` more. The answer is a job, the running one where there is one; every question is kept as
    it comes."""
    await asyncio.to_thread(backend.library.check, name, write=True)
    model = (await asyncio.to_thread(backend.models.resolve, body.model, "chat")).name
    backend.engines.check_permitted(model)

    async def work(report: Callable[[Progress], None]) -> Any:
        return await drafting.run(backend, name, n=body.n, model=model, seed=body.seed, report=report)

    running = backend.jobs.find_open(drafting.KIND, name)
    return (running or backend.jobs.start(drafting.KIND, name, work, lang=lang)).shape()


@router.patch("/v1/knowledge/{name}/questions/{question_id}")
def change(name: str, question_id: str, body: QuestionChange, backend: Here) -> dict[str, Any]:
    """Its words, or what is to become of it: open, accepted, dropped."""
    row = backend.library.change_question(name, question_id, body.model_dump(exclude_none=True))
    return _shapes(name, backend, [row])[0]


@router.delete("/v1/knowledge/{name}/questions", status_code=204)
def forget(name: str, backend: Here) -> None:
    """All of them, accepted ones too."""
    backend.library.forget_questions(name)


@router.get(
    "/v1/knowledge/{name}/questions.jsonl",
    response_class=Response,
    responses={200: {"content": {"application/jsonl": {}}}},
)
def accepted(name: str, backend: Here) -> Response:
    """The accepted ones as a set that /v1/knowledge/{name}/evaluate takes."""
    return Response(as_set(backend.library.questions(name)), media_type="application/jsonl")


def _shapes(name: str, backend: Backend, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = {document.name: document.id for document in backend.library.documents(name)}
    return [{**row, "document_id": ids.get(row["document"])} for row in rows]
