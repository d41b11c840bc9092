"""Knowledge bases: their documents, search in them. Answers from them are in chat and generations."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from mofang.errors import MofangError
from mofang.messages import Progress
from mofang.server import uploads
from mofang.server.routes.here import Here, Lang
from mofang.wire import KnowledgeRequest, SearchRequest

router = APIRouter(tags=["knowledge"])


@router.get("/v1/knowledge")
def list_knowledge(backend: Here) -> dict[str, Any]:
    return {"object": "list", "data": [asdict(info) for info in backend.library.list()]}


@router.post("/v1/knowledge", status_code=201)
def create(body: KnowledgeRequest, backend: Here) -> dict[str, Any]:
    """An empty base. Its embedding model is chosen now and stays: "auto" is this machine's default of today."""
    model = backend.models.resolve(body.embedding_model, "embedding").name
    return asdict(backend.library.create(body.name, title=body.title or "", embedding_model=model))


@router.post("/v1/knowledge/search")
async def search(body: SearchRequest, request: Request, backend: Here) -> dict[str, Any]:
    """The passages nearest to a query, best first, of several bases at once."""
    hits = await backend.library.search(body.knowledge, body.query, k=body.k)
    return {"object": "list", "data": [asdict(hit) for hit in hits]}


@router.get("/v1/knowledge/{name}")
def info(name: str, backend: Here) -> dict[str, Any]:
    return asdict(backend.library.info(name))


@router.delete("/v1/knowledge/{name}", status_code=204)
def remove(name: str, backend: Here) -> None:
    """With all its documents."""
    backend.library.remove(name)


@router.get("/v1/knowledge/{name}/documents")
def documents(name: str, backend: Here) -> dict[str, Any]:
    return {"object": "list", "data": [asdict(document) for document in backend.library.documents(name)]}


@router.post("/v1/knowledge/{name}/documents", status_code=202, openapi_extra=uploads.OPENAPI)
async def add_documents(name: str, request: Request, backend: Here, lang: Lang) -> dict[str, Any]:
    """Take files in (multipart field "files", any number). The job's result says what happened to each of them."""
    try:
        await asyncio.to_thread(backend.library.check, name, write=True)
    except MofangError:
        await uploads.drain(request)
        raise
    upload = await uploads.receive(request, backend.uploads, limit_mb=backend.settings.upload_limit_mb)

    async def work(report: Callable[[Progress], None]) -> Any:
        try:
            added = await backend.library.add(name, upload.files, progress=report)
            return asdict(added)
        finally:
            await asyncio.to_thread(upload.discard)

    return backend.jobs.start("ingest", name, work, lang=lang).shape()


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
