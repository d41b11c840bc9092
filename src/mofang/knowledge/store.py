"""One knowledge base on disk: folder/base.sqlite, the truth, and folder/files/<sha256>, the originals.

Every change is one transaction: a reader sees a document's old version or its new one, whole. Whoever is killed in the
middle leaves the old state, and at most a stray file that the next writer sweeps away. Vectors and words of a document
that is gone are gone in the same commit. A connection lives for one call, so any thread may call.
"""

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from mofang import messages, platform
from mofang.errors import Busy, Conflict, Invalid, NotFound, Unreadable
from mofang.knowledge import schema
from mofang.knowledge.archive import Source
from mofang.knowledge.base import Block, Chunk, DocumentInfo, KnowledgeInfo, ParsedDocument, Span
from mofang.knowledge.loaders import suffix
from mofang.knowledge.pages import Page
from mofang.knowledge.passage import digest, indexed, passage, title_words
from mofang.knowledge.space import out_of_space
from mofang.knowledge.stores.base import Changes, Commit, Place, Row
from mofang.knowledge.stores.base import Vector as Vector
from mofang.knowledge.texts import TEXT_PART
from mofang.knowledge.texts import span as span

FILE = "base.sqlite"
BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one."""

ROWS = 5_000
"""Chunks that are handed to an index store at a time."""
MAX_REMOVED = 100_000
"""Removed chunks that are remembered; copies that are further behind are made anew."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A private copy of a file on its way in, and what it is."""

    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NewVersion:
    """Everything about a document's new version but its vectors."""

    name: str
    file: StagedFile
    document: ParsedDocument
    chunks: list[Chunk]

    def passages(self) -> Iterator[str]:
        """What is to be embedded, one a chunk; made when asked for, since a large document has hundreds of thousands."""
        return (self.passage(i) for i in range(len(self.chunks)))

    def passage(self, i: int) -> str:
        chunk, text = self.chunks[i], self.document.text
        return passage(chunk.headings, text[chunk.start : chunk.end], text[slice(*chunk.lead)] if chunk.lead else "")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A span of a document, what stands before and after it, and the block in which it begins."""

    name: str
    start: int
    end: int
    text: str
    before: str
    after: str
    block: Block | None
    n_chars: int
    """Of the whole document."""
    n_pages: int | None


class Store:
    """The base in `folder`. Raises NotFound on use when there is none; `create` makes one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE

    @classmethod
    def create(cls, folder: Path, *, title: str, embedding_model: str, store: str = "builtin") -> "Store":
        """A new, empty base named like its folder, which appears whole or not at all. Raises Conflict."""
        aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        aside.mkdir(parents=True)
        try:
            (aside / "files").mkdir()
            with closing(sqlite3.connect(aside / FILE, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                schema.migrate(connection, aside / FILE)
                connection.execute(
                    "INSERT INTO base (name, title, embedding_model, created_at, uid, store) VALUES (?, ?, ?, ?, ?, ?)",
                    (folder.name, title, embedding_model, _now(), secrets.token_hex(8), store),
                )
                connection.execute("INSERT INTO commits VALUES (0, ?, 0)", (secrets.token_hex(8),))
            # Renaming onto a folder that exists fails: the files in it make it non-empty.
            try:
                aside.rename(folder)
            except OSError as error:
                raise Conflict("knowledge.knowledge_exists", name=folder.name) from error
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if full := out_of_space(error, folder):
                raise full from error
            raise
        return cls(folder)

    # ---- transactions ----

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the base."""
        with self._connection("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One change: all of it, or none when the block raises."""
        with self._connection("BEGIN IMMEDIATE") as connection:
            yield connection
            connection.execute("UPDATE base SET version = version + 1")
            connection.execute(
                "INSERT INTO commits SELECT version, ?, (SELECT ifnull(max(id), 0) FROM chunks) FROM base",
                (secrets.token_hex(8),),
            )

    @contextmanager
    def _connection(self, begin: str) -> Iterator[sqlite3.Connection]:
        if not self.path.is_file():
            raise NotFound("knowledge.knowledge_not_found", name=self.folder.name, known="-", near="-")
        with self._faults(), closing(self._connect()) as connection:
            connection.execute(begin)
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a base that was just removed must not come back as an empty file.
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = NORMAL")
            schema.migrate(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """SQLite's errors in our words."""
        name = self.folder.name
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Busy("knowledge.base_busy", name=name, seconds=BUSY_TIMEOUT_S) from error
            if full := out_of_space(error, self.folder):
                raise full from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
                raise Unreadable("knowledge.damaged", name=name, why=error, path=self.path) from error
            raise

    # ---- what is there ----

    def info(self) -> KnowledgeInfo:
        with self.read() as connection:
            row = connection.execute("SELECT * FROM base").fetchone()
            n_documents = connection.execute("SELECT count(*) FROM documents").fetchone()[0]
            n_chunks = connection.execute("SELECT count(*) FROM chunks").fetchone()[0]
        return KnowledgeInfo(
            name=self.folder.name,
            title=row["title"],
            embedding_model=row["embedding_model"],
            store=row["store"],
            dimensions=row["dimensions"],
            n_documents=n_documents,
            n_chunks=n_chunks,
            size_bytes=_size(self.folder),
            created_at=row["created_at"],
        )

    def retitle(self, title: str) -> None:
        with self.write() as connection:
            connection.execute("UPDATE base SET title = ?", (title,))

    def embedder(self) -> tuple[str, int | None]:
        """The embedding model, and the dimensions of its vectors once there are any."""
        with self.read() as connection:
            row = connection.execute("SELECT embedding_model, dimensions FROM base").fetchone()
        return row["embedding_model"], row["dimensions"]

    def documents(self) -> list[DocumentInfo]:
        """By name."""
        query = """
            SELECT d.name, v.*, (SELECT count(*) FROM chunks WHERE version_id = v.id) AS n_chunks
            FROM documents d JOIN versions v ON v.id = d.version_id ORDER BY d.name
        """
        with self.read() as connection:
            return [_document_info(row) for row in connection.execute(query)]

    def digests_of_files(self) -> dict[str, str]:
        """Document name → sha256 of its file."""
        query = "SELECT d.name, v.sha256 FROM documents d JOIN versions v ON v.id = d.version_id"
        with self.read() as connection:
            return {row["name"]: row["sha256"] for row in connection.execute(query)}

    def original(self, document_id: str) -> Path:
        """The file as it was added. Raises NotFound."""
        with self.read() as connection:
            return self.folder / "files" / str(self._version(connection, document_id)["sha256"])

    def text(self, document_id: str, start: int, end: int | None, *, around: int) -> Excerpt:
        """A span of the document's current text. Raises Invalid for one that is not there."""
        with self.read() as connection:
            version = self._version(connection, document_id)
            length = version["n_chars"]
            end = length if end is None else end
            if not 0 <= start <= end <= length:
                raise Invalid("knowledge.bad_span", start=start, end=end, length=length)
            first, last = max(0, start - around), min(length, end + around)
            text = span(connection, version["id"], first, last)
            return Excerpt(
                name=version["name"],
                start=start,
                end=end,
                text=text[start - first : end - first],
                before=text[: start - first],
                after=text[end - first :],
                block=block_at(connection, version["id"], start, end),
                n_chars=length,
                n_pages=version["n_pages"],
            )

    def page(self, document_id: str, number: int, within: Span | None = None) -> Page:
        """A page of a document that has pages to look at, with the boxes of what stands in `within` on it.

        Raises Unreadable (knowledge.no_pictures) for other documents, NotFound for a page that is not there."""
        with self.read() as connection:
            version = self._version(connection, document_id)
            if suffix(version["name"]) != "pdf":
                raise Unreadable("knowledge.no_pictures", name=version["name"])
            if not 1 <= number <= (version["n_pages"] or 0):
                raise NotFound("knowledge.page_not_found", name=version["name"], page=number, pages=version["n_pages"])
            query = """
                SELECT box FROM blocks
                WHERE version_id = ? AND page = ? AND start < ? AND "end" > ? AND box IS NOT NULL ORDER BY n
            """
            first, last = within or (0, 0)
            rows = connection.execute(query, (version["id"], number, last, first))
            boxes = [tuple(json.loads(row["box"])) for row in rows]
        return Page(self.folder / "files" / str(version["sha256"]), version["name"], number, boxes)

    def chunks(self, document_id: str, start: int, n: int) -> list[Chunk]:
        """The first n chunks that reach beyond `start`, in the order of the text."""
        query = """
            SELECT start, "end", headings, lead FROM chunks WHERE version_id = ? AND "end" > ? ORDER BY start, id LIMIT ?
        """
        with self.read() as connection:
            rows = connection.execute(query, (self._version(connection, document_id)["id"], start, n))
            return [
                Chunk(row["start"], row["end"], tuple(json.loads(row["headings"])), _lead(row["lead"])) for row in rows
            ]

    def vectors(self, digests: Iterable[bytes]) -> dict[bytes, Vector]:
        """Those of the digests whose vectors are known."""
        found: dict[bytes, Vector] = {}
        with self.read() as connection:
            for one in set(digests):
                row = connection.execute("SELECT vector FROM vectors WHERE digest = ?", (one,)).fetchone()
                if row is not None:
                    found[one] = np.frombuffer(row[0], dtype=np.float32)
        return found

    def _version(self, connection: sqlite3.Connection, document_id: str) -> sqlite3.Row:
        query = "SELECT v.*, d.name FROM documents d JOIN versions v ON v.id = d.version_id WHERE d.id = ?"
        row: sqlite3.Row | None = connection.execute(query, (document_id,)).fetchone()
        if row is None:
            raise NotFound("knowledge.document_not_found", name=self.folder.name, document=document_id)
        return row

    # ---- changes ----

    def stage(self, path: Source) -> StagedFile:
        """A private copy of `path` under the base, so that it cannot change while it is read. `discard` it after."""
        folder = self.folder / "incoming"
        folder.mkdir(exist_ok=True)
        target = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        sha256, size = hashlib.sha256(), 0
        try:
            with path.open("rb") as source, target.open("wb") as copy:
                while piece := source.read(1 << 20):
                    sha256.update(piece)
                    size += len(piece)
                    copy.write(piece)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return StagedFile(target, sha256.hexdigest(), size)

    def discard(self, file: StagedFile) -> None:
        """Remove the private copy; no harm when it went into the base."""
        file.path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed writers left: originals without a document, private copies of processes that are gone."""
        with self._connection("BEGIN IMMEDIATE") as connection:
            if connection.execute("SELECT count(*) FROM removed").fetchone()[0] > MAX_REMOVED:
                connection.execute("DELETE FROM removed")
                connection.execute("UPDATE base SET removed_from = version")
            kept = {row[0] for row in connection.execute("SELECT sha256 FROM versions")}
            for file in (self.folder / "files").iterdir():
                if file.name not in kept:
                    file.unlink(missing_ok=True)
        for file in (self.folder / "incoming").glob("*"):
            pid = file.name.split("-")[0]
            if pid.isdigit() and not platform.is_alive(int(pid)):
                file.unlink(missing_ok=True)

    def put(
        self, new: NewVersion, vectors: Mapping[bytes, Vector], embedder: tuple[str, int] | None
    ) -> Literal["added", "replaced"]:
        """Commit a document's version with all it needs in place of the one before.

        vectors: by digest of passage. embedder: name and dimensions of what made them; None when all were known here.

        Raises Conflict (knowledge.other_embedding_model, knowledge.other_dimensions) when the vectors are not of the
        base's own embedder.
        """
        rows = _chunk_rows(new)  # cutting words takes its time: not while others wait for the lock
        dropped: list[bytes] = []
        with self.write() as connection:
            if embedder is not None:
                self._fix_embedder(connection, *embedder)
            row = connection.execute("SELECT id, version_id FROM documents WHERE name = ?", (new.name,)).fetchone()
            document_id = row["id"] if row else secrets.token_hex(8)
            if row:
                dropped = _drop_version(connection, row["version_id"])
            else:
                connection.execute("INSERT INTO documents (id, name) VALUES (?, ?)", (document_id, new.name))
            version_id = _insert_version(connection, document_id, new)
            _insert_chunks(connection, version_id, rows, vectors)
            connection.execute("UPDATE documents SET version_id = ? WHERE id = ?", (version_id, document_id))
            _drop_unused_vectors(connection, dropped)
            new.file.path.replace(self.folder / "files" / new.file.sha256)
        return "replaced" if row else "added"

    def remove(self, document_id: str) -> None:
        """The document, its text, chunks, words, vectors; then its original. Raises NotFound."""
        with self.write() as connection:
            version = self._version(connection, document_id)
            dropped = _drop_version(connection, version["id"])
            connection.execute("DELETE FROM documents WHERE id = ?", (document_id,))
            _drop_unused_vectors(connection, dropped)
        self.sweep()

    def _fix_embedder(self, connection: sqlite3.Connection, model: str, dimensions: int) -> None:
        """The first vectors decide the model behind "auto" and the dimensions; later ones must agree."""
        row = connection.execute("SELECT embedding_model, dimensions FROM base").fetchone()
        check_embedder(self.folder.name, row["embedding_model"], row["dimensions"], model, dimensions)
        connection.execute("UPDATE base SET embedding_model = ?, dimensions = ?", (model, dimensions))


# ---- what index stores copy ----


def place(store: Store, connection: sqlite3.Connection) -> Place:
    """Where a store keeps its copy of this base."""
    row = connection.execute("SELECT uid, dimensions FROM base").fetchone()
    return Place(row["uid"], store.folder, row["dimensions"])


def commit(connection: sqlite3.Connection) -> Commit:
    """The state that this transaction sees."""
    row = connection.execute("SELECT version, token FROM base JOIN commits USING (version)").fetchone()
    return Commit(row["version"], row["token"])


def is_commit(connection: sqlite3.Connection, one: Commit) -> bool:
    """Whether this base was once in that state, seen from this transaction."""
    row = connection.execute("SELECT token FROM commits WHERE version = ?", (one.version,)).fetchone()
    return row is not None and row["token"] == one.token


def changes(connection: sqlite3.Connection, held: Commit | None, *, vectors: bool = True) -> Changes:
    """What leads from `held` to the state of this transaction. vectors: False leaves them empty."""
    since = connection.execute("SELECT removed_from FROM base").fetchone()[0]
    whole = held is None or held.version < since or not is_commit(connection, held)
    removed: list[int] = []
    first = 0
    if held is not None and not whole:
        query = "SELECT chunk_id FROM removed WHERE version > ?"
        removed = [row[0] for row in connection.execute(query, (held.version,))]
        row = connection.execute("SELECT last_chunk FROM commits WHERE version = ?", (held.version,)).fetchone()
        first = row[0]
    n = connection.execute("SELECT count(*) FROM chunks WHERE id > ?", (first,)).fetchone()[0]
    return Changes(commit(connection), whole, removed, n, _rows(connection, first, vectors))


def _rows(connection: sqlite3.Connection, after: int, vectors: bool) -> Iterator[list[Row]]:
    query = """
        SELECT c.id, v.document_id, w.words, {} FROM chunks c JOIN versions v ON v.id = c.version_id
        JOIN words w ON w.chunk_id = c.id {} WHERE c.id > ? ORDER BY c.id
    """
    joined = ("x.vector", "JOIN vectors x ON x.digest = c.digest") if vectors else ("x''", "")
    cursor = connection.execute(query.format(*joined), (after,))
    while rows := cursor.fetchmany(ROWS):
        yield [Row(row[0], row[1], row[2], np.frombuffer(row[3], "<f4")) for row in rows]


def check_embedder(name: str, fixed_model: str, fixed_dimensions: int | None, model: str, dimensions: int) -> None:
    """Raises Conflict when an embedder is not the one that the base was made with."""
    if fixed_model not in ("auto", model):
        raise Conflict("knowledge.other_embedding_model", name=name, fixed=fixed_model, given=model)
    if fixed_dimensions not in (None, dimensions):
        raise Conflict("knowledge.other_dimensions", name=name, fixed=fixed_dimensions, given=dimensions, model=model)


def block_at(connection: sqlite3.Connection, version_id: int, start: int, end: int | None = None) -> Block | None:
    """The block in which `start` lies, or the first one after it (before `end`); None when there is none.

    Its place is that of `start`: further rows of a table are further lines.
    """
    query = """
        SELECT * FROM blocks WHERE version_id = ? AND "end" > ? AND start < ? ORDER BY "end" LIMIT 1
    """
    row = connection.execute(query, (version_id, start, (1 << 62) if end is None else end)).fetchone()
    if row is None:
        return None
    return Block(
        row["kind"],
        row["start"],
        row["end"],
        tuple(json.loads(row["headings"])),
        row["page"],
        tuple(json.loads(row["box"])) if row["box"] else None,
        _place(connection, row, start),
        _lead(row["lead"]),
    )


def _place(connection: sqlite3.Connection, block: sqlite3.Row, start: int) -> messages.Place:
    place = messages.Place(paragraph=block["n"] + 1, **json.loads(block["place"] or "{}"))
    if place.row is None or block["kind"] != "table" or start <= block["start"]:
        return place
    return replace(place, row=place.row + span(connection, block["version_id"], block["start"], start).count("\n"))


def _lead(row: str | None) -> Span | None:
    return tuple(json.loads(row)) if row else None


def _insert_version(connection: sqlite3.Connection, document_id: str, new: NewVersion) -> int:
    document = new.document
    cursor = connection.execute(
        """
        INSERT INTO versions (document_id, sha256, size_bytes, title, text, n_chars, n_pages, notes, added_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
        """,
        (
            document_id,
            new.file.sha256,
            new.file.size_bytes,
            document.title,
            "",
            len(document.text),
            document.n_pages,
            json.dumps(document.notes, ensure_ascii=False),
            _now(),
        ),
    )
    version_id = int(cursor.lastrowid or 0)
    connection.executemany(
        "INSERT INTO texts VALUES (?, ?, ?)",
        (
            (version_id, start, document.text[start : start + TEXT_PART])
            for start in range(0, len(document.text), TEXT_PART)
        ),
    )
    connection.executemany(
        """
        INSERT INTO blocks (version_id, n, kind, start, "end", headings, page, box, place, lead)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        """,
        (
            (
                version_id,
                n,
                block.kind,
                block.start,
                block.end,
                json.dumps(block.headings, ensure_ascii=False),
                block.page,
                json.dumps([round(edge, 1) for edge in block.box]) if block.box else None,
                _json_of(block.place),
                json.dumps(block.lead) if block.lead else None,
            )
            for n, block in enumerate(document.blocks)
        ),
    )
    return version_id


def _json_of(place: messages.Place | None) -> str | None:
    """What is set of it; the paragraph is the block's own number."""
    said = {name: value for name, value in asdict(place).items() if value and name != "paragraph"} if place else {}
    return json.dumps(said, ensure_ascii=False) if said else None


@dataclass(frozen=True, slots=True)
class _ChunkRow:
    chunk: Chunk
    digest: bytes
    words: str


def _chunk_rows(new: NewVersion) -> list[_ChunkRow]:
    title = title_words(new.document.title, new.name)
    return [
        _ChunkRow(chunk, digest(text), indexed(title, text))
        for chunk, text in zip(new.chunks, new.passages(), strict=True)
    ]


def _insert_chunks(
    connection: sqlite3.Connection, version_id: int, rows: Sequence[_ChunkRow], vectors: Mapping[bytes, Vector]
) -> None:
    for row in rows:
        headings = json.dumps(row.chunk.headings, ensure_ascii=False)
        cursor = connection.execute(
            'INSERT INTO chunks (version_id, start, "end", headings, digest, lead) VALUES (?, ?, ?, ?, ?, ?)',
            (
                version_id,
                row.chunk.start,
                row.chunk.end,
                headings,
                row.digest,
                json.dumps(row.chunk.lead) if row.chunk.lead else None,
            ),
        )
        connection.execute(
            "INSERT OR IGNORE INTO vectors VALUES (?, ?)", (row.digest, vectors[row.digest].astype("<f4").tobytes())
        )
        connection.execute("INSERT INTO words VALUES (?, ?)", (cursor.lastrowid, row.words))


def _drop_version(connection: sqlite3.Connection, version_id: int) -> list[bytes]:
    """Remove a version with its blocks, chunks and words; returns the digests of its chunks."""
    rows = connection.execute("SELECT id, digest FROM chunks WHERE version_id = ?", (version_id,)).fetchall()
    version = connection.execute("SELECT version + 1 FROM base").fetchone()[0]
    connection.executemany("INSERT INTO removed VALUES (?, ?)", [(version, row["id"]) for row in rows])
    connection.execute("UPDATE documents SET version_id = NULL WHERE version_id = ?", (version_id,))
    connection.execute("DELETE FROM versions WHERE id = ?", (version_id,))
    return [row["digest"] for row in rows]


def _drop_unused_vectors(connection: sqlite3.Connection, digests: Iterable[bytes]) -> None:
    """Of these digests, the vectors that no chunk needs any more."""
    connection.executemany(
        "DELETE FROM vectors WHERE digest = ? AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.digest = vectors.digest)",
        [(one,) for one in digests],
    )


def _document_info(row: sqlite3.Row) -> DocumentInfo:
    return DocumentInfo(
        id=row["document_id"],
        name=row["name"],
        title=row["title"],
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        n_chars=row["n_chars"],
        n_pages=row["n_pages"],
        n_chunks=row["n_chunks"],
        added_at=row["added_at"],
        notes=tuple(json.loads(row["notes"])),
    )


def _size(folder: Path) -> int:
    """Bytes; a file that goes away meanwhile has none."""
    size = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
