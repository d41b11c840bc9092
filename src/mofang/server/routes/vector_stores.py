"""/v1/vector_stores: knowledge bases as OpenAI's clients know them. A store's id is the base's name, its name the
base's title; a file's id is that of /v1/files, or the document's own where it came in another way.

What has no counterpart here (metadata, attributes, filters, expiry, static chunking, batches) is refused by its name.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter

from mofang.errors import Conflict, MofangError, NotFound
from mofang.knowledge.base import DocumentInfo, FileReport, KnowledgeInfo
from mofang.messages import Progress
from mofang.server.backend import Backend
from mofang.server.files import Attachment
from mofang.server.routes.here import Here, Lang
from mofang.server.routes.pages import After, Before, Limit, Order, page, unix
from mofang.server.store import new_id
from mofang.strings import say
from mofang.wire import (
    VectorStoreChange,
    VectorStoreFileRequest,
    VectorStoreRequest,
    VectorStoreSearch,
)

router = APIRouter(tags=["vector_stores"])

UNSUPPORTED = ("unknown_format", "format_later")
"""Codes of files whose format is not read; other faults are the file's own."""

ARCHIVES = (".zip",)

Status = Literal["in_progress", "completed", "failed", "cancelled"]


# ---- stores ----


def _store(info: KnowledgeInfo, backend: Backend) -> dict[str, Any]:
    states = [file["status"] for file in _files(info.name, backend)]
    counts = {state: states.count(state) for state in ("in_progress", "completed", "failed", "cancelled")}
    return {
        "id": info.name,
        "object": "vector_store",
        "created_at": unix(info.created_at),
        "name": info.title or info.name,
        "usage_bytes": info.size_bytes,
        "file_counts": {**counts, "total": len(states)},
        "status": "in_progress" if counts["in_progress"] else "completed",
        "expires_after": None,
        "expires_at": None,
        "last_active_at": None,
        "metadata": {},
    }


@router.get("/v1/vector_stores")
def list_stores(
    backend: Here, limit: Limit = 20, order: Order = "desc", after: After = None, before: Before = None
) -> dict[str, Any]:
    """Every base that the key may read."""
    infos = sorted(backend.library.list(), key=lambda info: (info.created_at, info.name))
    return page([_store(info, backend) for info in infos], limit=limit, order=order, after=after, before=before)


@router.post("/v1/vector_stores")
async def create(body: VectorStoreRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """An empty base; `file_ids` are put into it one after another."""
    for file_id in body.file_ids:
        await asyncio.to_thread(backend.files.get, file_id)
    model = (await asyncio.to_thread(backend.models.resolve, "auto", "embedding")).name
    name = new_id("vs")
    await asyncio.to_thread(backend.library.create, name, title=body.name or "", embedding_model=model)
    for file_id in body.file_ids:
        await _attach(name, file_id, backend, lang)
    return await asyncio.to_thread(lambda: _store(backend.library.info(name), backend))


@router.get("/v1/vector_stores/{vector_store_id}")
def look(vector_store_id: str, backend: Here) -> dict[str, Any]:
    return _store(backend.library.info(vector_store_id), backend)


@router.post("/v1/vector_stores/{vector_store_id}")
def change(vector_store_id: str, body: VectorStoreChange, backend: Here) -> dict[str, Any]:
    """Another name (the base's title)."""
    backend.library.check(vector_store_id, write=True)
    if body.name is not None:
        backend.library.retitle(vector_store_id, body.name)
    return _store(backend.library.info(vector_store_id), backend)


@router.delete("/v1/vector_stores/{vector_store_id}")
def delete(vector_store_id: str, backend: Here) -> dict[str, Any]:
    """The base with all its documents; uploaded files stay in /v1/files."""
    backend.library.remove(vector_store_id)
    return {"id": vector_store_id, "object": "vector_store.deleted", "deleted": True}


@router.post("/v1/vector_stores/{vector_store_id}/search")
async def search(vector_store_id: str, body: VectorStoreSearch, backend: Here) -> dict[str, Any]:
    """The nearest passages, each under its file; `score` is the fused one, comparable within one answer."""
    query = body.query if isinstance(body.query, str) else body.query[0]
    hits = await backend.library.search([vector_store_id], query, k=body.max_num_results)
    ids = await asyncio.to_thread(_file_ids, vector_store_id, backend)
    return {
        "object": "vector_store.search_results.page",
        "search_query": [query],
        "data": [
            {
                "file_id": ids.get(hit.document_id, hit.document_id),
                "filename": hit.title,
                "score": hit.score,
                "attributes": {},
                "content": [{"type": "text", "text": hit.text}],
            }
            for hit in hits
        ],
        "has_more": False,
        "next_page": None,
    }


def _file_ids(base: str, backend: Backend) -> dict[str, str]:
    """Document id → id of the file that it was."""
    names = {attachment.document: file_id for file_id, attachment in backend.files.attachments(base).items()}
    return {one.id: names[one.name] for one in backend.library.documents(base) if one.name in names}


# ---- files of a store ----


def _file(base: str, file_id: str, document: DocumentInfo | None, attachment: Attachment | None) -> dict[str, Any]:
    moment = attachment.created_at if attachment else document.added_at if document else ""
    return {
        "id": file_id,
        "object": "vector_store.file",
        "created_at": unix(moment),
        "usage_bytes": document.size_bytes if document else 0,
        "vector_store_id": base,
        "status": attachment.status if attachment else "completed",
        "last_error": attachment.error if attachment else None,
        "attributes": {},
    }


def _files(base: str, backend: Backend) -> list[dict[str, Any]]:
    """Its documents and what is on the way or failed, oldest first. A document that was removed in another way is
    gone here too."""
    documents = {document.name: document for document in backend.library.documents(base)}
    files = []
    for file_id, attachment in backend.files.attachments(base).items():
        document = documents.pop(attachment.document, None)
        if document or attachment.status != "completed":
            files.append(_file(base, file_id, document, attachment))
    files += [_file(base, document.id, document, None) for document in documents.values()]
    return sorted(files, key=lambda file: (file["created_at"], file["id"]))


def _find(base: str, file_id: str, backend: Backend) -> dict[str, Any]:
    backend.library.check(base)
    found = next((file for file in _files(base, backend) if file["id"] == file_id), None)
    if found is None:
        raise NotFound("server.file_not_found", id=file_id)
    return found


def _document_id(base: str, file_id: str, backend: Backend) -> str | None:
    """The document that a file of the store is; None while it is on the way or failed."""
    attachment = backend.files.attachments(base).get(file_id)
    for document in backend.library.documents(base):
        if document.name == attachment.document if attachment else document.id == file_id:
            return document.id
    return None


@router.get("/v1/vector_stores/{vector_store_id}/files")
def list_files(
    vector_store_id: str,
    backend: Here,
    limit: Limit = 20,
    order: Order = "desc",
    after: After = None,
    before: Before = None,
    filter: Status | None = None,
) -> dict[str, Any]:
    backend.library.check(vector_store_id)
    files = [file for file in _files(vector_store_id, backend) if filter in (None, file["status"])]
    return page(files, limit=limit, order=order, after=after, before=before)


@router.post("/v1/vector_stores/{vector_store_id}/files")
async def attach(vector_store_id: str, body: VectorStoreFileRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """Put an uploaded file into the base; it is `in_progress` until it can be searched."""
    await asyncio.to_thread(backend.library.check, vector_store_id, write=True)
    await _attach(vector_store_id, body.file_id, backend, lang)
    return await asyncio.to_thread(_find, vector_store_id, body.file_id, backend)


async def _attach(base: str, file_id: str, backend: Backend, lang: str) -> None:
    file = await asyncio.to_thread(backend.files.get, file_id)
    path = backend.files.path(file_id)
    name = await asyncio.to_thread(_document_name, base, file_id, file.name, backend)
    await asyncio.to_thread(backend.files.attach, base, file_id, name)

    async def work(report: Callable[[Progress], None]) -> Any:
        fault = {"code": "server_error", "message": "stopped"}
        try:
            fault = await _ingest(base, name, path, backend, report)
        except MofangError as error:
            fault = {"code": "server_error", "message": error.message(lang)}
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(backend.files.settle, base, file_id, fault))
        return {"file_id": file_id, "error": fault or None}

    backend.jobs.start("ingest", base, work, lang=lang)


async def _ingest(
    base: str, name: str, path: Path, backend: Backend, report: Callable[[Progress], None]
) -> dict[str, str]:
    """What was wrong with the file; {} when it is in. A file of a store is one document: an archive is not."""
    if name.lower().endswith(ARCHIVES):
        return {"code": "unsupported_file", "message": say("server.archive_attached", name=name)}
    added: FileReport = (await backend.library.add(base, [(name, path)], progress=report)).files[0]
    if added.status != "failed":
        return {}
    code = "unsupported_file" if added.code in UNSUPPORTED else "invalid_file"
    return {"code": code, "message": added.error}


def _document_name(base: str, file_id: str, name: str, backend: Backend) -> str:
    """The file's name, unless another document has it: attaching one file never replaces another."""
    attachments = backend.files.attachments(base)
    if file_id in attachments:
        if attachments[file_id].status == "in_progress":
            raise Conflict("server.already_attaching", id=file_id, base=base)
        return attachments[file_id].document
    taken = {document.name for document in backend.library.documents(base)}
    taken |= {attachment.document for attachment in attachments.values()}
    return name if name not in taken else f"{file_id}/{name}"


@router.get("/v1/vector_stores/{vector_store_id}/files/{file_id}")
def look_at_file(vector_store_id: str, file_id: str, backend: Here) -> dict[str, Any]:
    return _find(vector_store_id, file_id, backend)


@router.get("/v1/vector_stores/{vector_store_id}/files/{file_id}/content")
def content(vector_store_id: str, file_id: str, backend: Here) -> dict[str, Any]:
    """Its text as it was read."""
    _find(vector_store_id, file_id, backend)
    document_id = _document_id(vector_store_id, file_id, backend)
    if document_id is None:
        raise NotFound("server.file_not_found", id=file_id)
    text = backend.library.text(vector_store_id, document_id)["text"]
    return {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": text}],
        "has_more": False,
        "next_page": None,
    }


@router.delete("/v1/vector_stores/{vector_store_id}/files/{file_id}")
def detach(vector_store_id: str, file_id: str, backend: Here) -> dict[str, Any]:
    """Its document can answer nothing any more; the file stays in /v1/files."""
    backend.library.check(vector_store_id, write=True)
    _find(vector_store_id, file_id, backend)
    document_id = _document_id(vector_store_id, file_id, backend)
    if document_id is not None:
        backend.library.remove_document(vector_store_id, document_id)
    backend.files.detach(vector_store_id, file_id)
    return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}
