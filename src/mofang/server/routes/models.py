"""The models on disk and in memory, and the catalogue of those that can be brought."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query

from mofang.errors import Forbidden, Invalid
from mofang.platform import memory
from mofang.server import described, pulls, shapes
from mofang.server.auth import check_owner, is_loopback
from mofang.server.faults import fault
from mofang.server.neighbours import MOST
from mofang.server.routes.here import Here, Lang, Owner
from mofang.server.visit import current
from mofang.wire import AddRequest, LoadRequest, PullRequest, RemoteRequest

router = APIRouter(tags=["models"])


@router.get("/v1/models")
def list_models(backend: Here, lang: Lang) -> dict[str, Any]:
    """Every model that can be used by name, and what lies there and cannot be used; to a key, its own models."""
    key = current().key
    seen = [ref for ref in backend.models.list() if key is None or key.permits(ref.name)]
    problems = [] if key and key.models else [fault(problem, lang) for problem in backend.models.problems()]
    return {"object": "list", "data": [described.model(backend, ref) for ref in seen], "problems": problems}


@router.get("/v1/catalogue")
def catalogue(backend: Here) -> dict[str, Any]:
    """The models that Mofang offers to bring."""
    installed = {ref.name for ref in backend.models.list()}
    available = memory().available
    entries = [shapes.entry(entry, installed, backend.settings, available) for entry in backend.catalogue()]
    return {"object": "list", "data": entries}


@router.post("/v1/models/pull", status_code=202, dependencies=[Owner])
async def pull(body: PullRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """Start bringing a model; the job of the same pull, when one runs or is paused: paused, it goes on."""
    return pulls.start(backend, body, lang).shape()


@router.post("/v1/models/add", dependencies=[Owner])
def add(body: AddRequest, backend: Here) -> dict[str, Any]:
    """Use a model file where it lies. Only while the gateway is this machine's own: it opens paths for the caller."""
    if not is_loopback(backend.settings.host):
        raise Forbidden("server.add_needs_loopback", host=backend.settings.host)
    return described.model(backend, backend.models.add(Path(body.path).expanduser(), body.name, base=body.base))


@router.post("/v1/models/remote", dependencies=[Owner])
def add_remote(body: RemoteRequest, backend: Here) -> dict[str, Any]:
    """Use a model of another server. Only while the gateway is this machine's own: it sends a key of its environment."""
    if not is_loopback(backend.settings.host):
        raise Forbidden("server.add_needs_loopback", host=backend.settings.host)
    return described.model(backend, backend.models.add_remote(**body.model_dump()))


@router.get("/v1/models/{name}")
def details(name: str, backend: Here, n_ctx: int | None = Query(default=None, ge=1, le=1 << 22)) -> dict[str, Any]:
    """Facts from the file, and the memory that it takes at `n_ctx` tokens (the configured context by default)."""
    ref = backend.models.get(name)
    backend.engines.check_permitted(ref.name)
    facts = backend.models.facts(ref)
    context = n_ctx or min(backend.settings.n_ctx, facts.n_ctx_train or backend.settings.n_ctx)
    needed = backend.models.memory(ref, context, backend.settings.least_slots)
    shown = shapes.details(ref, facts, needed, context, backend.models.ancestry(ref))
    return {**shapes.model(ref, facts, described.loaded(backend)), **shown}


@router.get("/v1/models/{name}/neighbours")
def neighbours(
    name: str,
    backend: Here,
    token: str | None = Query(default=None, min_length=1),
    id: int | None = Query(default=None, ge=0),
    n: int = Query(default=10, ge=1, le=MOST),
) -> dict[str, Any]:
    """The tokens whose rows of the embedding matrix are most like that of one token, by cosine, read from the model's
    file: nothing is loaded. The token by its text, or by its id."""
    if (token is None) == (id is None):
        raise Invalid("server.token_or_id", param="token")
    ref = backend.models.resolve(name, "chat") if name == "auto" else backend.models.get(name)
    backend.engines.check_permitted(ref.name)
    path = backend.models.get(ref.base).path if ref.base else ref.path
    wanted: str | int = token if token is not None else int(id or 0)
    return {"object": "list", "model": ref.name, **backend.neighbours.of(path, ref.name, wanted, n)}


@router.post("/v1/models/{name}/load")
async def load(name: str, backend: Here, body: LoadRequest | None = None) -> dict[str, Any]:
    """Bring it into memory and wait until it is there; pinned, it stays until it is unloaded. To load it anew, or in so
    many copies, is for the owner."""
    wish = body or LoadRequest()
    changes: dict[str, Any] = {"reload": True} if wish.reload else {}
    if wish.replicas or wish.max_replicas:
        changes["replicas"] = (wish.replicas or 1, wish.max_replicas)
    if changes:
        check_owner()
    return shapes.engine(await backend.engines.load(name, pin=wish.pin, keep_alive=wish.keep_alive, **changes))


@router.post("/v1/models/{name}/unload", status_code=204)
async def unload(name: str, backend: Here) -> None:
    """Free its memory and unpin it; nothing happens when it is not loaded."""
    ref = await asyncio.to_thread(backend.models.get, name)
    await backend.engines.unload(ref.base or ref.name)


@router.delete("/v1/models/{name}", status_code=204, dependencies=[Owner])
async def remove(name: str, backend: Here) -> None:
    """Unload and delete it; a file that was added in place is only forgotten."""
    await asyncio.to_thread(backend.models.get, name)
    await backend.engines.unload(name)
    await asyncio.to_thread(backend.models.remove, name)
