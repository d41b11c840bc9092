"""/v1/files, as far as /v1/vector_stores and conversations need it: upload, list, look, read, content, delete. Each key
has its own."""

import asyncio
from typing import Any, Literal, cast, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from pydantic import Field

from mofang.engine.base import ChatEngine
from mofang.errors import Forbidden, Invalid, NotFound
from mofang.server import attached, uploads
from mofang.server.faults import fit
from mofang.server.files import File
from mofang.server.routes.here import Here, Lang
from mofang.server.routes.pages import After, Before, Limit, Order, page, unix
from mofang.wire import Request as WireRequest

router = APIRouter(tags=["files"])

Purpose = Literal["assistants", "user_data"]
"""What files can be for here; OpenAI's others (batch, fine-tune, vision, evals) have no use in this gateway."""

ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
"""As OpenAI's clients name them in a form."""
_EXPIRY = {"anchor": ANCHOR, "seconds": SECONDS}


class Expiry(WireRequest):
    """OpenAI's `expires_after`; from an hour to thirty days, as theirs."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


def shape(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": unix(file.created_at),
        "expires_at": unix(file.expires_at) if file.expires_at else None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


@router.post("/v1/files", openapi_extra=uploads.openapi("file", "purpose", many=False))
async def create(request: Request, backend: Here, lang: Lang) -> dict[str, Any]:
    """Upload one file (multipart: `file`, `purpose`, and with `expires_after[anchor]` "created_at" the seconds after
    which it leaves by itself, `expires_after[seconds]`; a conversation that refers to it keeps it)."""
    values = ("purpose", ANCHOR, SECONDS)
    upload = await uploads.receive(
        request, backend.uploads, limit_mb=backend.settings.upload_limit_mb, field="file", values=values
    )
    try:
        purpose = upload.values.get("purpose", "")
        if purpose not in get_args(Purpose):
            raise Invalid("server.bad_purpose", param="purpose", value=purpose, known=", ".join(get_args(Purpose)))
        if len(upload.files) != 1:
            raise Invalid("server.one_file", param="file", found=len(upload.files))
        given = {name: upload.values[field] for name, field in _EXPIRY.items() if field in upload.values}
        seconds = fit(Expiry, given, field="expires_after", lang=lang).seconds if given else None
        [(name, path)] = upload.files
        return shape(await asyncio.to_thread(backend.files.keep, name, path, purpose, seconds))
    finally:
        await asyncio.to_thread(upload.discard)


@router.get("/v1/files")
def list_files(
    backend: Here,
    purpose: str | None = Query(default=None, max_length=100),
    limit: Limit = 10_000,
    order: Order = "desc",
    after: After = None,
    before: Before = None,
) -> dict[str, Any]:
    files = [shape(file) for file in backend.files.all() if purpose in (None, file.purpose)]
    return page(files, limit=limit, order=order, after=after, before=before)


@router.get("/v1/files/{file_id}")
def look(file_id: str, backend: Here) -> dict[str, Any]:
    return shape(backend.files.get(file_id))


@router.get("/v1/files/{file_id}/reading")
async def reading(
    file_id: str, backend: Here, model: str | None = Query(default=None, max_length=200)
) -> dict[str, Any]:
    """What it says to a model, before it is sent to one: `kind` "text" or "image", its characters, what a person should
    know about how it was read; with `model` also its tokens. Unreadable files say why."""
    found = await asyncio.to_thread(backend.files.reading, file_id)
    tokens = None
    if model is not None:
        async with backend.engines.use(model, "chat") as engine:
            [told] = await attached.counted(attached.Attached({file_id: found}), cast(ChatEngine, engine))
            tokens = told["tokens"]
    kind = "image" if found.media_type else "text"
    figures = {"n_chars": len(found.text), "tokens": tokens, "notes": list(found.notes)}
    return {"id": file_id, "object": "file.reading", "filename": found.name, "kind": kind, **figures}


@router.get("/v1/files/{file_id}/content", response_class=FileResponse)
def content(file_id: str, backend: Here) -> FileResponse:
    """As it was uploaded, as a download."""
    file = backend.files.get(file_id)
    return FileResponse(
        backend.files.path(file_id),
        media_type="application/octet-stream",
        filename=file.name.rsplit("/", 1)[-1],
        headers={"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"},
    )


@router.delete("/v1/files/{file_id}")
def delete(file_id: str, backend: Here) -> dict[str, Any]:
    """With its documents in every base that it was put into."""
    backend.files.get(file_id)
    for base, attachment in backend.files.bases_of(file_id).items():
        try:
            documents = backend.library.documents(base)
            for document in documents:
                if document.name == attachment.document:
                    backend.library.remove_document(base, document.id)
        except (NotFound, Forbidden):  # the base is gone, or not the key's any more: nothing that it may remove
            continue
    backend.files.remove(file_id)
    return {"id": file_id, "object": "file", "deleted": True}
