"""What every index store offers. A store holds a copy of what SQLite holds, for search alone, and may be lost at any time.

A store names the commit that it is a copy of; `Changes` bring it to another. It returns ids of chunks and nothing else:
whether a chunk is still there, its text and its exact cosine are read from SQLite, so a stale store can never answer
with what was deleted.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of a base. `token` is random: a base restored from a backup may count to the same version again."""

    version: int
    token: str

    def __str__(self) -> str:
        return f"{self.version}:{self.token}"

    @classmethod
    def read(cls, text: object) -> "Commit | None":
        """The commit that `str` wrote; None for anything else."""
        version, _, token = str(text).partition(":")
        return cls(int(version), token) if version.isdigit() and token else None


@dataclass(frozen=True, slots=True)
class Row:
    """A chunk as stores keep it. `words` are cut already and joined by spaces; `vector` has length 1, shape (d,)."""

    id: int
    document_id: str
    words: str
    vector: Vector


@dataclass(frozen=True, slots=True)
class Changes:
    """What leads from the commit a store holds to `commit`. `whole`: forget everything first, `added` is all there is.

    `added` comes in batches, ascending by id, and can be read once, while the transaction behind it is open.
    """

    commit: Commit
    whole: bool
    removed: Sequence[int]
    n_added: int
    added: Iterator[list[Row]]

    @property
    def size(self) -> int:
        return len(self.removed) + self.n_added


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store keeps the copy of one base."""

    uid: str
    """Of the base, 16 hex digits, random: a name for collections, tables and indices on a server."""
    folder: Path
    """The base's own folder, for stores that keep files."""
    dimensions: int | None
    """Of its vectors; None before there are any."""


@dataclass(frozen=True, slots=True)
class Keywords:
    """What a keyword search found: ids best first, in how many chunks each word occurs, and how many chunks there are."""

    ids: list[int] = field(default_factory=list)
    frequencies: Mapping[str, int] = field(default_factory=dict)
    n: int = 0


class IndexStore(Protocol):
    """The copy of one base. Methods block, and any thread may call them; they raise Unreachable when a server is silent.

    `documents` limits a search to chunks of these documents, inside the store: a limited search returns k of them when
    there are as many. None: no limit.
    """

    filters: bool
    """Whether `dense` can limit itself to documents; otherwise it is never asked to."""

    def held(self) -> Commit | None:
        """The commit this is a copy of; None when there is none, or it is not whole."""

    def sync(self, changes: Changes) -> None:
        """Become a copy of `changes.commit`. Idempotent: after a crash in the middle the same changes come again."""

    def dense(self, vector: Vector, k: int, documents: Collection[str] | None) -> list[int]:
        """About the k chunks with the highest cosine to `vector` (d,), nearest first."""

    def drop(self) -> None:
        """Forget everything; no error when there is nothing."""

    def close(self) -> None:
        """Free memory and connections."""


@runtime_checkable
class KeywordStore(Protocol):
    """What a store offers besides, when its keyword search is to be used in place of ours."""

    def keywords(self, words: Sequence[str], k: int, documents: Collection[str] | None) -> Keywords:
        """The k best chunks that hold any of the words, by BM25."""
