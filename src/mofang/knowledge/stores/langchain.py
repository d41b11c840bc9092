"""Any LangChain VectorStore: MOFANG_LANGCHAIN_STORE names a function of one's own that makes it.  [langchain]

    def make(embedding: Embeddings, name: str) -> VectorStore      # "package.module:make"

`name` differs from base to base. Our vectors are handed over by an `Embeddings` that knows them by text, so nothing is
embedded twice. The commit is an entry of its own in the store, named COMMIT, so it is lost when the store is. A filter
has no common form among these stores: limited searches are done by the built-in store.
"""

import importlib
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from mofang.errors import Invalid
from mofang.knowledge.stores.base import Changes, Commit, Place, Vector
from mofang.knowledge.stores.faults import asking
from mofang.settings import Settings

COMMIT = "mofang-commit"
BATCH = 500


class Known(Embeddings):
    """Vectors by text: the entries' texts are the chunks' numbers."""

    def __init__(self) -> None:
        self.vectors: dict[str, list[float]] = {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.vectors[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.vectors[text]


class LangChainStore:
    """One VectorStore, made anew by the user's function."""

    filters = False

    def __init__(self, place: Place, make: Callable[[Embeddings, str], VectorStore]) -> None:
        self._place, self._make = place, make
        self._known = Known()
        self._opened: VectorStore | None = None
        self._dimensions = place.dimensions
        self._lock = threading.Lock()

    def held(self) -> Commit | None:
        with self._lock, asking("langchain"):
            found = self._store().get_by_ids([COMMIT])
            return Commit.read(found[0].metadata.get("commit")) if found else None

    def sync(self, changes: Changes) -> None:
        with self._lock, asking("langchain"):
            if changes.whole:
                self._forget()
            self._delete(list(changes.removed))
            last = self._last()
            for batch in changes.added:
                self._dimensions, last = len(batch[0].vector), max(last, batch[-1].id)
                for start in range(0, len(batch), BATCH):
                    some = batch[start : start + BATCH]
                    self._put(
                        {str(row.id): row.vector.tolist() for row in some},
                        [{"document": row.document_id} for row in some],
                    )
            if self._dimensions is not None:
                # Any vector will do: the entry's id is no number, and searches pass it over.
                anywhere = [-1.0] + [0.0] * (self._dimensions - 1)
                self._put({COMMIT: anywhere}, [{"commit": str(changes.commit), "last": last}])

    def dense(self, vector: Vector, k: int, documents: Collection[str] | None) -> list[int]:
        assert documents is None
        with self._lock, asking("langchain"):
            found = self._store().similarity_search_by_vector(vector.tolist(), k=k + 1)
            return [int(one.page_content) for one in found if one.page_content.isdigit()][:k]

    def drop(self) -> None:
        with self._lock, asking("langchain"):
            self._forget()

    def close(self) -> None:
        self._opened = None

    # ---- inside ----

    def _store(self) -> VectorStore:
        if self._opened is None:
            self._opened = self._make(self._known, f"mofang_{self._place.uid}")
        return self._opened

    def _put(self, vectors: dict[str, list[float]], metadatas: list[dict[str, Any]]) -> None:
        self._known.vectors = vectors
        self._store().add_texts(list(vectors), metadatas=metadatas, ids=list(vectors))
        self._known.vectors = {}

    def _delete(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), BATCH):
            self._store().delete([str(one) for one in ids[start : start + BATCH]])

    def _last(self) -> int:
        found = self._store().get_by_ids([COMMIT])
        return int(found[0].metadata.get("last", 0)) if found else 0

    def _forget(self) -> None:
        """There is no common way to empty one: every number that was ever put in is taken out."""
        self._delete(range(1, self._last() + 1))
        self._store().delete([COMMIT])


def open_store(place: Place, settings: Settings) -> LangChainStore:
    """Raises Invalid when MOFANG_LANGCHAIN_STORE names no function."""
    module, _, name = settings.langchain_store.partition(":")
    right = "my_package.my_module:make"
    if not module or not name:
        raise Invalid("knowledge.bad_store_url", setting="MOFANG_LANGCHAIN_STORE", right=right)
    with asking("langchain"):
        make = getattr(importlib.import_module(module), name)
    return LangChainStore(place, make)
