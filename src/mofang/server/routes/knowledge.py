"""Knowledge bases: their documents, who may read them, search, questions, and how good they are.

What a key may not read does not exist for it: `backend.library` sees to that (server/access.py), not these routes.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from mofang.errors import MofangError
from mofang.knowledge import evalset
from mofang.knowledge.base import KnowledgeInfo
from mofang.knowledge.ingest import Ingester
from mofang.knowledge.within import Filter
from mofang.messages import Delta, Message, Progress, Sampling
from mofang.server import evaluation, sse, uploads
from mofang.server.answer import Answer, Question, answering
from mofang.server.auth import check_owner
from mofang.server.backend import Backend
from mofang.server.events import Event
from mofang.server.faults import fault, internal, interrupted
from mofang.server.routes.here import Here, Lang
from mofang.strings import speaking
from mofang.wire import AskRequest, KnowledgeRequest, SearchRequest

router = APIRouter(tags=["knowledge"])


def _shape(info: KnowledgeInfo, backend: Backend) -> dict[str, Any]:
    """`writable`: whether the one who asks may change it, or only read."""
    return {**asdict(info), "writable": backend.library.access.may_write(info.name)}


@router.get("/v1/knowledge")
def list_knowledge(backend: Here) -> dict[str, Any]:
    """Those that the key may read."""
    return {"object": "list", "data": [_shape(info, backend) for info in backend.library.list()]}


@router.post("/v1/knowledge", status_code=201)
def create(body: KnowledgeRequest, backend: Here) -> dict[str, Any]:
    """An empty base of the key's own. Its embedding model is chosen now and stays: "auto" is this machine's default
    of today."""
    model = backend.models.resolve(body.embedding_model, "embedding").name
    made = backend.library.create(body.name, title=body.title or "", embedding_model=model, store=body.store)
    return _shape(made, backend)


@router.post("/v1/knowledge/search")
async def search(body: SearchRequest, request: Request, backend: Here, lang: Lang) -> dict[str, Any]:
    """The passages nearest to a query, best first, of several bases at once."""
    notices: list[str] = []
    within = (
        Filter(**{name: tuple(values) for name, values in body.filter.model_dump().items()}) if body.filter else None
    )
    rerank = body.rerank
    if rerank:
        rerank = backend.models.resolve(rerank, "reranker").name
        backend.engines.check_permitted(rerank)
    with speaking(lang):
        hits = await backend.library.search(
            body.knowledge, body.query, k=body.k, within=within, notices=notices, rerank=rerank
        )
    return {"object": "list", "data": [asdict(hit) for hit in hits], "notices": notices}


@router.post("/v1/knowledge/{name}/rebuild", status_code=202)
async def rebuild(name: str, request: Request, backend: Here, lang: Lang) -> dict[str, Any]:
    """Fill the base's index anew from its documents, without reading or embedding them again. The answer is a job."""
    await asyncio.to_thread(backend.library.check, name, write=True)

    async def work(report: Callable[[Progress], None]) -> Any:
        return {"n_chunks": await backend.library.rebuild(name, progress=report)}

    return backend.jobs.start("rebuild", name, work, lang=lang).shape()


@router.get("/v1/knowledge/{name}")
def info(name: str, backend: Here) -> dict[str, Any]:
    return _shape(backend.library.info(name), backend)


@router.delete("/v1/knowledge/{name}", status_code=204)
def remove(name: str, backend: Here) -> None:
    """With all its documents."""
    backend.library.remove(name)


# ---- who may read it ----


@router.get("/v1/knowledge/{name}/readers")
def readers(name: str, backend: Here) -> dict[str, Any]:
    """The keys that may read it beside its owner; only the owner is told."""
    backend.library.check(name, write=True)
    keys = sorted(backend.library.access.readers(name))
    return {"object": "list", "data": [{"key": key, "name": backend.keys.get(key).name} for key in keys]}


@router.put("/v1/knowledge/{name}/readers/{key_id}", status_code=204)
def share(name: str, key_id: str, backend: Here) -> None:
    """Let a key read it: search, answers, documents."""
    backend.library.check(name, write=True)
    backend.library.access.share(name, backend.keys.get(key_id).id)


@router.delete("/v1/knowledge/{name}/readers/{key_id}", status_code=204)
def unshare(name: str, key_id: str, backend: Here) -> None:
    """The key can read it no more."""
    backend.library.check(name, write=True)
    backend.library.access.unshare(name, backend.keys.get(key_id).id)


# ---- documents ----


@router.get("/v1/knowledge/{name}/documents")
def documents(name: str, backend: Here) -> dict[str, Any]:
    return {"object": "list", "data": [asdict(document) for document in backend.library.documents(name)]}


@router.post("/v1/knowledge/{name}/documents", status_code=202, openapi_extra=uploads.OPENAPI)
async def add_documents(
    name: str,
    request: Request,
    backend: Here,
    lang: Lang,
    launcher: str = Query(default="local", max_length=100),
    cluster: str = Query(default="", max_length=300),
    workers: int = Query(default=0, ge=0, le=10_000),
) -> dict[str, Any]:
    """Take files in (multipart field "files", any number). The job's result says what happened to each of them.

    `launcher`: "ray" lets the machines of a Ray cluster read and embed; the owner's to use, as it starts processes there.
    """
    ingester = await _admit(name, request, backend, write=True, launcher=launcher, cluster=cluster, workers=workers)
    upload = await uploads.receive(request, backend.uploads, limit_mb=backend.settings.upload_limit_mb)

    async def work(report: Callable[[Progress], None]) -> Any:
        try:
            added = await backend.library.add(name, upload.files, progress=report, ingester=ingester)
            return asdict(added)
        finally:
            await asyncio.to_thread(upload.discard)

    return backend.jobs.start("ingest", name, work, lang=lang).shape()


async def _admit(
    name: str, request: Request, backend: Backend, *, write: bool, launcher: str = "local", **options: Any
) -> Ingester | None:
    """Refuse an upload before it is read; what is still sent is thrown away, so that the client hears the reason.
    Returns who takes it in."""
    try:
        await asyncio.to_thread(backend.library.check, name, write=write)
        ingester = backend.ingester(launcher, **options)
        if ingester:
            check_owner()
        return ingester
    except MofangError:
        await uploads.drain(request)
        raise


@router.delete("/v1/knowledge/{name}/documents/{document_id}", status_code=204)
def remove_document(name: str, document_id: str, backend: Here) -> None:
    """It can answer nothing any more once this returns."""
    backend.library.remove_document(name, document_id)


@router.get("/v1/knowledge/{name}/documents/{document_id}/text")
def text(
    name: str,
    document_id: str,
    backend: Here,
    start: int = Query(default=0, ge=0),
    end: int | None = Query(default=None, ge=0),
) -> dict[str, Any]:
    """A span of the canonical text, and what surrounds it."""
    return backend.library.text(name, document_id, start=start, end=end)


@router.get("/v1/knowledge/{name}/documents/{document_id}/chunks")
def chunks(
    name: str,
    document_id: str,
    backend: Here,
    start: int = Query(default=0, ge=0),
    n: int = Query(default=100, ge=1, le=1_000),
) -> dict[str, Any]:
    """How it was cut: the first n chunks that reach beyond `start`, as spans of the canonical text."""
    found = backend.library.chunks(name, document_id, start=start, n=n)
    return {"object": "list", "data": [asdict(chunk) for chunk in found]}


@router.get(
    "/v1/knowledge/{name}/documents/{document_id}/pages/{page}.png",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def picture(
    name: str,
    document_id: str,
    page: int,
    backend: Here,
    width: int = Query(default=1_000, ge=50, le=2_400),
    start: int = Query(default=0, ge=0),
    end: int = Query(default=0, ge=0),
) -> Response:
    """A page of a PDF, from 1, as a picture `width` pixels wide or less; the paragraphs that `start` to `end` of the
    canonical text touches are marked on it."""
    drawn = await backend.library.picture(name, document_id, page, width=width, within=(start, end))
    return Response(drawn, media_type="image/png", headers={"X-Content-Type-Options": "nosniff"})


@router.get("/v1/knowledge/{name}/documents/{document_id}/file", response_class=FileResponse)
def original(name: str, document_id: str, backend: Here) -> FileResponse:
    """The document as it was uploaded, as a download: a browser must never run it as a page of ours."""
    path = backend.library.file(name, document_id)
    title = next((doc.name for doc in backend.library.documents(name) if doc.id == document_id), path.name)
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=Path(title).name,
        headers={"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"},
    )


@router.get("/v1/knowledge/{name}/passages")
def passages(
    name: str, backend: Here, n: int = Query(default=20, ge=1, le=10_000), seed: int = Query(default=0, ge=0)
) -> dict[str, Any]:
    """Passages drawn at random by `seed` from all of the base: how it was cut, and what to draft questions from."""
    return {"object": "list", "data": [asdict(hit) for hit in backend.library.passages(name, n=n, seed=seed)]}


# ---- questions ----


@router.post("/v1/knowledge/{name}/ask", responses=sse.OPENAPI)
async def ask(name: str, body: AskRequest, request: Request, backend: Here, lang: Lang) -> Response:
    """An answer with its numbered sources; streamed, the events of an answer (docs/api.md)."""
    await asyncio.to_thread(backend.library.check, name)
    answer = Answer()
    sampling = Sampling(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed)
    question = Question(body.model, [Message("user", body.question)], sampling, (name,), body.keep_alive)
    if body.stream:
        farewell = sse.event({"type": "error", "error": interrupted(lang)})
        return await sse.opened(_events(backend, question, answer, lang), request.receive, farewell=farewell)
    async with sse.until_client_leaves(request.receive), aclosing(answering(backend, question, answer)) as deltas:
        async for _ in deltas:
            pass
    return JSONResponse({"object": "knowledge.answer", "knowledge": name, **_answered(answer)})


def _answered(answer: Answer) -> dict[str, Any]:
    choice = answer.choice()
    return {
        "model": answer.info.model if answer.info else None,
        "answer": choice.content,
        "sources": answer.cited_sources(),
        "notices": answer.notices,
        "finish_reason": choice.finish_reason,
        "usage": answer.usage,
        "timings": answer.timings_shape,
    }


async def _events(backend: Backend, question: Question, answer: Answer, lang: str) -> AsyncGenerator[bytes, None]:
    """What an answer tells while it grows: sources, notice, delta, and done or error at the end."""
    told: list[Event] = []
    begun = False
    async with aclosing(answering(backend, question, answer, told.append)) as deltas:
        try:
            async for delta in deltas:
                for event in [*told, *_said(delta)]:
                    begun = True
                    yield sse.event(event)
                told.clear()
        except Exception as error:
            if not begun:
                raise
            yield sse.event({"type": "error", "error": fault(internal(error, backend.settings), lang)})
            return
    for event in [*told, {"type": "done", **_answered(answer)}]:
        yield sse.event(event)


def _said(delta: Delta) -> list[Event]:
    if not delta.content and not delta.reasoning:
        return []
    return [{"type": "delta", "content": delta.content, "reasoning": delta.reasoning}]


# ---- how good it is ----


@router.post("/v1/knowledge/{name}/evaluate", status_code=202, openapi_extra=uploads.OPENAPI)
async def evaluate(
    name: str,
    request: Request,
    backend: Here,
    lang: Lang,
    split: str | None = Query(default=None, max_length=100),
    answers: bool = False,
    model: str = "auto",
) -> dict[str, Any]:
    """Measure search, and with `answers` the answers of `model`, on a set of questions (multipart field "files": a
    BEIR set's queries.jsonl and qrels/*.tsv, or one .jsonl). The job's result holds the figures."""
    await _admit(name, request, backend, write=False)
    upload = await uploads.receive(request, backend.uploads, limit_mb=backend.settings.upload_limit_mb)
    try:
        questions = await asyncio.to_thread(evalset.load, upload.files, split)
        judged, missing = await asyncio.to_thread(evaluation.match, backend.library, name, questions)
    finally:
        await asyncio.to_thread(upload.discard)

    async def work(report: Callable[[Progress], None]) -> Any:
        return await evaluation.run(
            backend, name, judged, missing, model=model if answers else None, report=report, lang=lang
        )

    return backend.jobs.start("evaluate", name, work, lang=lang).shape()
