"""Trainings and exports: recipes to fill in, runs to start, watch, stop and resume, files of examples to teach with.

The work is done by processes of their own (mofang.runs), which closing a page, or the gateway, does not end. Starting
one opens paths for the caller, so that is only for callers of this machine.
"""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from mofang.data import FILES, FORMATS
from mofang.data.preview import survey
from mofang.data.readers import Layout, rows
from mofang.errors import Forbidden, MofangError, NotFound, Unreadable
from mofang.models.store import check_name
from mofang.recipes import EXPORTERS, LAUNCHERS, METHODS, TOKENIZERS, launcher_of, parse, recipe_class
from mofang.runs import SHOWN, Run, Runs, State, need
from mofang.server import uploads
from mofang.server.auth import is_loopback
from mofang.server.backend import Backend
from mofang.server.routes.here import Here, Lang, Owner
from mofang.strings import speaking
from mofang.tokenizer import load
from mofang.wire import ResumeRequest, RunRequest

router = APIRouter(tags=["runs"])

DATASET_SUFFIXES = tuple(f".{name}" for name in FILES)
PREVIEWED = 3


def _runs(backend: Backend) -> Runs:
    return Runs(backend.settings.home)


def _datasets(backend: Backend) -> Path:
    return backend.settings.home / "datasets"


def _shape(run: Run, state: State | None = None) -> dict[str, Any]:
    state = state or run.state()
    made = state.result.get("model")
    shape = {name: getattr(state, name) for name in ("id", "kind", "title", "status", "created_at", "started_at")}
    return {
        **shape, "ended_at": state.ended_at, "progress": state.progress, "result": state.result, "model": made,
        "error": state.error, "notes": state.notes,
    }  # fmt: skip


@router.get("/v1/recipes")
def recipes(lang: Lang) -> dict[str, Any]:
    """Every method, exporter and work on a tokenizer with the JSON schema of its fields: `title` is a field's name, `help`
    what it is for."""
    return {
        kind: {"training": table is METHODS, "exports": table is EXPORTERS, "schema": recipe_class(kind).form(lang)}
        for table in (METHODS, EXPORTERS, TOKENIZERS)
        for kind in table
    }


@router.get("/v1/launchers")
def launchers(lang: Lang) -> dict[str, Any]:
    """Where a training can be computed, in the same form; the first is the one that is used where none is named."""
    return {name: {"schema": LAUNCHERS.get(name).form(lang)} for name in LAUNCHERS}


@router.get("/v1/runs")
def list_runs(backend: Here, training: bool | None = None, kind: str | None = None) -> dict[str, Any]:
    """Every run, the newest first; `training` keeps trainings, or all others, only, and `kind` those of one recipe."""
    shapes = [_shape(run) for run in _runs(backend).list()]
    wanted = [
        one
        for one in shapes
        if (training is None or (one["kind"] in METHODS.names()) is training) and kind in (None, one["kind"])
    ]
    return {"object": "list", "data": wanted}


@router.post("/v1/runs", status_code=202, dependencies=[Owner])
def start(body: RunRequest, backend: Here, lang: Lang) -> dict[str, Any]:
    """Start a training or an export, which speaks the asker's language. All faults of the recipe come back at once."""
    _only_here(backend)
    recipe = parse(recipe_class(body.kind), _with_datasets(body.recipe, backend))
    launcher = launcher_of(body.launcher) if body.launcher else None
    need(type(recipe), launcher)
    run = _runs(backend).create(recipe)
    with speaking(lang):
        run.start(launcher)
    return _shape(run)


@router.get("/v1/runs/{run_id}")
def details(run_id: str, backend: Here) -> dict[str, Any]:
    """With its recipe, its launcher as it was last started, the end of its log, and what the model said on the way
    (recipe field sample_every)."""
    run = _runs(backend).get(run_id)
    recipe = run.recipe().model_dump(mode="json")
    return {
        **_shape(run), "recipe": recipe, "launcher": run.launcher().named(), "log": run.tail(40), "samples": run.samples(),
    }  # fmt: skip


@router.get("/v1/runs/{run_id}/metrics")
def metrics(run_id: str, backend: Here, after: int = Query(default=-1)) -> dict[str, Any]:
    """The measured lines of steps beyond `after`."""
    return {"object": "list", "data": _runs(backend).get(run_id).metrics(after)}


@router.get("/v1/runs/{run_id}/files/{name}", response_class=FileResponse)
def file(run_id: str, name: str, backend: Here) -> FileResponse:
    """What a run left for people: report.md, picture.png."""
    return FileResponse(_runs(backend).get(run_id).shown(name), media_type=SHOWN.get(name))


@router.post("/v1/runs/{run_id}/stop", dependencies=[Owner])
def stop(run_id: str, backend: Here) -> dict[str, Any]:
    """It saves what it has, then ends; this waits for that."""
    run = _runs(backend).get(run_id)
    return _shape(run, run.stop())


@router.post("/v1/runs/{run_id}/resume", status_code=202, dependencies=[Owner])
def resume(run_id: str, backend: Here, lang: Lang, body: ResumeRequest | None = None) -> dict[str, Any]:
    """Go on from the last checkpoint, as it was started before or as `launcher` says."""
    _only_here(backend)
    run = _runs(backend).get(run_id)
    with speaking(lang):
        run.start(run.relaunched(body.launcher if body else {}))
    return _shape(run)


@router.delete("/v1/runs/{run_id}", status_code=204, dependencies=[Owner])
def remove(run_id: str, backend: Here) -> None:
    _runs(backend).remove(run_id)


# ---- files of examples ----


@router.get("/v1/datasets")
def datasets(backend: Here) -> dict[str, Any]:
    """Files of examples that were brought here."""
    folder = _datasets(backend)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [
        {"name": file.name, "size_bytes": file.stat().st_size}
        for file in files
        if file.suffix.lower() in DATASET_SUFFIXES
    ]
    return {"object": "list", "data": found, "formats": FORMATS.names()}


@router.post("/v1/datasets", status_code=201, openapi_extra=uploads.OPENAPI)
async def add_datasets(request: Request, backend: Here) -> dict[str, Any]:
    """Bring files of examples (multipart field "files"). Each is read whole first: a broken row is named, and
    nothing is kept. A file of the same name is replaced."""
    upload = await uploads.receive(request, backend.uploads / "datasets", limit_mb=backend.settings.upload_limit_mb)
    try:
        return {"object": "list", "data": await asyncio.to_thread(_keep, backend, upload.files)}
    finally:
        await asyncio.to_thread(upload.discard)


@router.get("/v1/datasets/{name}/preview")
def preview(name: str, backend: Here, model: str = "auto", max_length: int = 1024) -> dict[str, Any]:
    """The first examples as a training on `model` would see them: ids, and which of them are learned."""
    file = _dataset(backend, name)
    ref = backend.models.resolve(model, "chat") if model == "auto" else backend.models.get(model)
    counts, _ = survey([file], load(ref.path), max_length=max_length, n=PREVIEWED)
    return {"name": name, "model": ref.name, **counts}


def _keep(backend: Backend, files: list[tuple[str, Path]]) -> list[dict[str, Any]]:
    read_ = []
    for name, path in files:
        plain = check_name(Path(name).name)
        if Path(plain).suffix.lower() not in DATASET_SUFFIXES:
            raise NotFound("data.unknown_suffix", path=name, known=", ".join(DATASET_SUFFIXES))
        named = path.with_name(plain)
        path.rename(named)
        try:
            count = sum(1 for _ in rows(named, Layout()))
            if not count:
                raise Unreadable("data.empty", path=plain)
            read_.append((named, count))
        except MofangError as error:
            error.values["path"] = plain  # the file as the user knows it, not where it lies for now
            raise
    folder = _datasets(backend)
    folder.mkdir(parents=True, exist_ok=True)
    for path, _ in read_:
        path.replace(folder / path.name)
    return [{"name": path.name, "n_examples": count} for path, count in read_]


def _dataset(backend: Backend, name: str) -> Path:
    path = _datasets(backend) / name
    if Path(name).name != name or not path.is_file():
        raise NotFound("data.no_such_file", path=name)
    return path


def _with_datasets(recipe: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """Names of datasets as paths; everything else stays for the recipe to judge."""
    found = dict(recipe)
    for field in ("data", "eval_data", "texts"):
        value = found.get(field)
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list):
            found[field] = [_place(backend, name) if isinstance(name, str) else name for name in names]
    return found


def _place(backend: Backend, name: str) -> str:
    path = _datasets(backend) / name
    return str(path) if Path(name).name == name and path.is_file() else name


def _only_here(backend: Backend) -> None:
    if not is_loopback(backend.settings.host):
        raise Forbidden("server.run_needs_loopback", host=backend.settings.host)
