"""LangChain's own suites on what mofang.integrations.langchain offers, and on any store of ours as a VectorStore."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from served import Gateway, serving
from test_third_langchain import _Chat, _reach

from fakes import FakeLibrary, FakePool, HashEmbedder, install_model
from mofang.errors import Conflict
from mofang.integrations.langchain import ChatMofang, MofangEmbeddings, MofangRetriever, MofangVectorStore
from mofang.server.backend import LocalBackend
from mofang.settings import Settings
from store_places import PLACES
from tool_caller import ToolCaller

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def serves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("ours")
    for name in ("echo", "other"):
        install_model(home, name)
    library = FakeLibrary()
    library.create("手册", embedding_model="hash")
    pool = FakePool(ToolCaller("echo"), ToolCaller("other"), HashEmbedder())
    with serving(LocalBackend(Settings(home=home, port=0, ui_port=8643), engines=pool, library=library)) as running:
        files = [(f"{i}.txt", f"第{i}章：员工休假制度。".encode()) for i in range(5)]
        job = running.client().add_documents("手册", files)
        list(running.client().follow_job(job["id"]))
        yield running


class TestChatMofang(_Chat):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMofang

    @property
    def chat_model_params(self) -> dict[str, Any]:
        reach = _reach(self.gateway)
        return {**reach, "base_url": self.gateway.url, "model": "echo"}


class TestMofangEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _gateway(self, serves: Gateway) -> None:
        self.gateway = serves

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return MofangEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": self.gateway.url, "model": "hash"}

    @pytest.fixture
    def model(self) -> Embeddings:
        return MofangEmbeddings(**self.embedding_model_params)


class TestMofangRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _gateway(self, serves: Gateway) -> None:
        self.gateway = serves

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MofangRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"knowledge": ["手册"], "base_url": self.gateway.url}

    @property
    def retriever_query_example(self) -> str:
        return "员工有几天假"

    @pytest.fixture
    def retriever(self) -> BaseRetriever:
        return MofangRetriever(**self.retriever_constructor_params)


class TestMofangVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> VectorStore:
        return MofangVectorStore("库", self.get_embeddings(), folder=tmp_path / "knowledge")


class TestMofangVectorStoreOverChroma(VectorStoreIntegrationTests):
    """The same base with its index elsewhere."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        with PLACES["chroma"](tmp_path) as settings:
            store = MofangVectorStore(
                "库", self.get_embeddings(), folder=tmp_path / "knowledge", store="chroma", settings=settings
            )
            yield store
            store._legs.close()


class _ByLength(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(len(text)), 1.0, float("年" in text)] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_chinese_is_found_by_its_words_and_metadata_comes_back(tmp_path: Path) -> None:
    store = MofangVectorStore.from_texts(
        ["年假五天。", "打印机在三楼。", "差旅费十五日内报销。"],
        _ByLength(),
        [{"页": 3, "标签": ["人事"]}, {}, {}],
        ids=["a/年假", "b", "c"],
        folder=tmp_path,
    )
    (found,) = store.similarity_search("打印机在哪里", k=1)
    assert (found.id, found.page_content) == ("b", "打印机在三楼。")
    (found,) = store.similarity_search("年假有几天", k=1)
    assert found == Document(id="a/年假", page_content="年假五天。", metadata={"页": 3, "标签": ["人事"]})
    assert [one.id for one in store.similarity_search("年假", k=3, filter={"names": ["a/"]})] == ["a/年假"]
    assert MofangVectorStore("langchain", _ByLength(), folder=tmp_path).get_by_ids(["c", "x", "b"])[0].id == "c"
    store.delete()
    assert store.similarity_search("年假", k=3) == []


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    MofangVectorStore("库", _ByLength(), folder=tmp_path)
    with pytest.raises(Conflict):
        MofangVectorStore("库", MofangEmbeddings(base_url="http://127.0.0.1:1", model="e5"), folder=tmp_path)
