"""Our words as the API's JSON: models, catalogue entries, the machine. Pure functions; no engine, no request."""

import importlib.metadata
from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from mofang import platform
from mofang.engine.base import EngineInfo
from mofang.models.ancestry import Ancestor
from mofang.models.base import MemoryEstimate, ModelFacts, ModelRef
from mofang.models.catalogue import CatalogueEntry
from mofang.settings import Settings

LIBRARIES = ("mofang", "xllamacpp", "fastapi", "uvicorn", "pydantic", "streamlit", "numpy")
"""Whose versions /v1/system tells."""


def model(ref: ModelRef, facts: ModelFacts | None, loaded: Mapping[str, EngineInfo]) -> dict[str, Any]:
    """OpenAI's model object and what people want to know beside it."""
    return {
        "id": ref.name,
        "object": "model",
        "created": _created(ref),
        "owned_by": "mofang",
        "kind": ref.kind,
        "format": ref.format,
        "size_bytes": ref.size_bytes,
        "quantization": facts.quantization if facts else None,
        "source": ref.source,
        "managed": ref.managed,
        "runnable": ref.runnable,
        "loaded": (ref.base or ref.name) in loaded,
        "parent": ref.base or None,
        "resident_bytes": loaded[ref.base or ref.name].memory_bytes if (ref.base or ref.name) in loaded else None,
    }


def _created(ref: ModelRef) -> int:
    """When it was pulled or added, as a Unix time; the file's own time where no manifest says."""
    for key in ("pulled_at", "added_at", "created_at"):
        try:
            return int(datetime.fromisoformat(str(ref.manifest[key])).timestamp())
        except (KeyError, ValueError):
            continue
    try:
        return int(ref.path.stat().st_mtime)
    except OSError:
        return 0


def engine(info: EngineInfo) -> dict[str, Any]:
    return asdict(info)


def details(ref: ModelRef, facts: ModelFacts, memory: MemoryEstimate, n_ctx: int, ancestry: Ancestor) -> dict[str, Any]:
    """What /v1/models/{id} adds."""
    return {
        **asdict(facts),
        "memory": {**asdict(memory), "n_ctx": n_ctx},
        "path": str(ref.path),
        "sha256": ref.sha256,
        "manifest": ref.manifest,
        "lineage": asdict(ancestry),
    }


def entry(one: CatalogueEntry, installed: Collection[str], settings: Settings, free_bytes: int) -> dict[str, Any]:
    """A catalogue entry and what it means on this machine."""
    names = ("name", "title", "kind", "summary", "size_bytes", "n_ctx_train", "parameters", "licence", "languages")
    return {
        **{name: getattr(one, name) for name in (*names, "good_for", "sources")},
        "memory_bytes": one.memory(settings.n_ctx, settings.least_slots),
        "installed": one.name in installed,
        "fits": one.fits(free_bytes, settings.n_ctx, settings.least_slots),
    }


def public_settings(settings: Settings) -> dict[str, Any]:
    """Every setting but the secrets; of those, whether they are set."""
    shown = settings.model_dump(mode="json", exclude={"api_key"})
    return {**shown, "api_key": settings.api_key is not None}


def machine(settings: Settings) -> dict[str, Any]:
    """What /v1/system says of this machine; blocks for a moment."""
    return {
        "machine": platform.describe(),
        "memory": asdict(platform.memory()),
        "disk_free_bytes": platform.free_disk(settings.home),
        "versions": versions(),
        "settings": public_settings(settings),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def whole(raw: bytes) -> str | None:
    """The text of a token's bytes; None where they begin or end within a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
