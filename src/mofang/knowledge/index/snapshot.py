"""A segment on disk, beside the base: read by mapping it into memory, written aside and then named.

    <base>/index/current.json        what is current: its commit, and size and checksum of every file
    <base>/index/<pid>-<random>/*.npy      the arrays of index/segment.py
    <base>/index/<pid>-<random>/graph.usearch

A snapshot is a cache. One that does not name a commit of this base, or of which a byte differs from what was written,
is not used. Every file is read once when it is opened, to check it, which also brings it into the system's cache.
"""

import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mofang import platform
from mofang.knowledge.index.postings import Postings, build, merge
from mofang.knowledge.index.segment import Segment, number
from mofang.knowledge.space import disk_full, out_of_space
from mofang.knowledge.stores.base import Commit, Row

FORMAT = 1
FOLDER = "index"
GRAPH = "graph.usearch"
BLOCK = 20_000
"""Chunks whose words are sorted at a time."""
CONNECTIVITY, EXPANSION = 16, 96
"""HNSW's M and efConstruction; see docs/decisions/0004."""

_ARRAYS = ("ids", "document", "hashes", "starts", "rows", "counts", "lengths", "matrix")
_log = logging.getLogger(__name__)


def read(folder: Path, is_ours: Callable[[Commit], bool], *, vectors: bool) -> tuple[Commit, Segment] | None:
    """The current snapshot of the base in `folder`, mapped; None when there is none that can be trusted.

    is_ours: whether a commit is one of the base's own. vectors: False leaves them and the graph unread.
    """
    if not exists(folder):
        return None
    try:
        about = json.loads((folder / FOLDER / "current.json").read_text(encoding="utf-8"))
        commit = Commit.read(about["commit"])
        if about["format"] != FORMAT or commit is None or not is_ours(commit):
            return None
        place = folder / FOLDER / about["folder"]
        wanted = [name for name in about["files"] if vectors or name not in ("matrix.npy", GRAPH)]
        for name in wanted:
            if _checksum(place / name) != about["files"][name]:
                raise ValueError(f"{name} is not as it was written")
        return commit, _mapped(place, wanted)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        _log.warning("the index of %s cannot be used, so search there is exact: %s", folder.name, error)
        return None


def write(
    folder: Path,
    commit: Commit,
    rows: Iterable[list[Row]],
    n: int,
    dimensions: int,
    *,
    graph_from: int,
    anew: bool,
    report: Callable[[int, int], None],
    all_read: Callable[[], None] = lambda: None,
) -> None:
    """A snapshot of n rows, in the place of the current one. From `graph_from` rows on it gets a graph.

    anew: the graph is made from nothing, not from the current one.
    report(done, total): of the chunks, each counted twice where a graph is built.
    all_read: called when no more rows are needed; the graph of a large base takes minutes after that.
    Raises NoSpace (knowledge.disk_full).
    """
    name = f"{os.getpid()}-{secrets.token_hex(8)}"
    place = folder / FOLDER / name
    try:
        place.mkdir(parents=True)
        total = 2 * n if n >= graph_from else n
        segment = _collect(place, rows, n, dimensions, lambda done: report(done, total))
        all_read()
        if n >= graph_from:
            graph = _graph(folder, segment, anew, lambda done: report(n + done, total))
            try:
                graph.save(place / GRAPH)
            except RuntimeError as error:  # "Failed to serialize into stream": it could not be written
                raise disk_full(folder) from error
        files = {path.name: _checksum(path) for path in sorted(place.iterdir())}
        about = {"format": FORMAT, "commit": str(commit), "folder": name, "files": files}
        aside = place / "current.json"  # inside, so that it goes with the rest when it cannot be written
        aside.write_text(json.dumps(about), encoding="utf-8")
        aside.replace(folder / FOLDER / "current.json")
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if full := out_of_space(error, folder):
            raise full from error
        raise
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove snapshots that are not current, but what another process may be writing. A mapping stays readable until it
    is let go."""
    try:
        current = json.loads((folder / FOLDER / "current.json").read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, KeyError):
        current = ""
    for path in (folder / FOLDER).glob("*"):
        pid = path.name.split("-")[0]
        writing = pid.isdigit() and int(pid) != os.getpid() and platform.is_alive(int(pid))
        if path.is_dir() and path.name != current and not writing:
            shutil.rmtree(path, ignore_errors=True)


def drop(folder: Path) -> None:
    """Remove it."""
    (folder / FOLDER / "current.json").unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def exists(folder: Path) -> bool:
    return (folder / FOLDER / "current.json").is_file()


# ---- inside ----


def _collect(
    place: Path, batches: Iterable[list[Row]], n: int, dimensions: int, report: Callable[[int], None]
) -> Segment:
    ids = np.empty(n, np.int64)
    of: list[str] = []
    parts: list[Postings] = []
    texts: list[str] = []
    done = 0
    # Written, not mapped: where the disk is full, writing into a mapped file ends the process (SIGBUS).
    with (place / "matrix.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, dimensions)}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            span = slice(done, done + len(batch))
            ids[span] = [row.id for row in batch]
            file.write(np.stack([row.vector for row in batch]).astype("<f4", copy=False).tobytes())
            of += [row.document_id for row in batch]
            texts += [row.words for row in batch]
            done = span.stop
            if len(texts) >= BLOCK:
                parts.append(build(texts))
                texts = []
            report(done)
    matrix = np.load(place / "matrix.npy", mmap_mode="r")
    postings = merge([*parts, build(texts)])
    documents, document = number(of)
    arrays: dict[str, Any] = {"ids": ids, "document": document}
    arrays |= {name: getattr(postings, name) for name in ("hashes", "starts", "rows", "counts", "lengths")}
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    (place / "documents.json").write_text(json.dumps(documents), encoding="utf-8")
    return Segment(ids, documents, document, postings, matrix)


def _graph(folder: Path, segment: Segment, anew: bool, report: Callable[[int], None]) -> Any:
    """HNSW over the segment: the current graph, without what is gone and with what is new, or one from nothing."""
    from usearch.index import Index  # a megabyte of machine code that small bases never need

    assert segment.matrix is not None
    ids, matrix = segment.ids, segment.matrix
    graph = Index(ndim=matrix.shape[1], metric="ip", dtype="bf16", connectivity=CONNECTIVITY, expansion_add=EXPANSION)
    fresh = np.ones(len(ids), np.bool_)
    before = None if anew else read(folder, lambda _: True, vectors=True)
    if before is not None and before[1].graph is not None and before[1].matrix is not None:
        old = before[1]
        gone = old.ids[~np.isin(old.ids, ids, assume_unique=True)]
        known = np.isin(ids, old.ids, assume_unique=True)
        # A graph through many deleted nodes searches badly: then a new one is made. So is it after a restored backup.
        some, those = np.flatnonzero(known)[::97], np.flatnonzero(np.isin(old.ids, ids, assume_unique=True))[::97]
        same = np.array_equal(matrix[some], before[1].matrix[those])
        if len(gone) <= 0.1 * len(old.ids) and same:
            graph = before[1].graph.copy()  # into memory, so that it can change
            graph.expansion_add = EXPANSION
            if len(gone):
                graph.remove(gone.astype(np.uint64))
            fresh = ~known
    places = np.flatnonzero(fresh)
    for start in range(0, len(places), BLOCK):
        some = places[start : start + BLOCK]
        graph.add(ids[some].astype(np.uint64), matrix[some])
        report(len(ids) - len(places) + start + len(some))
    return graph


def _mapped(place: Path, names: list[str]) -> Segment:
    arrays: dict[str, Any] = {
        name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS if f"{name}.npy" in names
    }
    documents = json.loads((place / "documents.json").read_text(encoding="utf-8"))
    postings = Postings(*(arrays[name] for name in ("hashes", "starts", "rows", "counts", "lengths")))
    graph = None
    if GRAPH in names:
        from usearch.index import Index

        graph = Index.restore(place / GRAPH, view=True)
        if graph is None:
            raise ValueError(f"{GRAPH} is no graph")
    return Segment(arrays["ids"], documents, arrays["document"], postings, arrays.get("matrix"), graph)


def _checksum(path: Path) -> list[int]:
    """[bytes, CRC-32]: a fault of a disk or a file cut short, not an enemy who may write here."""
    size, value = 0, 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            size += len(piece)
            value = zlib.crc32(piece, value)
    return [size, value]
