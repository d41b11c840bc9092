"""What every route asks for: the backend, and the language to answer in."""

from typing import Annotated

from fastapi import Depends, Request

from mofang.server.auth import check_owner
from mofang.server.backend import Backend
from mofang.server.faults import language


async def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


async def _lang(request: Request) -> str:
    return language(request.headers, request.app.state.backend.settings)


Here = Annotated[Backend, Depends(_backend)]
Lang = Annotated[str, Depends(_lang)]
Owner = Depends(check_owner)
"""For `dependencies=` of a route that a stored key may not use."""
