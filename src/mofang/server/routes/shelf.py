"""Personas and sampling presets: what conversations begin with. Each key has its own."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from mofang.server import cards
from mofang.server.faults import fit
from mofang.server.routes.here import Here, Lang
from mofang.wire import NewPersona, NewPreset, PersonaChange, PresetChange, SamplingFields

router = APIRouter(tags=["personas"])

BINARY = {"schema": {"type": "string", "format": "binary"}}
FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": BINARY}}}


def _fields(body: PersonaChange | PresetChange, lang: str) -> dict[str, Any]:
    """What the request sets; its sampling is checked now, so that no later answer fails on it."""
    fit(SamplingFields, body.sampling or {}, field="sampling", lang=lang)
    return body.model_dump(exclude_none=True)


@router.get("/v1/personas")
def list_personas(backend: Here) -> dict[str, Any]:
    """Oldest first."""
    return {"object": "list", "data": backend.personas.all()}


@router.post("/v1/personas", status_code=201)
def create_persona(body: NewPersona, backend: Here, lang: Lang) -> dict[str, Any]:
    """A system prompt, a greeting and choices under a name."""
    return backend.personas.create(_fields(body, lang))[0]


@router.post("/v1/personas/import", status_code=201, openapi_extra=FILE)
async def import_personas(request: Request, backend: Here, lang: Lang) -> dict[str, Any]:
    """The file is the body: our own JSON, a character card (JSON or PNG), text-generation-webui's YAML."""
    found = await asyncio.to_thread(cards.read, await request.body(), lang)
    checked = [fit(NewPersona, one, field="persona", lang=lang) for one in found]
    made = await asyncio.to_thread(backend.personas.create, *[_fields(one, lang) for one in checked])
    return {"object": "list", "data": made}


@router.get("/v1/personas/{persona_id}")
def read_persona(persona_id: str, backend: Here) -> dict[str, Any]:
    """As /v1/personas/import takes it."""
    return backend.personas.get(persona_id)


@router.patch("/v1/personas/{persona_id}")
def change_persona(persona_id: str, body: PersonaChange, backend: Here, lang: Lang) -> dict[str, Any]:
    """Fields that are not named, or null, stay as they are."""
    return backend.personas.change(persona_id, _fields(body, lang))


@router.delete("/v1/personas/{persona_id}", status_code=204)
def delete_persona(persona_id: str, backend: Here) -> None:
    """Conversations that began with it stay as they are."""
    backend.personas.delete(persona_id)


@router.get("/v1/presets")
def list_presets(backend: Here, lang: Lang) -> dict[str, Any]:
    """Those that everybody has ("builtin"), then the asker's own."""
    return {"object": "list", "data": backend.presets.listed(lang)}


@router.post("/v1/presets", status_code=201)
def create_preset(body: NewPreset, backend: Here, lang: Lang) -> dict[str, Any]:
    """Sampling fields under a name."""
    return backend.presets.create(_fields(body, lang))[0]


@router.patch("/v1/presets/{preset_id}")
def change_preset(preset_id: str, body: PresetChange, backend: Here, lang: Lang) -> dict[str, Any]:
    """Fields that are not named, or null, stay as they are."""
    return backend.presets.change(preset_id, _fields(body, lang))


@router.delete("/v1/presets/{preset_id}", status_code=204)
def delete_preset(preset_id: str, backend: Here) -> None:
    backend.presets.delete(preset_id)
