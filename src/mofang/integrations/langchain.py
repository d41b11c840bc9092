"""Mofang in LangChain: chat model, embeddings, retriever over the gateway; a base as VectorStore.  [langchain]

    from mofang.integrations.langchain import ChatMofang, MofangEmbeddings, MofangRetriever, MofangVectorStore

The first three speak HTTP with a running gateway (`mofang up`), found by the settings of this machine unless `base_url`
says otherwise. The VectorStore opens the base's folder itself, with any LangChain `Embeddings`: what it holds is an
ordinary base, which the gateway serves as well.
"""

import json
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from mofang.client import Client
from mofang.errors import Conflict, NotFound
from mofang.knowledge import retrieve
from mofang.knowledge.base import Block, Chunk, Hit, ParsedDocument
from mofang.knowledge.legs import Legs
from mofang.knowledge.passage import digest
from mofang.knowledge.store import NewVersion, Store, Vector
from mofang.knowledge.within import Filter
from mofang.settings import Settings, load

SUFFIX = ".langchain"
"""Of the names of documents that came from LangChain; their originals are JSON with text and metadata."""


# ---- over the gateway ----


class _Reach(BaseModel):
    """Where the gateway is."""

    model_config = ConfigDict(extra="forbid")

    base_url: str = Field(default_factory=lambda: _address(load()))
    """Without /v1, such as http://127.0.0.1:8642."""
    api_key: SecretStr | None = Field(default_factory=lambda: load().api_key)

    def _client(self) -> Client:
        return Client(self.base_url, self.api_key.get_secret_value() if self.api_key else None)


class MofangEmbeddings(_Reach, Embeddings):
    """The gateway's embedding model; queries and passages are told apart, as models such as e5 want it."""

    model: str = "auto"
    batch_size: int = Field(default=64, ge=1)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text."""
        return self._embed(texts, "passage")

    def embed_query(self, text: str) -> list[float]:
        return self._embed([text], "query")[0]

    def _embed(self, texts: list[str], input_type: str) -> list[list[float]]:
        found: list[list[float]] = []
        with closing(self._client()) as client:
            for start in range(0, len(texts), self.batch_size):
                some = texts[start : start + self.batch_size]
                body = {"model": self.model, "input": some, "input_type": input_type}
                found += [one["embedding"] for one in client.request("POST", "/v1/embeddings", body)["data"]]
        return found


class MofangRetriever(BaseRetriever):
    """The k best passages of some bases, by both legs. Metadata names knowledge, document_id, title, page, headings,
    start, end and score."""

    knowledge: list[str]
    k: int = Field(default=8, ge=1, le=100)
    filter: dict[str, list[str]] | None = None
    """Limits the search to documents: {"names": ["手册/"], "types": ["pdf"], "documents": [ids]}."""
    base_url: str = Field(default_factory=lambda: _address(load()))
    api_key: SecretStr | None = Field(default_factory=lambda: load().api_key)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        reach = _Reach(base_url=self.base_url, api_key=self.api_key)
        limits: dict[str, Any] = {"filter": self.filter} if self.filter else {}
        with closing(reach._client()) as client:
            hits = client.search(self.knowledge, query, k or self.k, **limits)
        return [Document(page_content=hit.pop("text"), metadata=hit) for hit in hits]


class ChatMofang(ChatOpenAI):
    """LangChain's OpenAI chat model at the gateway: its model "auto" and its address unless told otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        """base_url is the gateway's, with or without /v1."""
        given = dict(given)
        url = str(given.pop("base_url", None) or given.pop("openai_api_base", None) or _address(load())).rstrip("/")
        given["base_url"] = url if url.endswith("/v1") else f"{url}/v1"
        if not (given.get("api_key") or given.get("openai_api_key")):
            key = load().api_key
            given["api_key"] = key.get_secret_value() if key else "none"
        if not (given.get("model") or given.get("model_name")):
            given["model"] = "auto"
        given.setdefault("stream_usage", True)
        return given

    @property
    def _llm_type(self) -> str:
        return "mofang"


def _address(settings: Settings) -> str:
    host = settings.host if settings.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    return f"http://{host}:{settings.port}"


# ---- a base in this process ----


class MofangVectorStore(VectorStore):
    """One base as a VectorStore. Each LangChain document is a document of the base, found by its id, in one chunk.

    embedding: makes all vectors. Its `model` attribute, or else its class, is remembered as the base's embedder.
    folder: where bases lie; this home's when None. store: a name of STORES, for a base that is made now.

    Raises Conflict when the base was made with another embedder.
    """

    def __init__(
        self,
        name: str,
        embedding: Embeddings,
        *,
        folder: Path | str | None = None,
        store: str = "builtin",
        settings: Settings | None = None,
    ) -> None:
        settings = settings or load()
        self._embedding = embedding
        self._model = str(getattr(embedding, "model", "") or type(embedding).__name__)
        self._legs = Legs(settings)
        self._store = Store(Path(folder or settings.home / "knowledge") / name)
        if not self._store.path.is_file():
            self._store.folder.parent.mkdir(parents=True, exist_ok=True)
            Store.create(self._store.folder, title="", embedding_model=self._model, store=store)
        fixed, _ = self._store.embedder()
        if fixed not in ("auto", self._model):
            raise Conflict("knowledge.other_embedding_model", name=name, fixed=fixed, given=self._model)

    @property
    def embeddings(self) -> Embeddings:
        return self._embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        name: str = "langchain",
        **options: Any,
    ) -> "MofangVectorStore":
        store = cls(name, embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """Returns the ids; one that is there already is replaced. Metadata must be JSON."""
        texts = list(texts)
        names = [one or secrets.token_hex(8) for one in (ids or [None] * len(texts))]
        abouts = metadatas or [{} for _ in texts]
        vectors = np.asarray(self._embedding.embed_documents(texts) if texts else [], np.float32)
        for name, text, about, vector in zip(names, texts, abouts, vectors, strict=True):
            self._put(name, text, about, vector)
        self._store.sweep()
        self._legs.settle(self._store, lambda *_: None)
        return names

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        """Those of the ids that are there; all that came from LangChain when None."""
        for _name, document_id in self._documents(ids):
            with suppress(NotFound):  # another process was quicker
                self._store.remove(document_id)
        self._legs.settle(self._store, lambda *_: None)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """In the order of `ids`; those that are not there are left out."""
        found = dict(self._documents(list(ids)))
        return [self._document(found[one]) for one in ids if one in found]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: dict[str, list[str]] | None = None, **_: Any
    ) -> list[Document]:
        """The k best by both legs, keywords and vectors. filter: as in MofangRetriever."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter=filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: dict[str, list[str]] | None = None, **_: Any
    ) -> list[tuple[Document, float]]:
        """With the cosine of each (higher is closer); the order is that of both legs together."""
        hits = self._hits(query, np.asarray(self._embedding.embed_query(query), np.float32), k, filter)
        return [(self._found(hit), hit.cosine if hit.cosine is not None else 0.0) for hit in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: dict[str, list[str]] | None = None, **_: Any
    ) -> list[Document]:
        """The k with the highest cosine."""
        return [self._found(hit) for hit in self._hits("", np.asarray(embedding, np.float32), k, filter)]

    def _select_relevance_score_fn(self) -> Any:
        return lambda cosine: (1 + cosine) / 2

    # ---- inside ----

    def _hits(self, query: str, vector: Vector, k: int, limits: dict[str, list[str]] | None) -> list[Hit]:
        within = Filter(**{name: tuple(values) for name, values in limits.items()}) if limits else None
        model, _ = self._store.embedder()
        unit = _unit(vector)
        asked = {model: retrieve.Asked(unit, unit)}
        return retrieve.search([self._store], query, asked, k=k, legs=self._legs, within=within)

    def _put(self, name: str, text: str, about: dict[str, Any], vector: Vector) -> None:
        original = json.dumps({"id": name, "page_content": text, "metadata": about}, ensure_ascii=False)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
            file.write(original)
            file.flush()
            staged = self._store.stage(Path(file.name))
        try:
            document = ParsedDocument(text, [Block("paragraph", 0, len(text))] if text else [])
            new = NewVersion(name + SUFFIX, staged, document, [Chunk(0, len(text))])
            vectors = {digest(passage): _unit(vector) for passage in new.passages()}
            self._store.put(new, vectors, (self._model, len(vector)))
        finally:
            self._store.discard(staged)

    def _documents(self, ids: list[str] | None) -> list[tuple[str, str]]:
        """(LangChain's id, the base's id of the document) of those that are there."""
        with self._store.read() as connection:
            rows = connection.execute("SELECT name, id FROM documents").fetchall()
        wanted = None if ids is None else set(ids)
        every = ((row["name"].removesuffix(SUFFIX), row["id"]) for row in rows if row["name"].endswith(SUFFIX))
        return [(name, one) for name, one in every if wanted is None or name in wanted]

    def _document(self, document_id: str) -> Document:
        about = json.loads(self._store.original(document_id).read_text(encoding="utf-8"))
        return Document(id=about["id"], page_content=about["page_content"], metadata=about["metadata"])

    def _found(self, hit: Hit) -> Document:
        if hit.title.endswith(SUFFIX):
            return self._document(hit.document_id)
        about = {
            "document_id": hit.document_id,
            "title": hit.title,
            "page": hit.page,
            "headings": list(hit.headings),
            "start": hit.start,
            "end": hit.end,
        }
        return Document(id=f"{hit.document_id}:{hit.start}", page_content=hit.text, metadata=about)


def _unit(vector: Vector) -> Vector:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)
