"""Whether we live, whether we can answer, what this machine is, and the way to the workbench."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from mofang import __version__
from mofang.errors import MofangError, NotFound
from mofang.server import shapes
from mofang.server.auth import host_name
from mofang.server.backend import Backend
from mofang.server.faults import fault
from mofang.server.metrics import CONTENT_TYPE
from mofang.server.routes.here import Here, Lang, Owner
from mofang.strings import speaking

router = APIRouter(tags=["system"])

LOGS = (".log", ".jsonl")
TAIL_BYTES = 1 << 20
"""The most of a log that is read for its last lines."""


@router.get("/", include_in_schema=False)
async def home(request: Request, backend: Here) -> Response:
    """To the workbench, under the name that the browser used for us."""
    port = backend.settings.workbench_port
    if not port:
        return JSONResponse({"name": "mofang", "version": __version__, "workbench": None})
    name = host_name(request.headers.get("host", "")) or "127.0.0.1"
    return RedirectResponse(f"http://{f'[{name}]' if ':' in name else name}:{port}/", status_code=307)


@router.get("/healthz")
async def alive() -> dict[str, Any]:
    """We answer."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz")
def ready(backend: Here, lang: Lang) -> JSONResponse:
    """Whether a chat can be answered: 200, or 503 with what is missing. An embedder may be missing either way."""
    chat, missing = _resolve(backend, "chat")
    embedding, _ = _resolve(backend, "embedding")
    kinds = {"chat_model": chat, "embedding_model": embedding}
    state = {"ready": missing is None, **kinds, "missing": [name for name, found in kinds.items() if found is None]}
    if missing is None:
        return JSONResponse(state)
    return JSONResponse({**state, "error": {**fault(missing, lang), **kinds}}, status_code=503)


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
def metrics(backend: Here) -> Response:
    """Figures for Prometheus, by route, model and key id."""
    return Response(backend.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _resolve(backend: Backend, kind: Any) -> tuple[str | None, MofangError | None]:
    """The model that "auto" means, or why it means none: nothing is there, or several are and none was chosen."""
    try:
        return backend.models.resolve("auto", kind).name, None
    except MofangError as error:
        return None, error


@router.get("/v1/system")
def system(backend: Here) -> dict[str, Any]:
    """The machine, its memory, versions, loaded models, settings without secrets, what is running and waiting."""
    return {
        **shapes.machine(backend.settings),
        "engines": [shapes.engine(info) for info in backend.engines.loaded()],
        "running": {
            "generations": backend.generations.n_running,
            "jobs": sum(job.status == "running" for job in backend.jobs.all()),
        },
        "waiting": backend.engines.waiting(),
    }


@router.get("/v1/system/history")
def history(backend: Here, after: float = Query(default=0, ge=0)) -> dict[str, Any]:
    """The last hour, a row every few seconds: tokens and requests a second, answers under way and waiting, free memory.
    `after`: only rows later than that (seconds since 1970)."""
    return {"object": "list", "data": backend.history.rows(after)}


@router.get("/v1/doctor", dependencies=[Owner])
def doctor(backend: Here, lang: Lang) -> dict[str, Any]:
    """What `mofang doctor` finds: each line with its state (ok, note, missing) and what to type."""
    with speaking(lang):
        return {"object": "list", "data": [asdict(finding) for finding in backend.examine()]}


@router.get("/v1/logs", dependencies=[Owner])
def logs(backend: Here) -> dict[str, Any]:
    """The logs of this gateway, of the workbench and of each model's engine, the newest first."""
    found = sorted(_logs(backend).values(), key=lambda path: path.stat().st_mtime, reverse=True)
    shapes_ = [{"name": path.name, "size_bytes": path.stat().st_size, "at": path.stat().st_mtime} for path in found]
    return {"object": "list", "data": shapes_}


@router.get("/v1/logs/{name}", dependencies=[Owner])
def log(name: str, backend: Here, lines: int = Query(default=200, ge=1, le=10_000)) -> dict[str, Any]:
    """The last lines of one."""
    known = _logs(backend)
    if name not in known:
        raise NotFound("server.no_log", name=name, known=", ".join(sorted(known)) or "-")
    with known[name].open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    return {"name": name, "text": "\n".join(text.splitlines()[-lines:])}


def _logs(backend: Backend) -> dict[str, Path]:
    """By name: only what lies in the folder of logs can be asked for."""
    folder = backend.settings.home / "logs"
    found = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path for path in found if path.suffix in LOGS and path.is_file() and not path.is_symlink()}
