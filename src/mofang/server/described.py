"""A model as lists of models tell it."""

from typing import TYPE_CHECKING, Any

from mofang.engine.base import EngineInfo
from mofang.errors import MofangError
from mofang.models.base import ModelFacts, ModelRef
from mofang.server import shapes

if TYPE_CHECKING:
    from mofang.server.backend import Backend


def model(backend: "Backend", ref: ModelRef) -> dict[str, Any]:
    return shapes.model(ref, _facts(backend, ref), loaded(backend))


def loaded(backend: "Backend") -> dict[str, EngineInfo]:
    return {info.model: info for info in backend.engines.loaded()}


def _facts(backend: "Backend", ref: ModelRef) -> ModelFacts | None:
    """None where the file cannot be read: a list must show the damaged model too; its own page says what is wrong."""
    try:
        return backend.models.facts(ref)
    except MofangError:
        return None
