"""/v1/files, as far as /v1/vector_stores needs it: upload, list, look, content, delete. Each key has its own."""

import asyncio
from typing import Any, Literal, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from mofang.errors import Forbidden, Invalid, NotFound
from mofang.server import uploads
from mofang.server.files import File
from mofang.server.routes.here import Here
from mofang.server.routes.pages import After, Before, Limit, Order, page, unix

router = APIRouter(tags=["files"])

Purpose = Literal["assistants", "user_data"]
"""What files can be for here; OpenAI's others (batch, fine-tune, vision, evals) have no use in this gateway."""


def shape(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": unix(file.created_at),
        "expires_at": None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


@router.post("/v1/files", openapi_extra=uploads.openapi("file", "purpose", many=False))
async def create(request: Request, backend: Here) -> dict[str, Any]:
    """Upload one file (multipart: `file`, `purpose`)."""
    upload = await uploads.receive(
        request, backend.uploads, limit_mb=backend.settings.upload_limit_mb, field="file", values=("purpose",)
    )
    try:
        purpose = upload.values.get("purpose", "")
        if purpose not in get_args(Purpose):
            raise Invalid("server.bad_purpose", param="purpose", value=purpose, known=", ".join(get_args(Purpose)))
        if len(upload.files) != 1:
            raise Invalid("server.one_file", param="file", found=len(upload.files))
        [(name, path)] = upload.files
        return shape(await asyncio.to_thread(backend.files.keep, name, path, purpose))
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
