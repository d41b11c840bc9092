"""Bring a model: choose a source, fetch, check, convert, record, publish.

    home/models/.staging/<name>/      what is under way; an interrupted pull goes on from there
    home/models/.staging/<name>.lock  held while a pull runs, by whichever process

Nothing appears under its final name before its digest was compared and its header opened. Which digest that was (pinned
by us, or stated by the hub) stands in the manifest.
"""

import asyncio
import hashlib
import importlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mofang.errors import Conflict, MofangError, NoSpace, NotFound, TooLarge, Unreachable, Unreadable
from mofang.messages import Progress
from mofang.models import catalogue
from mofang.models.base import Kind, ModelRef
from mofang.models.catalogue import CatalogueEntry
from mofang.models.formats import FORMATS
from mofang.models.progress import notice, size
from mofang.models.sources import SOURCES
from mofang.models.sources.base import Fetched, RemoteFile, Source, disk_is_full
from mofang.models.store import MANIFEST, VERSION, ModelStore, check_name, now, write_manifest
from mofang.platform import memory
from mofang.strings import say

Report = Callable[[Progress], None]
CONVERTERS = {"e5": "mofang.models.formats.e5:convert"}
"""A catalogue entry's `convert` → the function (source file, target file) that makes the published file of the fetched one."""

DEFINITE = (NoSpace, Conflict)
"""Errors that another source would meet as well."""


async def pull(store: ModelStore, name: str, *, source: str | None = None, progress: Report) -> ModelRef:
    """The model `name` of the catalogue, or, under that name, what `source` ("huggingface:USER/REPO/FILE.gguf") names.

    Takes the first source that answers and goes on to the next one when it fails. Raises NotFound, Conflict (installed,
    or being pulled), Unreachable with each source's reason, Unreadable (digest, damaged), NoSpace.
    """
    check_name(name)
    entry = catalogue.load().find(name)
    sources = _sources(name, entry, source)
    await asyncio.to_thread(store.check_free, name)
    staging = store.folder / ".staging" / name
    staging.mkdir(parents=True, exist_ok=True)
    lock = FileLock(staging.with_suffix(".lock") if "." not in name else staging.with_name(f"{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Conflict("models.being_pulled", name=name) from error
    try:
        return await _pull(store, name, entry, sources, staging, progress)
    finally:
        lock.release()


async def pull_default(store: ModelStore, kind: Kind, *, progress: Report) -> ModelRef:
    """The first default of that kind that fits the free memory and whose source answers."""
    entries = catalogue.load().defaults(kind)
    if not entries:
        raise NotFound("models.no_default", kind=kind)
    free = memory().available
    n_ctx, n_slots = store.settings.n_ctx, store.settings.n_slots
    fitting = [entry for entry in entries if entry.fits(free, n_ctx, n_slots)]
    if not fitting:
        names = ", ".join(entry.name for entry in entries)
        raise TooLarge("models.nothing_fits", kind=kind, free=size(free), names=names)
    for entry in fitting[:-1]:
        try:
            return await pull(store, entry.name, progress=progress)
        except MofangError as error:
            if isinstance(error, DEFINITE):
                raise
            notice(progress, say("models.notice_default_skipped", name=entry.name, why=error.message()))
            _forget(store, entry.name)
    return await pull(store, fitting[-1].name, progress=progress)


def _forget(store: ModelStore, name: str) -> None:
    """Remove an empty staging folder; one with bytes in it stays for the next try."""
    with suppress(OSError):
        (store.folder / ".staging" / name).rmdir()


def _sources(name: str, entry: CatalogueEntry | None, wanted: str | None) -> list[tuple[str, dict[str, Any]]]:
    """(kind, spec) of each source to try, in order."""
    if wanted and ":" in wanted:
        kind, _, address = wanted.partition(":")
        if kind in ("http", "https"):
            kind, address = "url", wanted
        return [(kind, SOURCES.get(kind).parse(address))]
    entry = entry or catalogue.load().get(name)
    shared = {"file": entry.file} if entry.file and not entry.convert else {}
    known = [(each["kind"], {**shared, **each}) for each in entry.sources]
    chosen = [each for each in known if wanted in (None, each[0])]
    if not chosen:
        kinds = ", ".join(kind for kind, _ in known)
        raise NotFound("models.no_such_source", name=name, source=wanted, known=kinds)
    return chosen


async def _pull(
    store: ModelStore,
    name: str,
    entry: CatalogueEntry | None,
    sources: list[tuple[str, dict[str, Any]]],
    staging: Path,
    progress: Report,
) -> ModelRef:
    reasons: list[str] = []
    last: MofangError | None = None
    for number, (kind, spec) in enumerate(sources):
        source: Source = SOURCES.get(kind)(store.settings, spec, answers=store.hubs)
        progress(Progress("probe", 0, detail=source.where))
        try:
            if not await source.probe():
                raise Unreachable("models.hub_silent", hub=source.where, url=source.where, why="timeout")
            files, fetched = await _fetch(source, staging, progress)
        except MofangError as error:
            if isinstance(error, DEFINITE):
                raise
            reasons.append(f"{source.where}: {error.message()}")
            last = error
            if number + 1 < len(sources):
                notice(progress, say("models.notice_source_failed", source=source.where, why=error.message()))
            continue
        return await _publish(store, name, entry, kind, files, fetched, staging, progress)
    if last and len(sources) == 1:
        raise last
    raise Unreachable("models.no_source_answers", name=name, reasons="; ".join(reasons))


async def _fetch(source: Source, staging: Path, progress: Report) -> tuple[list[RemoteFile], list[Fetched]]:
    """Bring the files and compare what came with what was stated; what does not match is deleted."""
    files = await source.files()
    fetched = await source.fetch(files, staging, progress)
    for file, got in zip(files, fetched, strict=True):
        if file.sha256 and file.sha256 != got.sha256:
            got.path.unlink()
            raise Unreadable("models.digest_mismatch", file=file.name, expected=file.sha256, found=got.sha256)
        if file.size_bytes and file.size_bytes != got.size_bytes:
            got.path.unlink()
            raise Unreadable("models.size_mismatch", file=file.name, expected=file.size_bytes, found=got.size_bytes)
    return files, fetched


async def _publish(
    store: ModelStore,
    name: str,
    entry: CatalogueEntry | None,
    kind: str,
    files: list[RemoteFile],
    fetched: list[Fetched],
    staging: Path,
    progress: Report,
) -> ModelRef:
    """Convert if need be, open the header, write the manifest, give the folder its final name."""
    ready = [(got.path, got.size_bytes, got.sha256) for got in fetched]
    if entry and entry.convert:
        progress(Progress("convert", 0, detail=name))
        ready = [await asyncio.to_thread(_convert, entry, fetched[0].path, staging)]
    progress(Progress("verify", 0, detail=name))
    first = ready[0][0]
    reader = FORMATS.get("gguf")
    await asyncio.to_thread(reader.facts, first)
    found_kind = await asyncio.to_thread(reader.kind, first)
    manifest: dict[str, Any] = {
        "manifest": VERSION,
        "name": name,
        "kind": entry.kind if entry else found_kind,
        "format": "gguf",
        "file": first.name,
        "size_bytes": sum(n_bytes for _, n_bytes, _ in ready),
        "sha256": ready[0][2],
        "files": [{"name": path.name, "size_bytes": n_bytes, "sha256": digest} for path, n_bytes, digest in ready],
        "source": kind,
        "from": [
            {"url": file.url, "sha256": got.sha256, "digest_stated_by": file.stated_by or "nobody"}
            for file, got in zip(files, fetched, strict=True)
        ],
        "licence": entry.licence if entry else "",
        "pulled_at": now(),
    }
    if entry and entry.convert:
        manifest["converted_by"] = CONVERTERS[entry.convert]
    write_manifest(staging, manifest)
    kept = {MANIFEST, *(path.name for path, _, _ in ready)}
    for other in staging.iterdir():
        if other.name not in kept:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    store.publish(staging, name)
    return store.get(name)


def _convert(entry: CatalogueEntry, source: Path, staging: Path) -> tuple[Path, int, str]:
    """Blocking. (file, bytes, sha256) of what the converter made."""
    module, function = CONVERTERS[str(entry.convert)].split(":")
    target = staging / (entry.file or f"{entry.name}.gguf")
    try:
        getattr(importlib.import_module(module), function)(source, target)
    except OSError as error:
        if disk_is_full(error):
            raise NoSpace("models.disk_full", path=staging, kept=size(source.stat().st_size)) from error
        raise
    with target.open("rb") as file:
        return target, target.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
