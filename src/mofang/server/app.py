"""The ASGI application: routes over a backend, one doorkeeper before them, errors in one shape."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mofang import __version__
from mofang.server import faults
from mofang.server.auth import Doorkeeper
from mofang.server.backend import Backend
from mofang.server.body import BodyLimit
from mofang.server.record import Recorder
from mofang.server.routes import ROUTERS


def create_app(backend: Backend) -> FastAPI:
    """The gateway's application. The backend starts and closes with it; routes find it in `app.state.backend`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await backend.start()
        try:
            yield
        finally:
            await backend.close()

    app = FastAPI(
        title="Mofang 模坊",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from a CDN
        redoc_url=None,
        responses=faults.RESPONSES,
    )
    app.state.backend = backend
    for router in ROUTERS:
        app.include_router(router)
    faults.install(app, backend.settings)
    app.add_middleware(faults.LastResort, settings=backend.settings)
    app.add_middleware(BodyLimit, settings=backend.settings)
    app.add_middleware(Doorkeeper, backend=backend)
    app.add_middleware(Recorder, backend=backend)  # the outermost: refusals are recorded too
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, without the 422 that it supposes: what does not fit is answered with 400, in our shape."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        if app.state.backend.settings.api_key:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
