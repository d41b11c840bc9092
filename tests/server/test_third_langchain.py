"""LangChain's own suites for chat models and embeddings, through langchain-openai, against our HTTP layer.

Behind it stands a scripted engine that calls tools (tests/tool_caller.py). Not run: what fetches files from the
Internet (images, audio, PDF), and what sends Anthropic's blocks to an OpenAI route.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from served import Gateway, serving

from fakes import FakeLibrary, FakePool, HashEmbedder, install_model
from mofang.server.backend import LocalBackend
from mofang.settings import Settings
from tool_caller import ToolCaller

pytestmark = [
    # LangChain's own: it hands pydantic values of other types than it declares, and is asked for pydantic 1 by a test.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1"),
]


@pytest.fixture(scope="module")
def serves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("langchain")
    for name in ("echo", "other"):
        install_model(home, name)
    pool = FakePool(ToolCaller("echo"), ToolCaller("other"), HashEmbedder())
    settings = Settings(home=home, port=0, ui_port=8643)
    with serving(LocalBackend(settings, engines=pool, library=FakeLibrary())) as running:
        yield running


def _reach(gateway: Gateway) -> dict[str, Any]:
    apart = httpx.Limits(max_keepalive_connections=0)  # nobody closes LangChain's clients, so no connection may stay
    return {
        "base_url": f"{gateway.url}/v1",
        "api_key": "none",
        "http_client": httpx.Client(trust_env=False, timeout=20, limits=apart),
        "http_async_client": httpx.AsyncClient(trust_env=False, timeout=20, limits=apart),
        "max_retries": 0,
    }


class _Chat(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _gateway(self, serves: Gateway) -> None:
        self.gateway = serves

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**_reach(self.gateway), "model": "echo", "stream_usage": True}

    @pytest.fixture
    def model(self, request: Any) -> BaseChatModel:
        extra = getattr(request, "param", None) or {}
        return self.chat_model_class(**{**self.standard_chat_model_params, **self.chat_model_params, **extra})

    supports_json_mode = True
    has_tool_choice = True
    has_structured_output = True
    returns_usage_metadata = True
    supports_model_override = True
    model_override_value = "other"
    supported_usage_metadata_details: Any = {  # noqa: RUF012
        "invoke": ["cache_read_input", "reasoning_output"],
        "stream": ["cache_read_input", "reasoning_output"],
    }

    def _say(self, stream: bool, **fields: Any) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params, **fields)
        if not stream:
            return model.invoke("你好")  # type: ignore[return-value]
        pieces = list(model.stream("你好"))
        whole = pieces[0]
        for piece in pieces[1:]:
            whole = whole + piece  # type: ignore[assignment]
        return whole  # type: ignore[return-value]

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._say(stream)

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._say(stream, reasoning_effort="low")

    @pytest.mark.xfail(reason="measures time; bench/ does that", run=False)
    def test_stream_time(self) -> None: ...  # type: ignore[override]


class TestThroughChatCompletions(_Chat):
    pass


class TestThroughResponses(_Chat):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True, "stream_usage": False}

    @pytest.mark.xfail(reason="the Responses API has no stop sequences", run=False)
    def test_stop_sequence(self, model: BaseChatModel) -> None: ...


class TestEmbeddings(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _gateway(self, serves: Gateway) -> None:
        self.gateway = serves

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # It cuts long texts by OpenAI's own tokens otherwise, for which it fetches their vocabulary.
        return {**_reach(self.gateway), "model": "hash", "check_embedding_ctx_length": False}

    @pytest.fixture
    def model(self) -> OpenAIEmbeddings:
        return OpenAIEmbeddings(**self.embedding_model_params)
