"""Whether we live, whether we can answer, what this machine is, and the way to the workbench."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from mofang import __version__
from mofang.errors import MofangError
from mofang.server import shapes
from mofang.server.auth import host_name
from mofang.server.backend import Backend
from mofang.server.faults import fault
from mofang.server.metrics import CONTENT_TYPE
from mofang.server.routes.here import Here, Lang

router = APIRouter(tags=["system"])


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
