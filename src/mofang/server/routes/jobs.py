"""Pulls, ingests and whatever else takes long: list, look, follow, stop."""

from typing import Any

from fastapi import APIRouter, Header, Query, Response

from mofang.server import sse
from mofang.server.routes.here import Here

router = APIRouter(tags=["jobs"])


@router.get("/v1/jobs")
async def list_jobs(backend: Here) -> dict[str, Any]:
    """The running ones and the last finished ones of this process, oldest first."""
    return {"object": "list", "data": [job.shape() for job in backend.jobs.all()]}


@router.get("/v1/jobs/{job_id}")
async def look(job_id: str, backend: Here) -> dict[str, Any]:
    return backend.jobs.get(job_id).shape()


@router.post("/v1/jobs/{job_id}/stop")
async def stop(job_id: str, backend: Here) -> dict[str, Any]:
    """Answers once it has stopped; one that has ended stays as it ended. What a pull has brought stays for the next."""
    return (await backend.jobs.stop(job_id)).shape()


@router.post("/v1/jobs/{job_id}/pause")
async def pause(job_id: str, backend: Here) -> dict[str, Any]:
    """Stop a pull so that it can be gone on with, also after a restart of the gateway; what it has brought stays."""
    return (await backend.jobs.pause(job_id)).shape()


@router.post("/v1/jobs/{job_id}/resume", status_code=202)
async def resume(job_id: str, backend: Here) -> dict[str, Any]:
    """Go on with a paused one where it was; one that runs goes on running."""
    return backend.jobs.resume(job_id).shape()


@router.delete("/v1/jobs/{job_id}")
async def drop(job_id: str, backend: Here) -> dict[str, Any]:
    """Stop a pull, running or paused, and delete what it has brought."""
    return (await backend.jobs.drop(job_id)).shape()


@router.get("/v1/jobs/{job_id}/events", responses=sse.OPENAPI)
async def events(
    job_id: str,
    backend: Here,
    after: int = Query(default=-1, ge=-1),
    last_event_id: int | None = Header(default=None, ge=0),
) -> Response:
    """Everything after event number `after`, then what comes, to the end."""
    start = max(after, -1 if last_event_id is None else last_event_id)
    source = sse.numbered(backend.jobs.follow(job_id, start))
    return sse.EventStream(source, farewell=sse.event({"type": "stopped"}))
