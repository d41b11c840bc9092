"""Keys for others: listed, given out, ended. Only the owner may."""

from typing import Any

from fastapi import APIRouter

from mofang.server.keys import Limits, shape
from mofang.server.routes.here import Here, Owner
from mofang.wire import KeyRequest

router = APIRouter(tags=["keys"], dependencies=[Owner])


@router.get("/v1/keys")
def list_keys(backend: Here) -> dict[str, Any]:
    """Every key that was given out, the ended ones too; never the secret."""
    moment = backend.keys.now()
    return {"object": "list", "data": [shape(key, moment) for key in backend.keys.list()]}


@router.post("/v1/keys", status_code=201)
def create(body: KeyRequest, backend: Here) -> dict[str, Any]:
    """A new key. The field `key` is the secret: this answer is the only place where it ever stands."""
    limits = Limits(body.requests_per_minute, body.tokens_per_minute, body.concurrent)
    key, secret = backend.keys.create(body.name, limits=limits, models=body.models, expires_in_s=body.expires_in_s)
    return {**shape(key, backend.keys.now()), "key": secret}


@router.delete("/v1/keys/{key_id}")
def revoke(key_id: str, backend: Here) -> dict[str, Any]:
    """End a key at once."""
    return shape(backend.keys.revoke(key_id), backend.keys.now())
