"""Chroma: embedded, in a folder of the base, or its HTTP server where MOFANG_CHROMA_URL names one.  [chroma]

One collection a base; the commit stands in its metadata. Chroma offers no ranked keyword search outside its cloud, so
words stay with ours. The embedded one allows one process, which is what owns the home.
"""

import threading
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from mofang.errors import Invalid
from mofang.knowledge.stores.base import Changes, Commit, Place, Vector
from mofang.knowledge.stores.faults import asking, secrets_of
from mofang.settings import Settings

FOLDER = "chroma"
TIMEOUT_S = 30
EXPANSION = 200
"""Nodes that a search of the graph keeps (HNSW's ef)."""


class Chroma:
    """The collection mofang_<uid>."""

    filters = True

    def __init__(self, place: Place, url: str, token: str) -> None:
        self._name = f"mofang_{place.uid}"
        self._place, self._url, self._token = place, url, token
        self._held: Any = None
        self._lock = threading.Lock()

    def held(self) -> Commit | None:
        with self._asking():
            collection = self._collection()
            return Commit.read((collection.metadata or {}).get("commit")) if collection else None

    def sync(self, changes: Changes) -> None:
        with self._asking():
            if changes.whole:
                self._drop()
            client = self._client()
            collection = client.get_or_create_collection(
                self._name,
                embedding_function=None,
                configuration={"hnsw": {"space": "ip", "ef_search": EXPANSION}},
            )
            most = client.get_max_batch_size()
            for start in range(0, len(changes.removed), most):
                collection.delete(ids=[str(one) for one in changes.removed[start : start + most]])
            for batch in changes.added:
                for start in range(0, len(batch), most):
                    some = batch[start : start + most]
                    collection.upsert(
                        ids=[str(row.id) for row in some],
                        embeddings=[row.vector for row in some],
                        metadatas=[{"document": row.document_id} for row in some],
                    )
            collection.modify(metadata={"commit": str(changes.commit)})

    def dense(self, vector: Vector, k: int, documents: Collection[str] | None) -> list[int]:
        where = {} if documents is None else {"where": {"document": {"$in": sorted(documents)}}}
        with self._asking():
            collection = self._collection()
            if collection is None or (where and not documents):
                return []
            found = collection.query(query_embeddings=[vector], n_results=k, include=[], **where)
            return [int(one) for one in found["ids"][0]]

    def drop(self) -> None:
        with self._asking():
            self._drop()

    def close(self) -> None:
        with self._lock:
            client, self._held = self._held, None
        if client is not None:
            client.close()

    # ---- inside ----

    def _asking(self) -> Any:
        return asking("chroma", secrets=(*secrets_of(self._url), self._token))

    def _client(self) -> Any:
        import chromadb
        from chromadb.config import Settings as ChromaSettings

        with self._lock:
            if self._held is None:
                # Connections are not kept: its client (1.5) never closes those that are.
                quiet = ChromaSettings(anonymized_telemetry=False, chroma_http_max_keepalive_connections=0)
                if self._url:
                    parts = urlsplit(self._url)
                    secure = parts.scheme == "https"
                    self._held = chromadb.HttpClient(
                        host=parts.hostname or "",
                        port=parts.port or (443 if secure else 8000),
                        ssl=secure,
                        headers={"Authorization": f"Bearer {self._token}"} if self._token else None,
                        settings=quiet,
                    )
                    # It would wait for an answer without end, and has no setting for that.
                    session = getattr(getattr(self._held, "_server", None), "_session", None)
                    if session is not None:
                        session.timeout = TIMEOUT_S
                else:
                    self._held = chromadb.PersistentClient(path=str(self._place.folder / FOLDER), settings=quiet)
            return self._held

    def _collection(self) -> Any:
        from chromadb.errors import NotFoundError

        try:
            return self._client().get_collection(self._name, embedding_function=None)
        except NotFoundError:
            return None

    def _drop(self) -> None:
        from chromadb.errors import NotFoundError

        try:
            self._client().delete_collection(self._name)
        except NotFoundError:
            return


def open_store(place: Place, settings: Settings) -> Chroma:
    """Raises Invalid for an address that is none; connects on first use."""
    url = settings.chroma_url.get_secret_value() if settings.chroma_url else ""
    token = settings.chroma_token.get_secret_value() if settings.chroma_token else ""
    if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise Invalid("knowledge.bad_store_url", setting="MOFANG_CHROMA_URL", right="http://127.0.0.1:8000")
    return Chroma(place, url, token)
