"""What runs the models here: builds of llama.cpp, and what tuning found for each model."""

from typing import Any

from fastapi import APIRouter

from mofang.engine.status import status
from mofang.server.routes.here import Here, Lang

router = APIRouter(tags=["engine"])


@router.get("/v1/engine")
def engine(backend: Here, lang: Lang) -> dict[str, Any]:
    """The machine, the llama.cpp build in use and why it is that one, each tuned model's choices with their figures."""
    return status(backend.settings, backend.models.list(), lang)
