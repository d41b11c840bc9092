"""The words of this room: document, block, chunk, hit, and what an ingest did.

A document has one canonical text. Blocks, chunks and citations are character spans over it, so page, place, heading
and highlight can always be derived, also when chunks overlap or cross a page.
"""

from dataclasses import dataclass, field
from typing import Literal

from mofang.messages import Box, Place

Kind = Literal["heading", "paragraph", "list", "table", "code", "qa"]
"""A "table" has a row a line. A "qa" is a question with its answers, kept together; `lead` is the question."""
Span = tuple[int, int]
"""Of the canonical text, end exclusive."""


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of structure: text[start:end] of the canonical text, end exclusive."""

    kind: Kind
    start: int
    end: int
    headings: tuple[str, ...] = ()
    """Titles from the outermost heading to the one that this block stands under."""
    page: int | None = None
    """From 1."""
    box: Box | None = None
    place: Place | None = None
    """Sheet, row or slide, of its first line."""
    lead: Span | None = None
    """What every piece cut out of this block is read with: a table's header row, the question of a "qa"."""


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """What a loader returns. `notes` are things a person should know: pages without text, a guessed encoding…"""

    text: str
    blocks: list[Block]
    title: str = ""
    notes: tuple[str, ...] = ()
    n_pages: int | None = None
    """None for formats without pages."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is embedded and searched: text[start:end], under `headings`, after `lead` when that is not inside it."""

    start: int
    end: int
    headings: tuple[str, ...] = ()
    lead: Span | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result, best first. `score` is fused (higher is closer); the legs' own ranks say why it is here."""

    knowledge: str
    document_id: str
    title: str
    text: str
    start: int
    end: int
    page: int | None
    headings: tuple[str, ...]
    score: float
    bm25_rank: int | None
    dense_rank: int | None
    cosine: float | None
    coverage: float = 0.0
    """The share of the query's information (by inverse document frequency) that the passage's words hold."""
    box: Box | None = None
    place: Place | None = None
    lead: str = ""
    """The header row of the table, or the question, that `text` was cut away from."""
    rerank_score: float | None = None
    """What a reranker gave it, comparable within one search; None: none read it."""


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    id: str
    name: str
    """Relative path as the user gave it."""
    title: str
    sha256: str
    size_bytes: int
    n_chars: int
    n_pages: int | None
    n_chunks: int
    added_at: str
    """ISO 8601, UTC."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileReport:
    """What happened to one file of an ingest."""

    name: str
    status: Literal["added", "replaced", "unchanged", "failed", "unpacked"]
    """ "unpacked": an archive, whose files have reports of their own."""
    n_chunks: int = 0
    n_embedded: int = 0
    """Chunks that had to be embedded; the others kept their vectors."""
    error: str = ""
    hint: str = ""
    code: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AddReport:
    files: list[FileReport] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> list[FileReport]:
        return [file for file in self.files if file.status == "failed"]


@dataclass(frozen=True, slots=True)
class KnowledgeInfo:
    name: str
    title: str
    embedding_model: str
    dimensions: int | None
    n_documents: int
    n_chunks: int
    size_bytes: int
    created_at: str
    store: str = "builtin"
    """What its legs search in: a name of STORES."""
