"""OpenSearch at MOFANG_OPENSEARCH_URL: vectors by k-NN, words by its BM25 over what we cut.  [opensearch]

One index a base, mofang_<uid>; the commit stands in the mapping's _meta, written last. Words are cut by us and only
parted at spaces there, so that Chinese is searched as it is in the built-in store. Tested against a stand-in that checks
every request by OpenSearch's published API; it has not met a real server yet.
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from mofang.errors import Invalid
from mofang.knowledge.stores.base import Changes, Commit, Keywords, Place, Vector
from mofang.knowledge.stores.faults import asking, secrets_of
from mofang.settings import Settings

TIMEOUT_S = 30
MAX_TERMS = 65_536
"""Values that one terms query takes (index.max_terms_count)."""


class OpenSearchStore:
    """The index mofang_<uid>."""

    filters = True

    def __init__(self, place: Place, url: str) -> None:
        self._index = f"mofang_{place.uid}"
        self._dimensions = place.dimensions
        self._url = url
        self._held: Any = None
        self._lock = threading.Lock()

    def held(self) -> Commit | None:
        with self._asking():
            client = self._client()
            if not client.indices.exists(index=self._index):
                return None
            mapping = client.indices.get_mapping(index=self._index)[self._index]["mappings"]
            return Commit.read(mapping.get("_meta", {}).get("commit"))

    def sync(self, changes: Changes) -> None:
        with self._asking():
            client = self._client()
            if changes.whole:
                client.indices.delete(index=self._index, ignore_unavailable=True)
            made = not changes.whole and client.indices.exists(index=self._index)
            self._bulk([{"delete": {"_id": str(one)}} for one in changes.removed] if made else [])
            for batch in changes.added:
                if not made:
                    client.indices.create(index=self._index, body=_mapping(len(batch[0].vector)))
                    made = True
                lines: list[dict[str, Any]] = []
                for row in batch:
                    lines.append({"index": {"_id": str(row.id)}})
                    lines.append({"document": row.document_id, "words": row.words, "vector": row.vector.tolist()})
                self._bulk(lines)
            if not made:
                client.indices.create(index=self._index, body=_mapping(self._dimensions))
            client.indices.refresh(index=self._index)
            client.indices.put_mapping(index=self._index, body={"_meta": {"commit": str(changes.commit)}})

    def dense(self, vector: Vector, k: int, documents: Collection[str] | None) -> list[int]:
        about: dict[str, Any] = {"vector": vector.tolist(), "k": k}
        if documents is not None:
            about["filter"] = _only(documents)
        body = {"size": k, "_source": False, "query": {"knn": {"vector": about}}}
        return _ids(self._search(body))

    def keywords(self, words: Sequence[str], k: int, documents: Collection[str] | None) -> Keywords:
        query: dict[str, Any] = {"match": {"words": {"query": " ".join(words)}}}
        if documents is not None:
            query = {"bool": {"must": [query], "filter": [_only(documents)]}}
        counted = {str(place): {"term": {"words": {"value": word}}} for place, word in enumerate(words)}
        body = {
            "size": k,
            "_source": False,
            "query": query,
            # How often each word occurs in the whole base, whatever was asked for.
            "aggs": {"base": {"global": {}, "aggs": {"words": {"filters": {"filters": counted}}}}},
        }
        found = self._search(body)
        if "aggregations" not in found:  # there is no such index yet
            return Keywords()
        base = found["aggregations"]["base"]
        buckets = base["words"]["buckets"]
        frequencies = {word: int(buckets[str(place)]["doc_count"]) for place, word in enumerate(words)}
        return Keywords(_ids(found), frequencies, int(base["doc_count"]))

    def drop(self) -> None:
        with self._asking():
            self._client().indices.delete(index=self._index, ignore_unavailable=True)

    def close(self) -> None:
        with self._lock:
            client, self._held = self._held, None
        if client is not None:
            client.close()

    # ---- inside ----

    def _asking(self) -> Any:
        return asking("opensearch", secrets=secrets_of(self._url))

    def _client(self) -> Any:
        from opensearchpy import OpenSearch

        with self._lock:
            if self._held is None:
                parts = urlsplit(self._url)
                user = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
                secure = parts.scheme == "https"
                self._held = OpenSearch(
                    hosts=[{"host": parts.hostname, "port": parts.port or (443 if secure else 9200)}],
                    http_auth=user,
                    use_ssl=secure,
                    timeout=TIMEOUT_S,
                )
            return self._held

    def _search(self, body: dict[str, Any]) -> Any:
        with self._asking():
            return self._client().search(index=self._index, body=body, ignore_unavailable=True)

    def _bulk(self, lines: list[dict[str, Any]]) -> None:
        for some in _pieces(lines):
            done = self._client().bulk(index=self._index, body=some)
            failed = [one for item in done["items"] for one in item.values() if one["status"] not in (200, 201, 404)]
            if failed:
                raise ValueError(f"{len(failed)} of {len(done['items'])} entries refused: {failed[0].get('error')}")


def _pieces(lines: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Requests of a few megabytes; an entry is one line or two, and two stay together."""
    for start in range(0, len(lines), 1_000):
        yield lines[start : start + 1_000]


def _mapping(dimensions: int | None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "document": {"type": "keyword"},
        "words": {"type": "text", "analyzer": "whitespace"},
    }
    if dimensions is not None:
        method = {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"}
        fields["vector"] = {"type": "knn_vector", "dimension": dimensions, "method": method}
    return {"settings": {"index": {"knn": True}}, "mappings": {"dynamic": "strict", "properties": fields}}


def _only(documents: Collection[str]) -> dict[str, Any]:
    names = sorted(documents)
    parts = [{"terms": {"document": names[at : at + MAX_TERMS]}} for at in range(0, max(1, len(names)), MAX_TERMS)]
    return parts[0] if len(parts) == 1 else {"bool": {"should": parts, "minimum_should_match": 1}}


def _ids(found: Any) -> list[int]:
    return [int(hit["_id"]) for hit in found["hits"]["hits"]]


def open_store(place: Place, settings: Settings) -> OpenSearchStore:
    """Raises Invalid without an address; connects on first use."""
    url = settings.opensearch_url.get_secret_value() if settings.opensearch_url else ""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        right = "https://user:password@host:9200"
        raise Invalid("knowledge.bad_store_url", setting="MOFANG_OPENSEARCH_URL", right=right)
    return OpenSearchStore(place, url)
