"""Completions, embeddings, rerank, models: the other routes that OpenAI's clients know."""

import base64
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from served import Gateway, wait_until

from fakes import FakePool, ScriptedEngine, spoken
from mofang.messages import Delta, Usage
from mofang.server.routes.completions import legacy_logprobs


def official(gateway: Gateway, *, strict: bool = True) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key="none",
        _strict_response_validation=strict,
        http_client=httpx.Client(trust_env=False, timeout=20),
        max_retries=0,
    )


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with official(gateway) as client:
        yield client


@pytest.fixture
def loose(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """Where the client's own types are wrong about OpenAI itself."""
    with official(gateway, strict=False) as client:
        yield client


# ---- completions ----


def test_one_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="从前有座山")
    assert answer.choices[0].text == "山座有前从" and answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("cmpl-") and answer.usage and answer.usage.prompt_tokens == 5


def test_several_prompts_keep_their_places(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt=["甲乙", "丙丁戊", "🙂"], echo=True)
    assert {c.index: c.text for c in answer.choices} == {0: "甲乙乙甲", 1: "丙丁戊戊丁丙", 2: "🙂🙂"}
    assert answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 6)


def test_token_ids_as_prompt(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    assert client.completions.create(model="echo", prompt=[20320, 22909]).choices[0].text == "好你"
    both = client.completions.create(model="echo", prompt=[[20320], [22909]])
    assert {c.index: c.text for c in both.choices} == {0: "你", 1: "好"}
    assert engine.asked[0][0] == [20320, 22909]


def test_streamed_completions_side_by_side(loose: openai.OpenAI) -> None:
    # The client's own type knows no finish_reason of null, which OpenAI sends until the last chunk.
    chunks = list(
        loose.completions.create(
            model="echo", prompt=["甲乙", "丙"], stream=True, stream_options={"include_usage": True}
        )
    )
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "乙甲", 1: "丙"}
    assert chunks[-1].choices == [] and chunks[-1].usage and chunks[-1].usage.total_tokens == 6


def test_the_failure_of_one_prompt_ends_all(client: openai.OpenAI, engine: ScriptedEngine, gateway: Gateway) -> None:
    engine.script = [Delta("一"), 0.05, ValueError("boom")]
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="echo", prompt=["甲", "乙"])
    assert caught.value.code == "internal" and "boom" not in str(caught.value.body)
    wait_until(lambda: engine.open == 0)


def test_a_client_that_leaves_several_prompts(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("一"), gateway.event()]
    with gateway.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json={"prompt": ["甲", "乙", "丙"]}, timeout=0.5)
    wait_until(lambda: engine.open == 0 and engine.closed_early == 3)


def test_logprobs_have_the_old_shape(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    entries = [{"token": t, "logprob": -1.0, "top_logprobs": [{"token": t, "logprob": -1.0}]} for t in ("你好", "吗")]
    engine.script = [
        *(Delta(e["token"], logprobs={"content": [e]}) for e in entries),  # type: ignore[arg-type]
        Delta(finish_reason="length", usage=Usage(1, 2)),
    ]
    choice = client.completions.create(model="echo", prompt="x", logprobs=1).choices[0]
    assert choice.logprobs and choice.logprobs.tokens == ["你好", "吗"] and choice.finish_reason == "length"
    assert choice.logprobs.token_logprobs == [-1.0, -1.0] and choice.logprobs.text_offset == [0, 2]
    assert choice.logprobs.top_logprobs == [{"你好": -1.0}, {"吗": -1.0}]
    assert legacy_logprobs({"content": []}) == {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "content": [],
        "text_offset": [],
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "完"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": [1, 2], "echo": True}, "echo"),
    ],
)
def test_what_no_engine_does_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "echo", "prompt": "甲", **fields})
    assert caught.value.param == param


# ---- embeddings ----


def test_embeddings_as_numbers_and_as_base64(client: openai.OpenAI, loose: openai.OpenAI, gateway: Gateway) -> None:
    texts = ["模坊", "ｆｕｌｌ 🙂"]
    by_client = loose.embeddings.create(model="hash", input=texts)  # asks for base64, and decodes it after validation
    strict = client.embeddings.create(model="hash", input=texts, encoding_format="float")
    assert strict.data[0].embedding == pytest.approx(by_client.data[0].embedding)
    with gateway.http() as http:
        plain = http.post("/v1/embeddings", json={"model": "hash", "input": texts}).json()
        packed = http.post("/v1/embeddings", json={"model": "hash", "input": texts, "encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][1]["embedding"])
    assert list(struct.unpack("<8f", raw)) == pytest.approx(plain["data"][1]["embedding"])
    assert by_client.data[1].embedding == pytest.approx(plain["data"][1]["embedding"])
    assert [d["index"] for d in plain["data"]] == [0, 1] and plain["model"] == "hash"
    assert by_client.usage.prompt_tokens == sum(map(len, texts))
    assert sum(x * x for x in plain["data"][0]["embedding"]) == pytest.approx(1)


def test_queries_and_passages_differ(client: openai.OpenAI) -> None:
    def vector(input_type: str) -> list[float]:
        extra = {"input_type": input_type}
        answer = client.embeddings.create(model="auto", input="你好", encoding_format="float", extra_body=extra)
        return answer.data[0].embedding

    assert vector("query") != vector("passage") == vector("passage")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"input": [1, 2]}, "token_input"),
        ({"input": [[1], [2]]}, "token_input"),
        ({"input": ["甲", ""]}, "empty_input"),
        ({"input": "甲", "dimensions": 4}, "wrong_dimensions"),
        ({"input": "甲", "model": "echo"}, "wrong_kind"),
    ],
)
def test_embeddings_that_cannot_be(client: openai.OpenAI, fields: dict[str, Any], code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": "hash", **fields})
    assert caught.value.code == code


def test_the_models_own_dimensions_are_accepted(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="hash", input="甲", dimensions=8, encoding_format="float")
    assert len(answer.data[0].embedding) == 8


# ---- rerank ----


def test_rerank(gateway: Gateway) -> None:
    body = {"query": "上海天气", "documents": ["北京", {"text": "上海天气好"}, "上海"], "top_n": 2}
    with gateway.http() as http:
        bare = http.post("/v1/rerank", json=body).json()
        full = http.post("/v1/rerank", json={**body, "return_documents": True}).json()
        wrong = http.post("/v1/rerank", json={**body, "documents": [{"title": "x"}]})
    assert [(r["index"], r["relevance_score"]) for r in bare["results"]] == [(1, 1.0), (2, 0.5)]
    assert full["results"][0]["document"] == {"text": "上海天气好"} and bare["model"] == "letters"
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "documents.0"


# ---- models ----


def test_models_list_and_retrieve(client: openai.OpenAI, gateway: Gateway, pool: FakePool) -> None:
    pool.in_memory.append("echo")
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"echo", "hash"}
    assert (models["echo"].loaded, models["hash"].loaded) == (True, False)  # type: ignore[attr-defined]
    assert models["hash"].kind == "embedding"  # type: ignore[attr-defined]
    one: Any = client.models.retrieve("echo")
    assert one.memory["n_ctx"] == 8192 and one.manifest["engine"] == "echo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("ecco")
    assert caught.value.code == "model_not_found"


def test_a_damaged_model_is_listed_with_what_is_wrong(gateway: Gateway) -> None:
    folder = gateway.backend.settings.home / "models" / "坏的"
    folder.mkdir()
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with gateway.http() as http:
        listed = http.get("/v1/models").json()
    assert {model["id"] for model in listed["data"]} == {"echo", "hash"}
    assert "坏的" in listed["problems"][0]["message"]


def test_load_unload_delete(gateway: Gateway, pool: FakePool) -> None:
    with gateway.client() as client:
        assert client.load_model("echo")["model"] == "echo" and pool.in_memory == ["echo"]
        client.unload_model("echo")
        assert pool.in_memory == []
        client.load_model("echo")
        client.remove_model("echo")
        assert pool.in_memory == [] and [m["id"] for m in client.models()] == ["hash"]
        assert not (gateway.backend.settings.home / "models" / "echo").exists()


def test_the_catalogue_says_what_is_here(gateway: Gateway) -> None:
    with gateway.client() as client:
        entries = client.catalogue()
    assert entries and all({"zh", "en"} <= set(entry["summary"]) for entry in entries)
    assert not any(entry["installed"] for entry in entries)
    assert all(isinstance(entry["fits"], bool) for entry in entries)


def test_extra_fields_of_sampling_reach_the_engine(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.script = spoken("好")
    client.completions.create(model="echo", prompt="x", logprobs=2, extra_body={"ignore_eos": True})
    assert engine.asked[0][1].options == {"logprobs": 2, "ignore_eos": True}
